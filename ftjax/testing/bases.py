"""A small random model of each kind, and what goes into it."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.parallel.mesh import make_mesh, param_shardings
from ftjax.paths import Flat
from ftjax.pretrained import derived
from ftjax.tuned import Tuned

SIZES = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 128, "max_position_embeddings": 64, "initializer_range": 0.2}
BASES: dict[str, dict[str, Any]] = {  # a small model of each kind → its config.json
    "bert": {"model_type": "bert", **SIZES, "type_vocab_size": 2, "pad_token_id": 0},
    "llama": {
        "model_type": "llama",
        **SIZES,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
    "t5": {
        "model_type": "t5",
        "vocab_size": 64,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_decoder_layers": 1,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 6,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
}
HEAD = {"head": "classification", "labels": 2, "pooling": "cls"}


def build(
    base: str,
    method: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] = HEAD,
) -> Tuned:
    """A base model under a method."""
    return build_tuned(BASES[base], methods.create(method), settings, head)


def make_batch(base: str, rows: int = 8, length: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    """Token ids (rows, length) with padding on the right, labels and weights (rows,)."""
    random = np.random.default_rng(seed)
    sizes = random.integers(4, length + 1, rows)
    mask = (np.arange(length) < sizes[:, None]).astype(np.int32)
    ids = random.integers(5, 64, (rows, length)) * mask
    if base == "t5":
        ids[np.arange(rows), sizes - 1] = 1  # its classifier reads the end
    weights = np.ones(rows, np.float32)
    labels = random.integers(0, 2, rows)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "weights": weights}


@cache
def plain_model(base: str) -> tuple[Tuned, Callable]:
    """A base model without a method, and its compiled outputs."""
    model = build(base, {"name": "full"})
    return model, jax.jit(lambda params, batch: model.apply(params, batch))


@cache
def plain_params(base: str) -> Flat:
    """Random parameters of a base model, with biases and norms that are not trivial."""
    model, random = plain_model(base)[0], np.random.default_rng(0)
    drawn = model.init(jax.random.key(0), list(model.shapes), dict.fromkeys(model.shapes))
    params = {path: np.array(leaf) for path, leaf in drawn.items()}
    for path in params:
        if path.endswith(("bias", "scale")):
            params[path] += random.normal(0, 0.1, params[path].shape).astype(np.float32)
        elif path.startswith("words") and base == "t5":
            params[path] *= 0.3
    return params


def started(model: Tuned, base: str) -> Flat:
    """The base model's parameters, as the method stores them, with those that it adds."""
    shardings = param_shardings(model.shapes, model.axes, make_mesh(devices=jax.devices()[:1]))
    params = {
        path: model.method.stored(model.base, path, jax.device_put(leaf, shardings[path]))
        for path, leaf in plain_params(base).items()
    }
    key = jax.random.key(0)
    params |= model.init(key, [path for path in model.shapes if path not in params], shardings)
    params |= derived(model, params, key, shardings, Path())
    return {path: jax.tree.map(np.asarray, leaf) for path, leaf in params.items()}
