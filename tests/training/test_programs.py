"""Programs are compiled ahead, and outputs leave the devices as they come."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.config import check, load_config
from ftjax.data import loading
from ftjax.data.encode import Examples, Ragged
from ftjax.data.planning import Layout
from ftjax.evaluation import forward
from ftjax.evaluation.forward import RUNNING, Forward
from ftjax.parallel.mesh import make_mesh
from ftjax.runs.train import train
from ftjax.training import programs
from ftjax.training.programs import Programs
from ftjax.training.step_programs import StepPrograms
from ftjax.workdir.restore import Saved


def lowered(size):
    return jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((size,), jnp.float32))


def test_programs_that_begin_together_are_compiled_side_by_side(monkeypatch):
    """Each is asked for when it is there; what fails says why, to who asks for it."""
    both, ended = threading.Barrier(2, timeout=60), []

    def then(program):
        both.wait()  # of two threads
        ended.append(program)

    monkeypatch.setattr(programs.os, "cpu_count", lambda: 2)
    programs._compilers.cache_clear()
    several = Programs()
    for size in (3, 4):
        several.begin(size, lambda size=size: lowered(size), then)
    np.testing.assert_array_equal(several(3)(np.zeros(3, np.float32)), np.ones(3))
    assert several(4) in ended and several.ready(4) and 5 not in several

    def fails():
        raise ValueError("no such shape")

    several.begin(5, fails)
    with pytest.raises(ValueError, match="no such shape"):
        several(5)
    held = threading.Event()
    for size in range(6, 10):
        several.begin(size, lambda size=size: lowered(size), lambda _: held.wait(60))
    closing = threading.Thread(target=several.close)
    closing.start()
    held.set()
    closing.join(60)
    assert not closing.is_alive()
    programs._compilers.cache_clear()


@pytest.mark.parametrize("kept", [True, False])
def test_others_are_waited_for_unless_programs_are_kept(kept, monkeypatch):
    """On processors that compile: a step beside the compiler says nothing of how fast it is."""
    monkeypatch.setattr(programs, "KEPT", 60.0 if kept else 0.0)
    monkeypatch.setattr(programs.os, "cpu_count", lambda: 2)
    programs._compilers.cache_clear()
    go, several = threading.Event(), Programs()
    several.begin(3, lambda: lowered(3))
    several.begin(4, lambda: lowered(4), lambda _: go.wait(60))
    if not kept:
        threading.Timer(0.5, go.set).start()
    several(3)
    assert several.ready(4) == (not kept)
    go.set()
    several.close()
    programs._compilers.cache_clear()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("devices", [1, 4])
def test_outputs_leave_the_devices_as_they_come(devices, monkeypatch, packed):
    """At most a few batches' are there at once, on each device those of its rows; and all come in
    the order of the examples."""
    count, width, rows = 160, 7, 8
    sizes = np.random.default_rng(0).integers(1, 17, count)
    offsets = np.cumsum([0, *sizes])
    data = Examples(Ragged(np.arange(offsets[-1], dtype=np.int32), offsets))
    layout = Layout((16,), rows=(rows,), places=4) if packed else Layout((8, 16))

    def apply(params, batch):
        first = batch["input_ids"][..., None] * jnp.ones(width)
        if not packed:
            return {"tokens": first, "first": first[:, 0]}
        return jnp.take_along_axis(first, batch["starts"][..., None], 1)

    there, place = [], forward.place_rows

    def watched(*given):
        alive = [array for array in jax.live_arrays() if array.shape[-1:] == (width,)]
        alive = [array for array in alive if len(array.devices()) == devices]
        there.append(len({array.addressable_data(0).unsafe_buffer_pointer() for array in alive}))
        assert all(len(array.addressable_data(0)) == rows // devices for array in alive)
        return place(*given)

    monkeypatch.setattr(forward, "place_rows", watched)
    mesh = make_mesh(devices=jax.devices()[:devices])
    found = Forward(mesh, rows, apply)({}, {}, data, layout)
    wanted = np.arange(offsets[-1])[:, None] * np.ones(width)
    if not packed:
        np.testing.assert_array_equal(found["tokens"], wanted)
        found = found["first"]
    np.testing.assert_array_equal(found, wanted[offsets[:-1]])
    each = 1 if packed else 2
    assert len(there) > 2 * RUNNING and max(there) <= each * (RUNNING + 1)


@pytest.mark.usefixtures("first_device")
def test_the_wait_for_a_plan_is_counted(config_file, tmp_path, monkeypatch):
    """As waiting for data, among the seconds of the run: also before the first step."""
    plan = loading.plan_epoch
    monkeypatch.setattr(loading, "plan_epoch", lambda *given: time.sleep(0.5) or plan(*given))
    overrides = ["--config.train.steps=1"]
    config = check(load_config(f"{config_file}:lora", overrides))
    train(config, tmp_path / "run")
    saved = Saved(tmp_path / "run" / "checkpoints")
    progress = saved.meta(1)["progress"]
    saved.close()
    assert 0.5 <= progress["waited"] <= progress["seconds"]


@pytest.mark.usefixtures("first_device")
def test_what_trains_next_is_compiled_while_what_is_before_trains(
    config_file, tiny, tmp_path, monkeypatch
):
    """And what trained before is let go of: of many draws all programs would be held."""
    phases, begin = [], StepPrograms.begin

    def noted(steps, *given):
        begin(steps, *given)
        phases.append(len({phase for _, phase in steps._programs._programs}))

    monkeypatch.setattr(StepPrograms, "begin", noted)
    overrides = ["--config.train.steps=6", "--config.train.batch_size=64"]
    overrides.append("--config.method.every=2")
    overrides.append(f"--config.model.path={tiny}")  # whose layers are more than are drawn
    train(check(load_config(f"{config_file}:lisa", overrides)), tmp_path / "run")
    assert phases == [2, 2, 1]  # of three draws
