"""Counts what each method trains on three models, of shapes alone: no weights are made.

    python -m scripts.docs.counts [METHOD ...]

writes scripts/docs/counts.json, which the pages of methods show and the tests count again.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.config import default_config
from ftjax.errors import UserError
from ftjax.models.presets import PRESETS

FILE = Path(__file__).with_name("counts.json")
T5_BASE = {  # as t5-base's config.json differs from t5-11b's
    **PRESETS["t5-11b"],
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_layers": 12,
    "num_decoder_layers": 12,
    "num_heads": 12,
}
CLASSIFIER = {"head": "classification", "labels": 2}
MODELS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {  # config.json, head
    "bert-base": (PRESETS["bert-base"], CLASSIFIER),
    "llama-3.2-1b": (PRESETS["llama-3.2-1b"], CLASSIFIER),
    "t5-base": (T5_BASE, {"head": "seq2seq_lm"}),
}


def count(method: str, model: str, segments: str = "scan") -> list[int] | str:
    """Parameters that a method with its defaults trains, and all; or why it does not go with it."""
    config, head = MODELS[model]
    try:
        settings = methods.create(default_config(method).method)
        tuned = build_tuned(config, settings, {"segments": segments}, head)
    except UserError as error:
        return str(error).partition(" (known")[0]
    return [*tuned.partition.counts(tuned.shapes)]


def main() -> None:
    counts = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for name in sys.argv[1:] or methods.METHODS:
        counts[name] = {model: count(name, model) for model in MODELS}
        ordered = {name: counts[name] for name in methods.METHODS if name in counts}
        FILE.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
