"""A small base model of each kind, in a folder, and what goes into it."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax
import numpy as np

from ftjax import methods, tuned
from ftjax.build import build_tuned
from ftjax.formats.hf import mapping

SIZES = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 128, "max_position_embeddings": 64, "initializer_range": 0.2}
BASES: dict[str, dict[str, Any]] = {
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
# Methods whose forward passes are those of others: of selections, of LoRA and of adapters.
ALIKE = {"head", "top_k", "layer_norm", "regex", "gradual_unfreezing", "layerwise_lr_decay", "lisa"}
ALIKE |= {"bitfit", "galore", "adapter_drop", "scaled_parallel", "compacter_pp", "mam"}
ALIKE |= {"rslora", "lora_plus", "lora_fa", "olora"}


@cache
def folder(base: str) -> Path:
    """A folder of the base model, with random weights and without a head."""
    config = BASES[base]
    model = build_tuned(config, methods.create({"name": "full"}), {}, HEAD)
    params = model.init(jax.random.key(0), list(model.shapes), dict.fromkeys(model.shapes))
    random = np.random.default_rng(0)
    stored = {}
    for path, leaf in params.items():
        if path.split("/")[0] in ("classifier",):
            continue
        array = np.array(leaf)
        if path.endswith(("bias", "scale")):  # not trivial
            array += random.normal(0, 0.1, array.shape).astype(np.float32)
        elif path.startswith("words") and base == "t5":
            array *= 0.3
        stored[path] = array
    place = Path(mkdtemp(prefix=f"ftjax_{base}_"))
    config = {**config, "architectures": [model.family.MODEL]}
    (place / "config.json").write_text(json.dumps(config))
    mapping.write_folder(
        place, place, config, mapping.to_tensors(stored, model.names, prefix=False)
    )
    return place


def build(
    base: str,
    method: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] = HEAD,
) -> tuned.Tuned:
    """A base model under a method."""
    return build_tuned(BASES[base], methods.create(method), settings, head)


def make_batch(base: str, rows: int = 8, length: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    """Token ids with padding on the right, labels and weights."""
    random = np.random.default_rng(seed)
    sizes = random.integers(4, length + 1, rows)
    mask = (np.arange(length) < sizes[:, None]).astype(np.int32)
    ids = random.integers(5, 64, (rows, length)) * mask
    if base == "t5":
        ids[np.arange(rows), sizes - 1] = 1  # its classifier reads the end
    weights = np.ones(rows, np.float32)
    labels = random.integers(0, 2, rows)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "weights": weights}
