"""A model under a method, built abstractly from a config.json: no weights are made."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.errors import UserError, nearest
from ftjax.methods import name_of
from ftjax.methods.method import Method
from ftjax.models import configure, kind_of
from ftjax.models import family as family_of
from ftjax.models.attention import ATTENTION, PLATFORMS, runs_on
from ftjax.models.layers import Options
from ftjax.models.stack import DEEP, POLICIES, parameters_of, resolve_segments
from ftjax.names import names_of
from ftjax.paths import Flat
from ftjax.tuned import SAMPLE, Tuned, initialized, partition_of, positions_of


def build_tuned(
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
    family, kind, head = family_of(hf_config), kind_of(hf_config), dict(head or {})
    if kind != "encoder":
        if head.get("head") == "embedding":
            raise UserError(f"{hf_config['model_type']} is no sentence encoder")
        if head.get("pooling") in ("mean", "entities"):
            name, pooling = hf_config["model_type"], head["pooling"]
            raise UserError(f"task.pooling={pooling}: {name} reads the last token")
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
    one_sided = kind == "decoder" and not config.both_sides
    if options.attention == "splash" and not one_sided:
        raise UserError(
            "model.attention=splash is for decoders that see one side, not this "
            f"{hf_config['model_type']}"
        )
    parts = settings.get("parts", 1)
    divisible = kind == "decoder" and config.divisible
    if parts != 1 and not (divisible and 1 < parts <= config.intermediate_size):
        raise UserError(
            f"model.parts={parts} must be 1, or for decoders with gated feed-forward blocks more"
        )
    if options.attention == "auto":
        drops = getattr(config, "attention_dropout", 0.0)
        splash = platform == "tpu" and one_sided and not drops
        found = "splash" if splash else "gpu" if platform == "gpu" else "xla"
        options = replace(options, attention=found)
    limit = positions_of(config)
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
        return jax.eval_shape(lambda key: initialized(model, interceptor, key), key)

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
    partition = partition_of(shapes, method, base, method.trains)
    dtype = jnp.dtype(settings.get("trainable_dtype", "float32"))
    tuned = Tuned(family, kind, names, config, model, method, base, partition, shapes, axes, dtype)
    tuned._phases[method] = tuned
    return tuned


def segments_of(config: Any, settings: Mapping[str, Any], method: Method) -> tuple[int, ...]:
    """Lengths of segments, cut where the method needs it."""
    layers, more = config.num_hidden_layers, getattr(config, "num_decoder_layers", 0)
    # A decoder is cut at the numbers of the encoder's layers, counted from its own first.
    cuts = [cut if cut <= layers else cut - layers for cut in method.cuts(layers + more)]
    size = parameters_of(config) if max(layers, more) <= DEEP else math.inf
    return resolve_segments(settings.get("segments", "auto"), layers, size, cuts)


def _known(key: str, value: str, known: Collection[str]) -> str:
    if value not in known:
        raise UserError(f"model.{key}={value!r} is not known{nearest(value, known)}")
    return value
