"""What a run of full fine-tuning holds: its parameters and two moments, from start to end."""

import gc
import json
import sys
from contextlib import contextmanager

import jax

from ftjax.config import check, load_config
from ftjax.forecast.lowering import abstract_recipe, abstract_state, live
from ftjax.parallel.mesh import make_mesh
from ftjax.runs.train import train
from ftjax.setup.model import place_model
from ftjax.training.step import init_state

FILES = (
    "/session.py",
    "/loop.py",
    "/step.py",
    "/stepper.py",
    "/step_programs.py",
    "/restore.py",
    "/checkpoints.py",
    "/setup/model.py",
)
FEW = 0.2  # of the parameters: batches, metrics, one leaf on its way


def held():
    """Bytes of one device that live arrays take; several may be views of the same ones."""
    parts = [array.addressable_data(0) for array in jax.live_arrays() if spread(array)]
    return sum({part.unsafe_buffer_pointer(): part.nbytes for part in parts}.values())


def spread(array):
    """Whether an array is on all devices, and of numbers."""
    key = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
    return not key and len(array.devices()) > 1


@contextmanager
def watched():
    """The most that is held whenever a function of the training returns, by the function.

    Until a first save: on a CPU what a thread is still writing is held besides.
    """
    gc.collect()
    before, most = held(), {}

    def watch(frame, event, _):
        if not frame.f_code.co_filename.endswith(FILES):
            return
        if frame.f_code.co_name == "save":
            sys.setprofile(None)
        elif event == "return":
            most[frame.f_code.co_name] = max(held() - before, most.get(frame.f_code.co_name, 0))

    sys.setprofile(watch)
    try:
        yield most
    finally:
        sys.setprofile(None)


def config_of(config_file, method="full"):
    """Four steps, each device with all parameters."""
    changes = {"steps": 4, "eval_every": 2, "keep": 2, "log_every": 1}
    overrides = [f"--config.train.{key}={value}" for key, value in changes.items()]
    # So that no score changes, and the first evaluation is the best.
    overrides.append("--config.optimizer.learning_rate=1e-9")
    return check(load_config(f"{config_file}:{method}", overrides))


def parameters(config):
    tuned = place_model(config, ("negative", "positive")).tuned
    return sum(4 * leaf.size for leaf in tuned.shapes.values())


def test_three_times_the_parameters_and_no_more(config_file, tmp_path):
    """In a new run, in one that goes on, and in one that has only its best step to test."""
    config, workdir, most = config_of(config_file), tmp_path / "run", {}
    size, result = parameters(config), workdir / "result.json"
    with watched() as most["new"]:
        train(config, workdir)
    assert json.loads(result.read_text())["best_step"] == 2
    result.unlink()
    with watched() as most["ended"]:
        train(config, workdir)
    result.unlink()
    (workdir / "checkpoints" / "4").rename(tmp_path / "4")
    with watched() as most["resumed"]:
        train(config, workdir)
    for name, functions in most.items():
        print(name, {k: round(v / size, 2) for k, v in functions.items()})
        assert name == "ended" or "__call__" in functions  # of a step
        assert 3 * size <= max(functions.values()) <= (3 + FEW) * size, name


def test_what_is_said_of_the_start_is_held(config_file):
    """By `compile`, of one device of eight, over which parameters are spread."""
    config = config_of(config_file)
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
    recipe = abstract_recipe(config)
    run = place_model(config, ("negative", "positive"))
    phase = recipe.phase(0)
    state = init_state(run.trainable, recipe.optimizer(phase), 0, run.mesh, phase.partition)
    arrays = [leaf for leaf in jax.tree.leaves((state, run.frozen)) if spread(leaf)]
    wanted = sum(array.addressable_data(0).nbytes for array in arrays)
    assert live(*abstract_state(recipe, run.mesh)) == wanted


def test_what_thaws_later_is_held_at_resume(config_file):
    """Moments of the head at first, of all in the end, and the parameters always."""
    recipe = abstract_recipe(config_of(config_file, "gradual_unfreezing"))
    mesh = make_mesh()
    state, _ = abstract_state(recipe, mesh)
    size = {path: 4 * leaf.size for path, leaf in recipe.tuned.shapes.items()}
    top = sum(size[path] for path in size if path.startswith(("classifier", "pooler")))
    counts = 100  # bytes of the numbers of steps, at most
    first, last = (live(recipe.state_shapes(state.params, mesh, at)) for at in (0, recipe.total))
    assert 0 <= first - sum(size.values()) - 2 * top < counts
    assert 0 <= last - 3 * sum(size.values()) < 10 * counts
