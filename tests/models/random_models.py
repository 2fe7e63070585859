"""Our models of the cases, with random parameters, and what goes into them."""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ftjax import methods, tuned
from ftjax.build import build_tuned
from ftjax.models import FAMILIES, configure
from ftjax.models.layers import Options
from ftjax.paths import Flat, expand
from tests.compiler import OPTIONS
from tests.covering import product
from tests.models.cases import CASES, DISTINCT

LABELS = 3
LANGUAGE_MODELS = ("masked_lm", "causal_lm", "seq2seq_lm")


def config_of(case: str) -> dict[str, Any]:
    """config.json of a case."""
    return json.loads(CASES[case]().to_json_string())


def by_layers(cases: Iterable[str] = CASES) -> list[Any]:
    """Parameters of a test of what layers make of a case: by default of those that differ."""
    return product([(case,) for case in cases], [(case,) for case in DISTINCT])


def kind_of(case: str) -> str:
    """ "encoder", "decoder" or "encoder-decoder"."""
    return FAMILIES[config_of(case)["model_type"]][1]


def heads_of(case: str) -> set[str]:
    """The heads of a case's family."""
    config = config_of(case)
    return set(configure(config, Options()).heads)


def natural(case: str) -> str:
    """The language-modelling head that a case's family was pretrained with."""
    return next(head for head in LANGUAGE_MODELS if head in heads_of(case))


def build(
    case: str,
    head: str | None,
    pooling: str = "cls",
    platform: str = "cpu",
    method: Mapping[str, Any] | None = None,
    **settings: Any,
) -> tuned.Tuned:
    """A case's model under a head.

    Args:
        case: a key of `CASES`.
        head: of its family.
        pooling: of the task.
        platform: that it is to run on.
        method: what tunes it; None trains it in full.
        settings: of `model` in a configuration.
    """
    task = {"head": head, "labels": LABELS, "pooling": pooling}
    method = methods.create(method or {"name": "full"})
    return build_tuned(config_of(case), method, settings, task, platform)


def parameters(model: tuned.Tuned) -> Flat:
    """Random numbers that depend on a parameter's unrolled name alone."""

    def one(path: str, shape: tuple[int, ...]) -> np.ndarray:
        random = np.random.default_rng(zlib.crc32(path.encode()))
        return (random.normal(path.endswith("scale"), 0.3, shape)).astype(np.float32)

    def stacked(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if expand(path) == [path]:
            return one(path, shape)
        return np.stack([one(name, shape[1:]) for name in expand(path)])

    return {path: stacked(path, leaf.shape) for path, leaf in model.shapes.items()}


def unstacked(params: Mapping[str, Any]) -> Flat:
    """Parameters, or their gradients, by unrolled name."""
    unrolled = {}
    for path, leaf in params.items():
        layers = [leaf] if expand(path) == [path] else leaf
        unrolled |= zip(expand(path), map(np.asarray, layers), strict=True)
    return unrolled


def packed(case: str, length: int = 10) -> dict[str, np.ndarray]:
    """Two rows of several examples each, the second with padding at its end."""
    batch, place, cut = inputs(case, length=length), np.arange(length), length // 3
    del batch["attention_mask"]
    batch["segment_ids"] = np.stack([1 + (place > cut), (1 + place // cut) * (place < 2 * cut)])
    batch["position_ids"] = np.stack([place - (cut + 1) * (place > cut), place % cut])
    return batch


def real_tokens(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which of the hidden states are not of padding."""
    if "decoder_input_ids" in batch:
        return np.ones(batch["decoder_input_ids"].shape, bool)
    ones = np.ones(batch["input_ids"].shape, bool)
    return batch.get("segment_ids", batch.get("attention_mask", ones)) > 0


def hidden(model: tuned.Tuned, params: Flat, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Hidden states of what is real."""
    return np.asarray(quick(model.apply)(params, batch))[real_tokens(batch)]


def graded(
    model: tuned.Tuned, params: Flat, batch: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, Flat]:
    """Hidden states of what is real, and gradients of their squares by unrolled name."""
    real = real_tokens(batch)

    def loss(params: Flat) -> tuple[jax.Array, jax.Array]:
        hidden = model.apply(params, batch)
        return (hidden**2 * real[..., None]).sum(), hidden

    grads, hidden = quick(jax.grad(loss, has_aux=True))(params)
    return np.asarray(hidden)[real], unstacked(grads)


def furthest(grads: Flat, wanted: Flat) -> float:
    """The largest difference of gradients, as `difference` has it of each."""
    largest = max(np.abs(grad).max() for grad in wanted.values())
    return max(difference(grads[path], grad, largest) for path, grad in wanted.items())


def inputs(case: str, rows: int = 2, length: int = 10) -> dict[str, np.ndarray]:
    """Token ids, and a mask with padding on the right."""
    random = np.random.default_rng(0)
    sizes = length - 3 * np.arange(rows) % length
    batch = {
        "input_ids": random.integers(4, 64, (rows, length)).astype(np.int32),
        "attention_mask": (np.arange(length) < sizes[:, None]).astype(np.int32),
    }
    if kind_of(case) == "encoder-decoder":
        batch["decoder_input_ids"] = random.integers(4, 64, (rows, length - 3)).astype(np.int32)
    return batch


def quick(function: Callable) -> Callable:
    """`jax.jit` that compiles quickly."""
    return jax.jit(function, compiler_options=OPTIONS)


def difference(found: Any, wanted: Any, largest: float = 0.0) -> float:
    """The largest difference, relative to the largest value or to a hundredth of `largest`."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-2 * largest))
