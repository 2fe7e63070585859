"""A model under a method: the one place where the two meet."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ftjax.base_model import Base
from ftjax.errors import UserError, nearest
from ftjax.formats.folder import load_tokenizer
from ftjax.methods import name_of
from ftjax.methods.interception import nested
from ftjax.methods.method import Method
from ftjax.methods.virtual_tokens import changed_words
from ftjax.models import configure, kind_of
from ftjax.models import family as family_of
from ftjax.models.attention import ATTENTION, PLATFORMS, runs_on
from ftjax.models.layers import Options
from ftjax.models.stack import DEEP, POLICIES, parameters_of, resolve_segments
from ftjax.names import Names, names_of
from ftjax.partition import FROZEN, Partition
from ftjax.paths import Flat, expand, flatten, unflatten

INPUTS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "segment_ids",
    "decoder_input_ids",
    "decoder_attention_mask",
    "starts",
    "features",
    "column",
    "perm_mask",
    "targets",
    "target_weights",
    "target_smoothing",
    "entities",
    "at_positions",
)
SAMPLE = 8  # tokens of the row that parameters are made with


@dataclass(frozen=True)
class Tuned:
    """A model, the method that tunes it, and all that follows from the two.

    Attributes:
        family: the module of the model's family.
        names: what Hugging Face calls the model's modules.
        config: the family's `Config`.
        model: the Linen module, which knows nothing of the method.
        method: the method.
        base: what the method knows of the model.
        partition: label of every parameter.
        shapes: flat abstract parameters, the method's included.
        axes: logical axes of every parameter.
        trainable_dtype: of the leaves that train, and of their moments.
    """

    family: ModuleType
    names: Names
    config: Any
    model: nn.Module
    method: Method
    base: Base
    partition: Partition
    shapes: Flat
    axes: Mapping[str, tuple[str | None, ...]]
    trainable_dtype: Any = jnp.float32
    _phases: dict[Method, Any] = field(default_factory=dict, compare=False, repr=False)

    def apply(
        self,
        params: Mapping[str, Any],
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        adapted: bool = True,
        features_only: bool = False,
        words: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """The model's outputs on a batch.

        Args:
            params: flat parameters.
            batch: those of `INPUTS` that are there are used.
            key: turns dropout on.
            adapted: False disables the method: the base model's outputs.
            features_only: what the head reads, instead of what it says.
            words: what is made of embedded tokens, see `changed_words`.
        """
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        if features_only:
            inputs["features_only"] = True
        rngs = None if key is None else {"dropout": key}
        variables = {"params": unflatten(params)}
        interceptor = (self.method.interceptor if adapted else self.method.disabled)(self.base)
        if words is not None:
            interceptor = nested(interceptor, changed_words(self.base, inputs, words))
        with _intercepted(interceptor):
            return self.model.apply(variables, **inputs, rngs=rngs)

    def apply_cached(
        self, params: Mapping[str, Any], cache: Any, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, Any]:
        """Logits of the last column (batch, 1, vocabulary), and the keys and values kept.

        Args:
            params: flat parameters.
            cache: what the call before returned; None for a prompt.
            batch: those of `INPUTS` that are there are used.
        """
        variables = {"params": unflatten(params)} | ({"cache": cache} if cache else {})
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        with _intercepted(self.method.interceptor(self.base)):
            logits, kept = self.model.apply(variables, **inputs, mutable=["cache"])
        return logits, kept["cache"]

    def at_step(self, step: int) -> "Tuned":
        """What trains at a step and by which optimizer, of what this says trains at all.

        The same object for all steps at which the same is done.
        """
        method = self.method.at_step(step, self.base)
        if method not in self._phases:
            partition = _partition(self.shapes, method, self.base)
            self._phases[method] = replace(self, method=method, partition=partition)
        return self._phases[method]

    def optimizer(
        self,
        group: str,
        core: optax.GradientTransformation,
        rest: optax.GradientTransformation,
        steps: int,
    ) -> optax.GradientTransformation:
        """The optimizer of a group of the partition: see `Method.optimizer`."""
        return self.method.optimizer(self.base, group, core, rest, steps)

    def rates(self) -> dict[str, Any]:
        """What learning rates are multiplied by, where not 1: a number, or one a scanned layer."""
        rates = {}
        for path, leaf in self.shapes.items():
            found = [self.method.rate_of(self.base, name) for name in expand(path)]
            if set(found) != {1.0}:
                each = jnp.asarray(found).reshape(-1, *[1] * (leaf.ndim - 1))
                rates[path] = found[0] if len(set(found)) == 1 else each
        return rates

    @property
    def ties_words(self) -> bool:
        """Whether the head reads words off by the table that they are looked up in."""
        return self.base.of_words and self.config.tied

    def merged(self, params: Flat) -> Flat:
        """Parameters of the plain model that computes the same; some modules' are enough.

        Raises:
            UserError: the method cannot be merged.
        """
        merged, table = self.method.merge(self.base, params), f"{self.base.words}/embedding"
        if self.ties_words and merged.get(table) is not params.get(table):
            raise UserError(
                "the head reads words off by their embeddings, of which the method adapts the "
                "look-up alone: that cannot be merged into one table"
            )
        return merged

    @property
    def longest(self) -> int | None:
        """How many positions a row's tokens may take; None where the model knows no limit."""
        limit = _positions(self.config)
        return None if limit is None else limit - self.method.columns

    def check_length(self, length: int) -> None:
        """Whether the model has positions for rows of `data.max_length` tokens.

        Raises:
            UserError: it has not.
        """
        longest, taken = self.longest, self.method.columns
        if longest is not None and length > longest:
            less = f", less {taken} that the method takes" if taken else ""
            raise UserError(
                f"data.max_length={length} exceeds the model's {longest + taken} positions{less}"
            )

    @property
    def only_head_trains(self) -> bool:
        """Whether all below the head is frozen and unchanged, so that it need run only once."""
        above = {"pooler", *self.base.head}
        trainable = [path for path in self.shapes if self.partition.is_trainable(path)]
        return set(self.shapes) == set(self.base.shapes) and all(
            path.split("/")[0] in above for path in trainable
        )

    def dtype(self, path: str) -> Any:
        """Trainable leaves are float32 as a rule, frozen ones in the compute dtype."""
        trains = self.partition.is_trainable(path)
        return self.trainable_dtype if trains else self.config.options.dtype

    def init(self, key: jax.Array, paths: list[str], shardings: Mapping[str, Any]) -> Flat:
        """Initializes only the parameters named, straight into their shardings."""
        if not paths:
            return {}

        def make(key: jax.Array) -> Flat:
            params = _init(self.model, self.method.interceptor(self.base), key)
            flat = {path: leaf.value for path, leaf in params.items()}
            return {path: flat[path].astype(self.dtype(path)) for path in paths}

        return jax.jit(make, out_shardings={path: shardings[path] for path in paths})(key)

    def started(
        self, params: Flat, key: jax.Array, shardings: Mapping[str, Any], folder: Path
    ) -> Flat:
        """Those parameters of the method whose first value depends on the base's."""
        base = replace(self.base, tokenize=partial(_tokenize, folder))

        def initialize(params: Flat, key: jax.Array) -> Flat:
            return self.method.initialize(base, params, key)

        placed = {path: shardings[path] for path in jax.eval_shape(initialize, params, key)}
        return jax.jit(initialize, out_shardings=placed)(params, key) if placed else {}


def segments_of(config: Any, settings: Mapping[str, Any], method: Method) -> tuple[int, ...]:
    """Lengths of segments, cut where the method needs it."""
    layers, more = config.num_hidden_layers, getattr(config, "num_decoder_layers", 0)
    # A decoder is cut at the numbers of the encoder's layers, counted from its own first.
    cuts = [cut if cut <= layers else cut - layers for cut in method.cuts(layers + more)]
    size = parameters_of(config) if max(layers, more) <= DEEP else math.inf
    return resolve_segments(settings.get("segments", "auto"), layers, size, cuts)


def _tokenize(folder: Path, text: str) -> list[int]:
    return load_tokenizer(folder)(text, add_special_tokens=False)["input_ids"]


def _intercepted(interceptor: Any) -> Any:
    return nn.intercept_methods(interceptor) if interceptor else nullcontext()


def _positions(config: Any) -> int | None:
    """How many positions a model has; None where it knows no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None else limit - getattr(config, "first_position", 0)


def _init(model: nn.Module, interceptor: Any, key: jax.Array) -> Flat:
    """Flat parameters, each boxed with its logical axes."""
    shape = (1, 2, SAMPLE) if model.head == "choice" else (1, SAMPLE)
    with _intercepted(interceptor):
        return flatten(model.init({"params": key}, jnp.zeros(shape, jnp.int32))["params"])


def build(
    hf_config: Mapping[str, Any],
    method: Method,
    settings: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] | None = None,
    platform: str = "cpu",
) -> Tuned:
    """A model under a method, abstractly: no weights are made.

    Args:
        hf_config: config.json's mapping.
        method: the method.
        settings: `model.dtype`, `model.remat`, `model.segments`, `model.attention`,
            `model.parts`.
        head: the task's arguments to the family's `Model` (head, labels, pooling).
        platform: that it is to run on, "cpu", "gpu" or "tpu".

    Raises:
        UserError: the configuration lacks an option, or has one that is not implemented.
    """
    settings = settings or {}
    family, head = family_of(hf_config), dict(head or {})
    if kind_of(hf_config) != "encoder":
        if head.get("head") == "embedding":
            raise UserError(f"{hf_config['model_type']} is no sentence encoder")
        if head.get("pooling") in ("mean", "entities"):
            kind, pooling = hf_config["model_type"], head["pooling"]
            raise UserError(f"task.pooling={pooling}: {kind} reads the last token")
    options = Options(
        dtype=jnp.dtype(settings.get("dtype", "float32")),
        remat=_known("remat", settings.get("remat", "none"), POLICIES),
        attention=_known("attention", settings.get("attention", "auto"), ("auto", *ATTENTION)),
    )
    if not runs_on(options.attention, platform):
        wanted = PLATFORMS[options.attention]
        raise UserError(
            f"model.attention={options.attention} runs on {wanted.upper()}s, and this is a "
            f"{platform.upper()}: use attention=auto"
        )
    config = configure(hf_config, options)
    one_sided = kind_of(hf_config) == "decoder" and not config.both_sides
    if options.attention == "splash" and not one_sided:
        raise UserError(
            "model.attention=splash is for decoders that see one side, not this "
            f"{hf_config['model_type']}"
        )
    parts = settings.get("parts", 1)
    divisible = kind_of(hf_config) == "decoder" and config.divisible
    if parts != 1 and not (divisible and 1 < parts <= config.intermediate_size):
        raise UserError(
            f"model.parts={parts} must be 1, or for decoders with gated feed-forward blocks more"
        )
    if options.attention == "auto":
        drops = getattr(config, "attention_dropout", 0.0)
        splash = platform == "tpu" and one_sided and not drops
        found = "splash" if splash else "gpu" if platform == "gpu" else "xla"
        options = replace(options, attention=found)
    limit = _positions(config)
    if limit is not None and limit < SAMPLE:
        raise UserError(
            f"this {hf_config['model_type']} has {max(limit, 0)} positions by its config.json, and "
            f"needs {SAMPLE} or more"
        )
    segments = segments_of(config, settings, method)
    config = replace(config, options=replace(options, segments=segments))
    model = family.Model(config, **head)
    names = names_of(family, config, model.head, getattr(model, "dense", ()))
    key = jax.random.key(0)

    def abstract(interceptor: Any) -> Flat:
        return jax.eval_shape(lambda key: _init(model, interceptor, key), key)

    boxed = abstract(None)
    shapes = {path: leaf.value for path, leaf in boxed.items()}
    buffers = tuple(path for path, part in names.head.items() if getattr(part, "buffer", False))
    base = Base(
        shapes,
        names.plain(),
        tuple(dict.fromkeys(path.split("/")[0] for path in names.head if path not in buffers)),
        family.DEFAULT_TARGETS,
        config.pre_norm,
        prefix=names.prefix,
        embedding_scale=getattr(config, "embedding_scale", 1.0),
        buffers=buffers,
        of_words=str(model.head).endswith("_lm") or model.head == "pretraining",
    )
    interceptor = method.interceptor(base)
    if parts > 1:
        inside = r".*layers?_[\d_]+/ffn/(up|gate|down)", "__call__", "product"
        if interceptor and interceptor.changes(*inside):
            raise UserError(
                f"model.parts={parts} must be 1 with method.name={name_of(method)}, which changes "
                "projections of feed-forward blocks, so that these cannot be computed in parts"
            )
        options = replace(config.options, parts=parts)
        model = model.clone(config=replace(config, options=options))
    if limit is not None and limit < method.columns + SAMPLE:
        raise UserError(
            f"method.length={method.columns} leaves too few of the model's {limit} positions"
        )
    if interceptor is not None:
        boxed = abstract(interceptor)
        shapes = {path: leaf.value for path, leaf in boxed.items()}
    axes = {path: tuple(leaf.names) for path, leaf in boxed.items()}
    partition = _partition(shapes, method, base, method.trains)
    dtype = jnp.dtype(settings.get("trainable_dtype", "float32"))
    tuned = Tuned(family, names, config, model, method, base, partition, shapes, axes, dtype)
    tuned._phases[method] = tuned
    return tuned


def _partition(shapes: Flat, method: Method, base: Base, trains: bool = True) -> Partition:
    buffers = [(rf"{re.escape(path)}/.*", FROZEN) for path in base.buffers]
    return Partition.of(list(shapes), (*buffers, *method.rules(base)), trains)


def _known(key: str, value: str, known: Collection[str]) -> str:
    if value not in known:
        raise UserError(f"model.{key}={value!r} is not known{nearest(value, known)}")
    return value
