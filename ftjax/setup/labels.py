"""What the outputs of a finished head are called, by the folder that it comes from."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ftjax.formats.adapterhub.folder import HEAD, labels_in
from ftjax.formats.export import LABELS
from ftjax.formats.folder import open_weights
from ftjax.formats.jsons import read_names
from ftjax.formats.sentence_transformers import modules
from ftjax.models import configure, read_config
from ftjax.models.layers import Options
from ftjax.names import Part
from ftjax.remote import copied, located
from ftjax.setup.earlier_runs import is_run
from ftjax.workdir.folder import read_labels, read_workdir

NAMED = ("classification", "tokens")  # heads whose outputs have names
CLASSIFIER = "classifier"  # the module that such outputs come from


def finished_outputs(config: ConfigDict, task: Any, folder: Path) -> tuple[str, ...]:
    """Names of the outputs of the head that a run goes on with, in order; empty for a new head.

    They are those that the adapter's folder names, or of config.json's `id2label`: where that has
    none, transformers' LABEL_0, LABEL_1, ...
    """
    options = task.head(("0", "1"), pooling_folder(config, folder))
    head = options.get("head")
    if head not in NAMED or config.model.new_head:
        return ()
    if config.model.adapter and (names := _of_adapter(config, task)):
        return names
    if options.get("pooling") == "mean":
        place = modules.classifier(folder)
        return modules.labels_of(folder, place) if place else ()
    hf_config = read_config(folder)
    heads = configure(hf_config, Options()).heads
    part = heads[head].modules.get(CLASSIFIER) if head in heads else None
    name = part.name if isinstance(part, Part) else part
    if not name or f"{name}.weight" not in open_weights(folder):
        return ()
    names = hf_config.get("id2label") or {}
    count = len(names) or hf_config.get("num_labels") or 2
    return tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(count))


def _of_adapter(config: ConfigDict, task: Any) -> tuple[str, ...]:
    """As an adapter's folder names them: of AdapterHub, as we write it, of a run; else empty."""
    folder = copied(located(config.model.adapter))
    if is_run(folder):
        same = read_workdir(folder).task.name == config.task.name
        return task.output_names(read_labels(folder)) if same else ()
    if (folder / HEAD[0]).exists():
        return labels_in(folder)
    if (folder / LABELS).exists():
        return read_names(folder / LABELS)
    place = modules.classifier(folder)
    return modules.labels_of(folder, place) if place else ()


def pooling_folder(config: ConfigDict, folder: Path) -> Path:
    """The folder that says how texts are pooled: the adapter's where it does, else the base's."""
    if config.model.adapter:
        adapter = copied(located(config.model.adapter))
        return adapter if (adapter / modules.POOLING).exists() else folder
    return folder
