"""A model under a method, built abstractly from a config.json: no weights are made."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any

import flax.linen as nn
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
from ftjax.models.splash import Blocks
from ftjax.models.stack import DEEP, POLICIES, parameters_of, resolve_segments
from ftjax.names import Names, names_of
from ftjax.parallel.narrow import narrowed_for
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
        settings: the section `model`, of which this reads `dtype`, `products`, `remat`,
            `segments`, `attention`, `attention_block`, `attention_fused`, `parts`, `gather_head`
            and `whole`.
        head: the task's arguments to the family's `Model` (head, labels, pooling).
        platform: that it is to run on, "cpu", "gpu" or "tpu".

    Raises:
        UserError: the configuration lacks an option, or has one that is not implemented.
    """
    settings = settings or {}
    family, kind, head = family_of(hf_config), kind_of(hf_config), dict(head or {})
    _check_head(hf_config["model_type"], kind, head)
    config = _configured(hf_config, kind, settings, platform)
    positions, parts = positions_of(config), settings.get("parts", 1)
    segments = segments_of(config, settings, method)
    config = replace(config, options=replace(config.options, segments=segments))
    model = family.Model(config, **head)
    names = names_of(family, kind, config, model.head, getattr(model, "dense", ()))
    boxed = _of_base(model)
    base = _base_of(model, family, names, {path: leaf.value for path, leaf in boxed.items()})
    interceptor = method.interceptor(base)
    if parts > 1:
        _check_parts(parts, method, interceptor)
        model = model.clone(config=replace(config, options=replace(config.options, parts=parts)))
    if positions is not None and positions < method.columns + SAMPLE:
        raise UserError(
            f"method.length={method.columns} leaves too few of the model's {positions} positions"
        )
    if interceptor is not None:
        boxed = _abstract(model, interceptor)
    shapes = {path: leaf.value for path, leaf in boxed.items()}
    axes = {path: tuple(leaf.names) for path, leaf in boxed.items()}
    partition = partition_of(shapes, method, base, method.trains)
    dtype = jnp.dtype(settings.get("trainable_dtype", "float32"))
    return Tuned(names, model, method, base, partition, shapes, axes, dtype)


def _check_head(model_type: str, kind: str, head: Mapping[str, Any]) -> None:
    """Raises UserError for a head, or pooling, that encoders alone have."""
    if kind == "encoder":
        return
    if head.get("head") == "embedding":
        raise UserError(f"{model_type} is no sentence encoder")
    if (pooling := head.get("pooling")) in ("mean", "entities"):
        raise UserError(f"task.pooling={pooling}: {model_type} reads the last token")


def _configured(
    hf_config: Mapping[str, Any], kind: str, settings: Mapping[str, Any], platform: str
) -> Any:
    """The family's `Config`, with options that go with it and with the platform.

    Raises:
        UserError: an option is not known, or does not go with the model or the platform.
    """
    model_type = hf_config["model_type"]
    dtype = settings.get("dtype", "float32")
    options = Options(
        dtype=jnp.dtype(dtype),
        narrow=narrowed_for(settings.get("products", "float32"), dtype, platform),
        float8=settings.get("products") == "float8",
        platform=platform,
        remat=_remat(settings, kind),
        attention=_known("attention", settings.get("attention", "auto"), ("auto", *ATTENTION)),
        blocks=Blocks(settings.get("attention_block", 512), settings.get("attention_fused", False)),
        gather_head=settings.get("gather_head", False),
        whole=tuple(settings.get("whole", ())),
        sparse_cores=settings.get("sparse_cores", False),
    )
    if not runs_on(options.attention, platform):
        raise UserError(
            f"model.attention={options.attention} runs on {PLATFORMS[options.attention].upper()}s, "
            f"and this is a {platform.upper()}: use attention=auto"
        )
    config = configure(hf_config, options)
    one_sided = kind == "decoder" and not config.both_sides
    if options.attention == "splash" and not one_sided:
        raise UserError(
            f"model.attention=splash is for decoders that see one side, not this {model_type}"
        )
    divisible = kind == "decoder" and config.divisible
    if (parts := settings.get("parts", 1)) != 1 and not (
        divisible and 1 < parts <= config.intermediate_size
    ):
        raise UserError(
            f"model.parts={parts} must be 1, or for decoders with gated feed-forward blocks more"
        )
    if options.attention == "auto":
        splash = platform == "tpu" and one_sided and not getattr(config, "attention_dropout", 0.0)
        kernel = "splash" if splash else "gpu" if platform == "gpu" else "xla"
        config = replace(config, options=replace(options, attention=kernel))
    positions = positions_of(config)
    if positions is not None and positions < SAMPLE:
        raise UserError(
            f"this {model_type} has {max(positions, 0)} positions by its config.json, and needs "
            f"{SAMPLE} or more"
        )
    return config


def _check_parts(parts: int, method: Method, interceptor: Any) -> None:
    """Raises UserError where a method changes projections that are to be computed in parts."""
    inside = r".*layers?_[\d_]+/ffn/(up|gate|down)", "__call__", "product"
    if interceptor and interceptor.changes(*inside):
        raise UserError(
            f"model.parts={parts} must be 1 with method.name={name_of(method)}, which changes "
            "projections of feed-forward blocks, so that these cannot be computed in parts"
        )


@lru_cache(maxsize=32)
def _of_base(model: nn.Module) -> Flat:
    """As `_abstract`, without a method: the same for each of those that are compared."""
    return _abstract(model, None)


def _abstract(model: nn.Module, interceptor: Any) -> Flat:
    """Flat abstract parameters, each boxed with its logical axes."""
    return jax.eval_shape(lambda key: initialized(model, interceptor, key), jax.random.key(0))


def _base_of(model: nn.Module, family: ModuleType, names: Names, shapes: Flat) -> Base:
    """What a method may know of a model."""
    config = model.config
    buffers = tuple(path for path, part in names.head.items() if getattr(part, "buffer", False))
    head = dict.fromkeys(path.split("/")[0] for path in names.head if path not in buffers)
    return Base(
        shapes,
        names.plain(),
        tuple(head),
        family.DEFAULT_TARGETS,
        config.pre_norm,
        prefix=names.prefix,
        embedding_scale=getattr(config, "embedding_scale", 1.0),
        buffers=buffers,
        of_words=str(model.head).endswith("_lm") or model.head == "pretraining",
    )


def segments_of(config: Any, settings: Mapping[str, Any], method: Method) -> tuple[int, ...]:
    """Lengths of segments, cut where the method needs it."""
    layers, more = config.num_hidden_layers, getattr(config, "num_decoder_layers", 0)
    # A decoder is cut at the numbers of the encoder's layers, counted from its own first.
    cuts = [cut if cut <= layers else cut - layers for cut in method.cuts(layers + more)]
    size = parameters_of(config) if max(layers, more) <= DEEP else math.inf
    return resolve_segments(settings.get("segments", "auto"), layers, size, cuts)


def _remat(settings: Mapping[str, Any], kind: str) -> str | tuple[str, ...]:
    """A policy, or where each segment has its own, one for each layer."""
    policies, lengths = settings.get("remat", "none"), settings.get("segments")
    if isinstance(policies, str) or len(policies) == 1:
        policy = policies if isinstance(policies, str) else policies[0]
        return _known("remat", policy, POLICIES)
    if isinstance(lengths, str) or len(lengths or ()) != len(policies) or kind != "decoder":
        raise UserError(
            f"model.remat={','.join(policies)} is of decoders whose model.segments are as many "
            "lengths, as 24,8; else give one policy"
        )
    of_segments = zip(policies, lengths, strict=True)
    return tuple(_known("remat", p, POLICIES) for p, length in of_segments for _ in range(length))


def _known(key: str, value: str, known: Collection[str]) -> str:
    if value not in known:
        raise UserError(f"model.{key}={value!r} is not known{nearest(value, known)}")
    return value
