"""Layouts for `model.layout=auto`, in layouts.json: of those that were compiled ahead of time the
fastest, by the time model of `ftjax.forecast.timeline`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ftjax.config.load import changed
from ftjax.forecast.chips import TPUS
from ftjax.forecast.lowering import architecture

TABLE = Path(__file__).with_name("layouts.json")
SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")


def with_known_layout(
    config: ConfigDict, devices: Sequence[jax.Device] | None = None
) -> tuple[ConfigDict, str]:
    """A configuration in the layout that is known for its model, method and machine.

    Args:
        config: of a run.
        devices: that it is to run on; None for all that are there.

    Returns:
        It, unchanged where none is known; and why.
    """
    devices = jax.devices() if devices is None else devices
    kind, count = devices[0].device_kind, len(devices)
    chip = TPUS.get(kind)
    if chip is None:
        return config, f"none is known for {kind}: as configured"
    about = describe(config, chip, count)
    rows = json.loads(TABLE.read_text(encoding="utf-8"))
    alike = [row for row in rows if all(row["for"][key] == about[key] for key in about)]
    tokens = config.train.batch_size * config.data.max_length / count
    fitting = [row for row in alike if row["tokens_per_chip"] >= tokens]
    if not fitting:
        why = "for so many tokens a chip" if alike else "for this model and method"
        return config, f"none is known {why} on {count} chips of {chip}: as configured"
    row = min(fitting, key=lambda row: row["tokens_per_chip"])
    config = changed(config.copy_and_resolve_references(), list(_settings(row).items()))
    words = " ".join(f"{key}={value}" for key, value in row["changes"].items())
    machine = f"{count} chips of {chip}"
    return config, (
        f"{words}, the fastest compiled for {row['model']} with {config.method.name} on {machine}: "
        f"{1e3 * row['seconds']:,.0f} ms a step of {row['tokens_per_chip']:,} tokens a chip by "
        f"{row['versions']}"
    )


def describe(config: ConfigDict, chip: str, count: int) -> dict[str, Any]:
    """What a layout is for: sizes of the model and its dtypes, method, and machine."""
    sizes = architecture(config.model.path)
    targets = config.method.get("targets", "") if config.method.name != "full" else ""
    return {
        "sizes": [sizes.get(name) for name in SIZES],
        "dtypes": [config.model.dtype, config.model.trainable_dtype],
        "method": config.method.name,
        "targets": targets if isinstance(targets, str) else list(targets),
        "chip": chip,
        "chips": count,
    }


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    values = row["changes"]
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
