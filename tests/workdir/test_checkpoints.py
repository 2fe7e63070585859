"""What is read of checkpoints: damage told from other failures, and nothing there is changed."""

import errno
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from gcsfs.retry import HttpError

from ftjax.errors import UserError
from ftjax.tasks.base import HIGHER
from ftjax.training.progress import Best, Progress, Totals
from ftjax.training.step import init_state, state_shapes
from ftjax.workdir.checkpoints import Checkpoints
from ftjax.workdir.restore import Damaged, Saved, Unreadable
from ftjax.workdir.resuming import best, newest
from tests.covering import covering, product

META = {"config": "a run", "progress": {"best_step": 0}}


def state_of(mesh, size=1000):
    """Of numbers that do not compress, lest they have no file of their own."""
    random = np.random.default_rng(0)
    params = {"a/kernel": random.normal(size=size).astype(np.float32), "b/bias": np.ones(30)}
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = init_state(jax.device_put(params, place), optax.adam(0.1), 0, mesh)
    moved = jax.tree.map(lambda x: x + random.normal(size=x.shape).astype(x.dtype), state.opt_state)
    return state.replace(opt_state=moved)


def shapes_of(state, mesh):
    return state_shapes(state.params, optax.adam(0.1), mesh)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_device):
    """Checkpoints of two steps."""
    folder, state = tmp_path_factory.mktemp("saved"), state_of(one_device)
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2):
        checkpoints.save(state.replace(step=jnp.asarray(step)), META, 0)
    checkpoints.wait()
    checkpoints.close()
    return folder


def largest(folder, part):
    return max((folder / "2" / part).rglob("ocdbt.process_0/d/*"), key=lambda x: x.stat().st_size)


def turned(written):
    """One bit of the middle, which is among the numbers of the files that hold them."""
    middle = len(written) // 2
    return written[:middle] + bytes([written[middle] ^ 16]) + written[middle + 1 :]


FILES = {
    "words": lambda folder: folder / "2" / "meta" / "metadata",
    "tree": lambda folder: folder / "2" / "state" / "_METADATA",
    "index": lambda folder: folder / "2" / "params" / "manifest.ocdbt",
    "moments": lambda folder: largest(folder, "state"),
    "params": lambda folder: largest(folder, "params"),
}
DAMAGES = {
    "lost": lambda file: file.unlink(),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "empty": lambda file: file.write_bytes(b""),
    "turned": lambda file: file.write_bytes(turned(file.read_bytes())),
}


CASES = [(file, damage) for file in FILES for damage in DAMAGES]
MADE_UP = [("tree", "lost"), ("tree", "turned")]  # for by what else is there


@pytest.mark.parametrize(("file", "damage"), product(CASES, covering(CASES, MADE_UP)))
def test_damage_sets_aside(whole, tmp_path, one_device, file, damage):
    folder, state = tmp_path / "checkpoints", state_of(one_device)
    shutil.copytree(whole, folder)
    DAMAGES[damage](FILES[file](folder))
    checkpoints = Checkpoints(folder)

    def read(step):
        state_again = checkpoints.restore(step, shapes_of(state, one_device))
        return state_again, checkpoints.meta(step), step

    if (file, damage) in MADE_UP:
        assert newest(checkpoints, read)[0][2] == 2
        return
    (found, meta, step), notes = newest(checkpoints, read)
    assert (step, meta, int(found.step)) == (1, META, 1)
    jax.tree.map(np.testing.assert_array_equal, found.params, state.params)
    assert len(notes) == 1 and "2 cannot be read" in notes[0]
    assert {path.name for path in folder.iterdir()} == {"1", "2.unreadable"}
    checkpoints.close()


@pytest.mark.parametrize("damage", [(2,), (2, 4), (1, 2, 3, 4)])
def test_where_the_best_is_damaged_it_is_the_best_of_the_others(tmp_path, one_device, damage):
    """Scored anew, since what each scored is not kept."""
    folder, state = tmp_path / "checkpoints", state_of(one_device)
    checkpoints = Checkpoints(folder, keep=4)
    for step in (1, 2, 3, 4):
        params = jax.tree.map(lambda x, step=step: x * step, state.params)
        checkpoints.save(state.replace(step=jnp.asarray(step), params=params), META, 0)
    checkpoints.wait()
    for step in damage:
        (folder / str(step) / "params" / "manifest.ocdbt").write_bytes(b"")
    before = {path.name for path in folder.iterdir()}
    noted = Best(9.0, 2, metrics={"accuracy": 9.0})

    def judge(params, step, others):
        np.testing.assert_array_equal(params["b/bias"], np.full(30, step))
        scores = {1: 1.0, 3: 5.0, 4: 7.0}
        others.judge({"accuracy": scores[step]}, "accuracy", HIGHER, step)

    like = shapes_of(state, one_device).params
    if len(damage) == 4:
        with pytest.raises(UserError, match="2 cannot be read .* nor is there another"):
            best(checkpoints, noted, like, judge)
        assert {path.name for path in folder.iterdir()} == before and noted.step == 2
    else:
        params, notes = best(checkpoints, noted, like, judge)
        chosen = 4 if damage == (2,) else 3
        np.testing.assert_array_equal(params["b/bias"], np.full(30, chosen))
        assert (noted.step, noted.score) == (chosen, {4: 7.0, 3: 5.0}[chosen])
        assert {path.name for path in folder.iterdir()} == {"1", "2.unreadable", "3", "4"}
        assert "2 cannot be read" in notes[0] and f"best is of step {chosen}" in notes[1]
    checkpoints.close()


def test_progress_is_saved_in_one_mapping():
    """As checkpoints of earlier versions have it, of which some lack what was counted later."""
    progress = Progress(Best(0.5, 4, 1, {"accuracy": 0.5}), Totals(9.0, tokens=7), skipped=2)
    progress.losses += [1.0, 0.5]
    saved = json.loads(json.dumps(progress.saved()))
    assert (saved["best"], saved["best_step"], saved["validation"]) == (0.5, 4, {"accuracy": 0.5})
    assert (saved["seconds"], saved["tokens"], saved["skipped"]) == (9.0, 7, 2)
    assert Progress.read(saved) == progress
    assert Progress.read({"best_step": 3}) == Progress(Best(step=3))


def test_a_save_for_which_there_is_no_room_loses_none_before_it(tmp_path, monkeypatch, one_device):
    """Which may still be written when the next is refused."""
    folder, state = tmp_path / "checkpoints", state_of(one_device, 3_000_000)
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(state, META, 0)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(UserError, match="step 1 could not be written .* step 0 is kept"):
        checkpoints.save(state.replace(step=jnp.asarray(1)), META, 0)
    assert {path.name for path in folder.iterdir()} == {"0"}
    checkpoints.close()


OTHERS = {
    "memory of the host": MemoryError(),
    "memory of a device": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory on TPU"),
    "permission": PermissionError(errno.EACCES, "Permission denied"),
    "network": ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    "file server": OSError(errno.ESTALE, "Stale file handle"),
    "object store": ValueError("UNAVAILABLE: Error reading gs://bucket/run"),
    "object store's library": HttpError({"code": 401, "message": "Invalid"}),
    "our own": AssertionError("a fault of the program"),
}


RAISED = [(name, wrapped) for name in OTHERS for wrapped in (False, True)]


@pytest.mark.parametrize(("name", "wrapped"), product(RAISED, covering(RAISED)))
def test_nothing_else_does(whole, tmp_path, monkeypatch, name, wrapped):
    """What a machine fails in is raised where files are read, at times wrapped as by Orbax."""
    folder, error = tmp_path / "checkpoints", OTHERS[name]
    shutil.copytree(whole, folder)
    checkpoints = Checkpoints(folder)

    def fails(*_, **__):
        if wrapped:
            raise Exception("Encountered error while reading array index") from error
        raise error

    monkeypatch.setattr(checkpoints._reader, "restore", fails)
    expected = Exception if name == "our own" else Unreadable
    with pytest.raises(expected) as raised:
        newest(checkpoints, checkpoints.meta)
    assert not isinstance(raised.value, Damaged)
    assert {path.name for path in folder.iterdir()} == {"1", "2"}
    checkpoints.close()


def test_a_reader_leaves_a_save_in_progress(tmp_path, one_device):
    folder, state = tmp_path / "checkpoints", state_of(one_device, 5_000_000)
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(state, META, 0)
    checkpoints.wait()
    checkpoints.save(state.replace(step=jnp.asarray(1)), META, 0)
    while not (partial := [path for path in folder.iterdir() if "tmp" in path.name]):
        assert not (folder / "1").exists(), "saved before it was seen: make the state larger"
    saved = Saved(folder)
    assert saved.latest() == 0 and saved.meta(0) == META
    saved.close()
    assert partial[0].exists() or (folder / "1").exists()
    checkpoints.wait()
    assert checkpoints.latest() == 1
    checkpoints.close()


def test_a_reader_makes_no_folder(tmp_path):
    saved = Saved(tmp_path / "checkpoints")
    assert saved.latest() is None
    saved.close()
    assert list(tmp_path.iterdir()) == []


def test_only_orbax_is_not_heard(caplog):
    """What others log by absl and asyncio is as it was before."""
    for name in ("absl", "asyncio"):
        assert logging.getLogger(name).isEnabledFor(logging.ERROR)
        logging.getLogger(name).error("of %s", name)
        for file in (ocp.__file__, __file__):
            exec(
                compile(f"import logging; logging.getLogger({name!r}).error('in it')", file, "exec")
            )
            try:
                exec(compile("1 / 0", file, "exec"))
            except ZeroDivisionError as error:
                logging.getLogger(name).error("never retrieved", exc_info=error)
    said = [(record.name, record.message) for record in caplog.records]
    heard = ("of {}", "in it", "never retrieved")
    assert said == [(name, text.format(name)) for name in ("absl", "asyncio") for text in heard]
