"""What the outputs of a finished head are called, by the folder that it comes from."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ftjax.formats.adapterhub import labels_in
from ftjax.formats.folder import open_weights
from ftjax.formats.names import Part
from ftjax.models import configure, read_config
from ftjax.models.layers import Options
from ftjax.remote import copied, located

NAMED = ("classification", "tokens")  # heads whose outputs have names
CLASSIFIER = "classifier"  # the module that such outputs come from


def finished_outputs(config: ConfigDict, task: Any, folder: Path) -> tuple[str, ...]:
    """Names of the outputs of the head that a run goes on with, in order; empty for a new head.

    They are those of an AdapterHub folder's `label2id`, or of config.json's `id2label`: where that
    has none, transformers' LABEL_0, LABEL_1, ...
    """
    head = task.head(("0", "1"), folder).get("head")
    if head not in NAMED or config.model.new_head:
        return ()
    if config.model.adapter and (names := labels_in(copied(located(config.model.adapter)))):
        return names
    hf_config = read_config(folder)
    heads = configure(hf_config, Options()).heads
    part = heads[head].modules.get(CLASSIFIER) if head in heads else None
    name = part.name if isinstance(part, Part) else part
    if not name or f"{name}.weight" not in open_weights(folder):
        return ()
    names = hf_config.get("id2label") or {}
    count = len(names) or hf_config.get("num_labels") or 2
    return tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(count))
