"""What a run is made of, by content: it goes on with the same data and models, wherever they lie.

`inputs.json` of a work folder has a fingerprint of the base model, of its tokenizer, of the labels'
names, of each encoded split (with the rows that held-out ones are scored by), and of the adapters
that are loaded. Of a stream, which is too large to be read for it, it has the first window.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ftjax.data.encode import Examples
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.files import write_json
from ftjax.formats.folder import fingerprint
from ftjax.formats.jsons import read_json
from ftjax.parallel.agreement import first, require_same
from ftjax.paths import Flat
from ftjax.remote import copied, located
from ftjax.setup.earlier_runs import best_params, is_run
from ftjax.setup.splits import Data
from ftjax.workdir.fingerprints import NAME, TOKENIZER, sha256, tokenizer_of
from ftjax.workdir.folder import begun

ENDS = (".safetensors", ".bin")  # of the files that hold an adapter's tensors


def inputs_of(config: ConfigDict, data: Data, folder: Path) -> dict[str, str]:
    """What a run is made of → a fingerprint of it.

    Args:
        config: of the run.
        data: its splits, as they were read.
        folder: of the base model.
    """
    inputs = {"base model": fingerprint(folder), TOKENIZER: tokenizer_of(folder)}
    if data.names:
        inputs["label names"] = f"{', '.join(data.names)}"[:200] + f", {sha256(data.names)}"
    for name, examples in data.splits.items():
        inputs[f"{name} split"] = split_of(name, examples, data.raw[name])
    if data.stream is not None:
        digest = sha256(data.stream[0].content())
        inputs["stream's first window"] = digest
    if config.model.adapter:
        inputs["model.adapter"] = _adapter(config.model.adapter, folder)
    for number, adapter in enumerate(config.method.get("adapters") or ()):
        inputs[f"method.adapters, number {number + 1}"] = _adapter(adapter, folder)
    return inputs


def split_of(name: str, examples: Examples, rows: Split) -> str:
    """A fingerprint of a split, with the rows that a held-out one is scored by."""
    scored = () if name == "train" else rows.content()
    return f"{len(examples):,} examples, {sha256([*examples.content(), *scored])}"


def require_same_inputs(workdir: Path, inputs: dict[str, str]) -> None:
    """Notes what a run is made of, or checks that it is what the run began with.

    Nothing is written where something differs. Until there is a checkpoint, anything may.

    Raises:
        UserError: what has changed, in all processes alike.
    """
    require_same("what the run is made of (its base model, data and adapters)", inputs.items())
    first(partial(_note, workdir, inputs))


def _note(workdir: Path, inputs: dict[str, str]) -> None:
    if changed := _changed(workdir, inputs):
        raise UserError(
            f"{workdir} holds a run that began with something else ({'; '.join(changed)}); put "
            "back what it began with, or use another --workdir"
        )
    write_json(workdir / NAME, inputs)


def _changed(workdir: Path, inputs: dict[str, str]) -> list[str]:
    """What differs from what a work folder has noted, in words."""
    file = workdir / NAME
    if not file.exists() or not begun(workdir):
        return []
    try:
        saved = read_json(file)
    except UserError as error:
        return [f"{error}; once it is removed, what is there now counts"]
    return [
        f"{name}: {saved.get(name, 'none')} there, {inputs.get(name, 'none')} now"
        for name in sorted({*saved, *inputs})
        if saved.get(name) != inputs.get(name) and (name != TOKENIZER or name in saved)
    ]


def _adapter(path: str, base: Path) -> str:
    """A fingerprint of the tensors of an adapter's folder, or of a work folder's best step."""
    folder = copied(located(path))
    if is_run(folder):
        return sha256(_flat(best_params(folder, base)[0]))
    files = sorted(file for file in folder.iterdir() if file.name.endswith(ENDS))
    return sha256([part for file in files for part in (file.name, file.read_bytes())])


def _flat(params: Flat) -> Iterator[Any]:
    for path in sorted(params):
        yield path
        yield np.asarray(params[path])
