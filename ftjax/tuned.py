"""A model under a method: the one place where the two meet."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ftjax.base_model import Base
from ftjax.errors import UserError
from ftjax.methods.interception import nested
from ftjax.methods.method import Method
from ftjax.methods.virtual_tokens import changed_words
from ftjax.names import Names
from ftjax.parallel.float8 import FLOAT8
from ftjax.parallel.narrow import NARROW
from ftjax.parallel.platform import PLATFORM, SPARSE_CORES
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
        names: what Hugging Face calls the model and its modules.
        model: the Linen module, which knows nothing of the method.
        method: the method.
        base: what the method knows of the model.
        partition: label of every parameter.
        shapes: flat abstract parameters, the method's included.
        axes: logical axes of every parameter.
        trainable_dtype: of the leaves that train, and of their moments.
    """

    names: Names
    model: nn.Module
    method: Method
    base: Base
    partition: Partition
    shapes: Flat
    axes: Mapping[str, tuple[str | None, ...]]
    trainable_dtype: Any = jnp.float32

    @property
    def config(self) -> Any:
        """The family's `Config`."""
        return self.model.config

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
        with intercepted(interceptor), _computed(self.config.options):
            return self.model.apply(variables, **inputs, rngs=rngs)

    def apply_cached(
        self, params: Mapping[str, Any], cache: Any, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, Any]:
        """Logits of a prompt's last column, or of the tokens after it, and what is kept.

        Args:
            params: flat parameters.
            cache: what the call before returned; None for a prompt.
            batch: those of `INPUTS` that are there are used.
        """
        variables = {"params": unflatten(params)} | ({"cache": cache} if cache else {})
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        interceptor = self.method.interceptor(self.base)
        with intercepted(interceptor), _computed(self.config.options):
            logits, mutated = self.model.apply(variables, **inputs, mutable=["cache"])
        return logits, mutated["cache"]

    def at_step(self, step: int) -> "Tuned":
        """What trains at a step and by which optimizer, of what this says trains at all.

        The same object for all steps at which the same is done.
        """
        method = self.method.at_step(step, self.base)
        if method not in self._phases:
            partition = partition_of(self.shapes, method, self.base)
            self._phases[method] = replace(self, method=method, partition=partition)
        return self._phases[method]

    @cached_property
    def _phases(self) -> dict[Method, "Tuned"]:
        """By their methods those that `at_step` has given, this one among them."""
        return {self.method: self}

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
            factors = [self.method.rate_of(self.base, name) for name in expand(path)]
            if set(factors) != {1.0}:
                column = jnp.asarray(factors).reshape(-1, *[1] * (leaf.ndim - 1))
                rates[path] = factors[0] if len(set(factors)) == 1 else column
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
        limit = positions_of(self.config)
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

        def draw(key: jax.Array) -> Flat:
            params = initialized(self.model, self.method.interceptor(self.base), key)
            flat = {path: leaf.value for path, leaf in params.items()}
            return {path: flat[path].astype(self.dtype(path)) for path in paths}

        return jax.jit(draw, out_shardings={path: shardings[path] for path in paths})(key)


def intercepted(interceptor: Any) -> Any:
    return nn.intercept_methods(interceptor) if interceptor else nullcontext()


@contextmanager
def _computed(options: Any) -> Iterator[None]:
    """Where a model is traced as its options say."""
    with (
        NARROW(options.narrow),
        FLOAT8(options.float8),
        PLATFORM(options.platform),
        SPARSE_CORES(options.sparse_cores),
    ):
        yield


def positions_of(config: Any) -> int | None:
    """How many positions a model has; None where it knows no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None else limit - getattr(config, "first_position", 0)


def initialized(model: nn.Module, interceptor: Any, key: jax.Array) -> Flat:
    """Flat parameters, each boxed with its logical axes."""
    shape = (1, 2, SAMPLE) if model.head == "choice" else (1, SAMPLE)
    with intercepted(interceptor):
        return flatten(model.init({"params": key}, jnp.zeros(shape, jnp.int32))["params"])


def partition_of(shapes: Flat, method: Method, base: Base, trains: bool = True) -> Partition:
    buffers = [(rf"{re.escape(path)}/.*", FROZEN) for path in base.buffers]
    return Partition.of(list(shapes), (*buffers, *method.rules(base)), trains)
