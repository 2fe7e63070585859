"""A work folder: of which configuration it is, whether anything was trained there, its labels."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ftjax.config import flat_keys
from ftjax.config.saved import from_json, to_json
from ftjax.errors import UserError, require
from ftjax.files import write_json, write_text
from ftjax.formats.jsons import read_json, read_names
from ftjax.registry import NotFound
from ftjax.remote import is_remote
from ftjax.workdir import lock
from ftjax.workdir.result import PENDING, read_result

# What may differ when a run is resumed: it changes speed and records, not results.
FREE = (
    "mesh.",
    "model.remat",
    "model.attention",
    "model.gather_head",
    "model.layout",
    "model.sparse_cores",
    "model.whole",
    "train.compiler",
    "train.log_every",
    "train.keep",
    "train.eval_batch_size",
    "train.skip_limit",
    "train.profile_steps",
    "train.dump_programs",
)
# How files are read, and where they lie: what they hold is compared, see `ftjax.setup.inputs`.
FREE += ("data.source", "data.encoding", "data.delimiter", "data.quoting")
PATHS = ("data.path", "data.mixture", "model.path", "model.adapter", "method.adapters")
START = "start"  # of a work folder: the model of `model.from_run`
ROWS = "rows"  # the rows that a program gave
OWN = (  # files of a work folder that are a run's
    r"(config|inputs|labels|layout|lock|data_report|result(_\d+)?|evaluate_.+)\.json"
    r"|(metrics|predictions_(validation|test))\.jsonl"
)
LENGTHS = ("train.epochs", "train.steps")  # which `--extend` may raise
MEND = 'its text is also in checkpoints/STEP/meta/metadata, under "config"'


def begun(workdir: Path) -> bool:
    """Whether anything was trained in a work folder: otherwise any run may have it."""
    steps = workdir / "checkpoints"
    trained = steps.exists() and any(
        path.name.partition(".")[0].isdigit() for path in steps.iterdir()
    )
    return trained or (workdir / "result.json").exists()


def require_other(output: Path, workdir: Path, source: Path) -> None:
    """Raises UserError where an output would take the place of what it is made of.

    Args:
        output: that is to be written.
        workdir: whose run's files stay.
        source: the file that is read.
    """
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"--output {output} is the file that is read: name another")
    place = output.resolve()
    if not is_remote(workdir) and place.parent == workdir.resolve():
        own = re.fullmatch(OWN, place.name)
        require(not own, f"--output {output} is a file of the run itself: name another")


def check_workdir(workdir: Path, config: ConfigDict, extend: bool = False) -> None:
    """Checks that a work folder is of this configuration, or that nothing was trained there.

    Args:
        workdir: the work folder.
        config: of the run.
        extend: whether the run may be longer than the folder says.

    Raises:
        UserError: the folder belongs to another configuration; the differences are named.
    """
    path = workdir / "config.json"
    # Listed before config.json is looked for: another host may be writing it, and files after it
    there = workdir.iterdir() if workdir.exists() else ()
    own = (lock.NAME, *(f".{name}." for name in (lock.NAME, START, path.name)))
    names = [file.name for file in there]
    others = [name for name in names if name not in (START, ROWS) and not name.startswith(own)]
    if path.exists():
        saved = read_workdir(workdir)
        if begun(workdir):
            refuse_differences(str(workdir), saved, config, extend)
    elif others:
        raise UserError(f"--workdir {workdir} holds other files and no config.json")


def open_workdir(workdir: Path, config: ConfigDict, extend: bool = False) -> None:
    """Makes a work folder, or checks that it is of this configuration: see `check_workdir`."""
    check_workdir(workdir, config, extend)
    path = workdir / "config.json"
    if not path.exists() or not begun(workdir):
        write_text(path, to_json(config))


def finished(workdir: Path, config: ConfigDict, extend: bool = False) -> dict[str, Any] | None:
    """The result of a run that is finished; None where something is left to do, or to compare.

    Args:
        workdir: the work folder, also one that is not there.
        config: of the run.
        extend: whether the run may be longer than the folder says.

    Raises:
        UserError: the folder belongs to another configuration; the differences are named.
    """
    if not (workdir / "result.json").exists():
        return None
    saved = read_workdir(workdir)
    refuse_differences(str(workdir), saved, config, extend)
    old, new = flat_keys(saved), flat_keys(config)
    if config.model.from_run:  # its model is in the work folder
        new["model.path"] = old["model.path"]
    changed = [key for key in (*LENGTHS, *PATHS) if _text(old.get(key)) != _text(new.get(key))]
    if changed and (workdir / "checkpoints").exists():
        return None
    require(not changed, f"{workdir} is finished; {changed} differ from its configuration")
    result = read_result(workdir)
    return None if result.get(PENDING) else result


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=dict)


def refuse_differences(
    where: str, saved: ConfigDict, config: ConfigDict, extend: bool = False
) -> None:
    """Raises UserError where two configurations differ in what changes results.

    Args:
        where: the folder of the first.
        saved: its configuration.
        config: the other.
        extend: whether the length of the run may differ.
    """
    old, new = flat_keys(saved), flat_keys(config)
    different = [
        key
        for key in sorted({*old, *new})
        if not key.startswith(FREE) and unplaced(key, old.get(key)) != unplaced(key, new.get(key))
    ]
    if extend:
        different = [key for key in different if key not in LENGTHS]
    if not different:
        return
    differences = [f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in different]
    mend = (
        "use another --workdir, which model.adapter or model.from_run can let begin with what "
        "this run trained, or the same configuration"
    )
    if set(different) <= set(LENGTHS):
        mend = f"--extend goes on from its last checkpoint to a later end; otherwise {mend}"
    raise UserError(
        f"{where} holds a run of another configuration ({'; '.join(differences)}); {mend}"
    )


def length_before(workdir: Path, meta: Mapping[str, Any], total: int) -> int:
    """The steps that a run was to have when a checkpoint of it was written.

    Args:
        workdir: of the run.
        meta: what was saved with the checkpoint.
        total: the steps that it is to have now.

    Raises:
        UserError: they were more.
    """
    before = meta.get("total", total)
    if total < before:
        raise UserError(
            f"{workdir} holds a run of {before:,} steps, and {total:,} are fewer: raise "
            "train.epochs or train.steps"
        )
    return before


def unplaced(key: str, value: Any) -> str:
    """A key's value as it is compared: without where something lies."""
    if key == "data.mixture":
        value = [{name: x for name, x in part.items() if name != "path"} for part in value or ()]
    elif key in PATHS:
        value = len(value) if isinstance(value, tuple | list) else bool(value)
    return _text(value)


def read_workdir(workdir: Path) -> ConfigDict:
    """The resolved configuration of a work folder.

    Raises:
        UserError: it is not a work folder, or its config.json is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"--workdir {workdir} has no config.json: no run was started there")
    try:
        saved = read_json(path)
        if not {"method", "task"} <= saved.keys():
            raise UserError("that of a model, not of a run")
        config = from_json(json.dumps(saved))
    except NotFound as error:
        what = f"{path} names what is not installed here, or is damaged: {error}"
        raise UserError(f"{what}; {MEND}") from error
    except UserError as error:
        what = str(error) if str(path) in str(error) else f"{path} is damaged, or {error}"
        raise UserError(f"{what}; {MEND}") from error
    if config.model.from_run:  # wherever the folder lies now
        config.model.path = str(workdir / START)
    return config


def write_labels(workdir: Path, names: tuple[str, ...]) -> None:
    write_json(workdir / "labels.json", list(names))


def read_labels(workdir: Path) -> tuple[str, ...]:
    path = workdir / "labels.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: the run has not started training")
    try:
        return read_names(path)
    except UserError as error:
        raise UserError(f"{error}; inputs.json beside it has the labels in order") from error
