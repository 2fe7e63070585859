"""Work folders that were hurt: each file is read as it was written, or named, or not needed."""

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax import tasks
from ftjax.config import check, load_config
from ftjax.errors import UserError
from ftjax.evaluation import preparation_models
from ftjax.setup.earlier_runs import best_params
from ftjax.setup.inputs import require_same_inputs
from ftjax.setup.model import place_model
from ftjax.setup.splits import read_data
from ftjax.training.recipe import Recipe
from ftjax.workdir.checksums import ODD, array_sums, differing, weighed
from ftjax.workdir.folder import check_workdir, finished, read_labels, read_workdir
from ftjax.workdir.records import read_metrics
from ftjax.workdir.restore import Saved, summed
from tests.conftest import ftjax

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("first_device"),
]
SETTINGS = ["train.steps=4", "train.eval_every=2", "train.log_every=1"]
LINES = (
    b"",
    b"null",
    b"[]",
    b"3",
    b'"x"',
    b"\xff\xfe{",
    b"[" * 100_000,
    b"1" * 5000,
    b'{"a": null}',
)


@pytest.fixture(scope="module")
def trained(config_file, tmp_path_factory):
    """A configuration, and the work folder of its finished run."""
    overrides = [f"--config.{setting}" for setting in SETTINGS]
    config = check(load_config(f"{config_file}:lora", overrides))
    workdir = tmp_path_factory.mktemp("damage") / "run"
    ftjax("train", "--config", f"{config_file}:lora", "--workdir", workdir, *overrides)
    return config, workdir


def mutants(written: bytes, chance: random.Random, flips: int) -> Iterator[bytes | None]:
    """Cut, and with bits turned."""
    yield written[: len(written) // 2]
    for _ in range(flips if written else 0):
        turned = bytearray(written)
        turned[chance.randrange(len(turned))] ^= 1 << chance.randrange(8)
        yield bytes(turned)


def odd_values(written: bytes) -> Iterator[bytes]:
    """JSON with the value of one key, at any depth, that is another's type or gone."""
    value = json.loads(written)

    def places(node):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, inner in list(items):
            yield node, key
            if isinstance(inner, dict | list):
                yield from places(inner)

    for node, key in places(value):
        before = node[key]
        for other in (None, [], {}, "\ud800", -7, True):
            node[key] = other
            yield json.dumps(value).encode()
        node[key] = before


def readers(config, workdir: Path) -> dict:
    inputs = {"base model": "another"}
    return {
        "config.json": (read_workdir, partial(check_workdir, config=config)),
        "labels.json": (read_labels,),
        "result.json": (partial(finished, config=config),),
        "inputs.json": (partial(require_same_inputs, inputs=inputs),),
        "metrics.jsonl": (lambda workdir: read_metrics(workdir / "metrics.jsonl"),),
    }


@pytest.mark.parametrize(
    "name", ["config.json", "labels.json", "result.json", "inputs.json", "metrics.jsonl"]
)
def test_texts(trained, name):
    config, workdir = trained
    file = workdir / name
    written, reads, tried = file.read_bytes(), readers(config, workdir)[name], 0
    cases = [*LINES, *mutants(written, random.Random(0), 60)]
    cases += [written + b"\n" + line + b"\n" for line in LINES] + [b"\xef\xbb\xbf" + written]
    if name != "metrics.jsonl":
        cases += odd_values(written)
    try:
        for case in cases[:: 1 if name != "result.json" else 3]:
            file.write_bytes(case)
            for read in reads:
                tried += 1
                try:
                    read(workdir)
                except UserError as error:
                    assert str(workdir) in str(error)
    finally:
        file.write_bytes(written)
    assert tried > 60


def test_rows_around_a_damaged_one_are_read(trained):
    _, workdir = trained
    file = workdir / "metrics.jsonl"
    rows, written = read_metrics(file), file.read_bytes()
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    for odd in (*LINES, b'{"step": "2"}', b'{"step": null}'):
        first, rest = written.split(b"\n", 1)
        file.write_bytes(first + b"\n" + odd + b"\n" + rest)
        assert read_metrics(file) == rows
    file.write_bytes(written)


def test_checkpoints(trained):
    """A bit that turned in the data is found too, on which storage has no check."""
    config, workdir = trained
    base, chance = Path(config.model.path), random.Random(0)
    wanted, step = best_params(workdir, base)
    data = read_data(config, tasks.create(config.task), base, preparation_models)
    run = place_model(config, data.names)
    recipe = Recipe(config, run.task.fitted(data.splits["train"], data.names), run.tuned, 4)
    like = recipe.state_shapes(run.trainable, run.mesh, step)
    folder, named = workdir / "checkpoints" / str(step), {"params": 0, "state": 0, "meta": 0}
    saved = Saved(workdir / "checkpoints")
    whole = saved.restore(step, like)

    def read(part: str) -> None:
        if part == "state":
            state = saved.restore(step, like)
            if paths := differing(saved.sums(step), summed(state)):
                raise UserError(f"{workdir}: {paths}")
            jax.tree.map(np.testing.assert_array_equal, state.opt_state, whole.opt_state)
        else:
            params, found = best_params(workdir, base)
            assert found == step
            jax.tree.map(np.testing.assert_array_equal, params, wanted)

    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        written, part = file.read_bytes(), file.relative_to(folder).parts[0]
        odd = (*LINES, b"{}") if part == "meta" else ()
        for case in (*mutants(written, chance, 2), *odd):
            file.write_bytes(case)
            try:
                read(part)
            except UserError as error:
                assert str(workdir) in str(error)
                named[part] += 1
        file.write_bytes(written)
    assert min(named.values()) > 2
    saved.close()


def test_sums_are_those_of_any_mesh():
    """By a formula in Python's integers; and each single bit that turns is told."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4) - 5
    words = values.reshape(-1).view(np.uint32).tolist()
    total = sum(word * ((place * ODD % 2**32) | 1) for place, word in enumerate(words)) % 2**32
    sums = array_sums({"a": values})
    assert sums == {"['a']": ("float32", total)}
    spread = jax.sharding.Mesh(np.array(jax.devices()[:4]), "x")
    sharded = jax.device_put(values, jax.NamedSharding(spread, jax.P(None, "x")))
    assert int(jax.jit(partial(weighed, jnp))(sharded)) == total
    for bit in range(12 * 32):
        turned = values.copy()
        turned.reshape(-1).view(np.uint32)[bit // 32] ^= np.uint32(1 << bit % 32)
        assert differing(sums, {"a": turned}) == ["['a']"]
    assert differing(sums, {"a": values.astype(np.float16)}) == []
