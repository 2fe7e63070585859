"""A small Llama of which there is a configuration and nothing else."""

import importlib.util
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from ftjax.config import check, default_config

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: not run"
)
ROWS, LENGTH = 8, 16
LLAMA = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def write_config(folder: Path, **changes: int) -> Path:
    """A folder with its config.json."""
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return folder


def config_of(folder: Path, method: str, task: str = "causal_lm", **changes: object) -> ConfigDict:
    """A configuration of a few short rows; `changes` are section_key=value."""
    config = default_config(method, task)
    config.model.path = str(folder)
    config.data.max_length, config.train.batch_size = LENGTH, ROWS
    config.data.batching = "pad"
    for key, value in changes.items():
        section, _, name = key.partition("_")
        config[section][name] = value
    return check(config)
