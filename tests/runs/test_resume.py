"""A run that is killed and resumed ends as one that was not, to the bit."""

import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ftjax import methods
from ftjax.config import default_config
from ftjax.config.saved import from_json, to_json
from ftjax.errors import UserError
from ftjax.setup.earlier_runs import best_params
from ftjax.workdir.checkpoints import Checkpoints
from ftjax.workdir.folder import refuse_differences
from ftjax.workdir.records import read_rows
from ftjax.workdir.restore import Saved
from tests.conftest import environment, ftjax, here, make_rows, write_jsonl, write_tiny
from tests.forked import Forked

STEPS = 24
OVERRIDES = [
    "--config.data.batching=pack",
    "--config.data.buckets=2",  # programs of two lengths
    f"--config.train.steps={STEPS}",
    "--config.train.eval_every=8",
    "--config.train.checkpoint_every=3",
    "--config.train.log_every=1",
    "--config.train.keep=2",
    "--config.train.average=0.9",
]


def start(config_file, workdir, *overrides):
    command = ["train", "--config", config_file, "--workdir", workdir, *OVERRIDES, *overrides]
    return Forked(command, environment(), together=True)


def stop_at(process, workdir, step, sent, wait=0.0):
    """Sends a signal `wait` seconds after the run has logged `step`."""
    deadline = time.time() + 600
    while time.time() < deadline and process.poll() is None:
        if any(row["step"] >= step for row in read_rows(workdir / "metrics.jsonl")):
            time.sleep(wait)
            process.send_signal(sent)
            break
        time.sleep(0.005)
    return process.communicate(timeout=600)[0]


def final(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.latest()
    standard = ocp.args.StandardRestore()
    items = {"state": standard, "params": standard}
    found = checkpoints._restore(step, **items)
    checkpoints.close()
    paths = jax.tree_util.tree_flatten_with_path(found)[0]
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths}


@pytest.fixture(scope="module")
def config_file(config_file):
    """By LoRA, whose few leaves are saved quickly; tests/parallel/test_hosts.py has all leaves."""
    return f"{config_file}:lora"


@pytest.fixture(scope="module")
def uninterrupted(config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    ftjax("train", "--config", config_file, "--workdir", workdir, *OVERRIDES)
    return workdir


def same(a, b):
    step_a, state_a = final(a)
    step_b, state_b = final(b)
    assert step_a == step_b == STEPS and set(state_a) == set(state_b)
    for path, leaf in state_a.items():
        np.testing.assert_array_equal(state_b[path], leaf, err_msg=path)
    rows_a, rows_b = (
        [
            {k: v for k, v in row.items() if not k.endswith(("per_second", "input_wait"))}
            for row in read_rows(folder / "metrics.jsonl")
        ]
        for folder in (a, b)
    )
    assert rows_a == rows_b
    results = [json.loads((folder / "result.json").read_text()) for folder in (a, b)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["best_step"] == results[1]["best_step"]


def test_killed_many_times(config_file, tmp_path, request):
    """At random moments, also in the middle of a save, on a mixed stream with a bad row.

    Twenty times by `--all`.
    """
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"part{number}")
        write_jsonl(paths[-1] / "train.jsonl", make_rows(70 + 30 * number, number))
        write_jsonl(paths[-1] / "validation.jsonl", make_rows(20, 10 + number))
    with (paths[1] / "train.jsonl").open("a") as file:
        file.write('{"text": "cut\n')
    parts = [{"path": str(path), "weight": 2 - i} for i, path in enumerate(paths)]
    stream = (
        f"--config.data.mixture={parts!r}",
        "--config.data.prepare=()",
        "--config.data.window=64",
        "--config.data.on_error=skip",
        "--config.train.accumulation=2",
        "--config.train.checkpoint_every=1",
    )
    whole, workdir = tmp_path / "whole", tmp_path / "killed"
    ftjax("train", "--config", config_file, "--workdir", whole, *OVERRIDES, *stream)
    assert json.loads((whole / "result.json").read_text())["rows_skipped"] == 1
    random = np.random.default_rng(time.time_ns())
    kills = 20 if request.config.getoption("--all") else 4
    for number in range(kills):
        rows = read_rows(workdir / "metrics.jsonl")
        done = rows[-1]["step"] if rows else 0
        process = start(config_file, workdir, *stream)
        wait, step = random.uniform(0, 0.05), done + int(random.integers(1, 2 * STEPS // kills))
        print(f"kill {number}: step {step} and {wait:.3f} s")
        stop_at(process, workdir, min(step, STEPS - 1), signal.SIGKILL, wait)
        assert process.returncode == -signal.SIGKILL
    said = ftjax("train", "--config", config_file, "--workdir", workdir, *OVERRIDES, *stream)
    assert "resumed at step" in said.stdout
    same(whole, workdir)


def test_a_signal_saves_and_ends_cleanly(uninterrupted, config_file, tmp_path):
    """One, and the other of the run that goes on; a third goes on to its end."""
    workdir = tmp_path / "stopped"
    for sent, code, step in ((signal.SIGTERM, 143, 3), (signal.SIGINT, 130, 15)):
        process = start(config_file, workdir)
        out = stop_at(process, workdir, step, sent)
        assert process.returncode == code and f"stopped by {sent.name}" in out, out
        rows = read_rows(workdir / "metrics.jsonl")
        checkpoints = Checkpoints(workdir / "checkpoints")
        assert checkpoints.latest() == rows[-1]["step"]  # nothing done is lost
        checkpoints.close()
        assert not (workdir / "result.json").exists()
    ftjax("train", "--config", config_file, "--workdir", workdir, *OVERRIDES)
    same(uninterrupted, workdir)


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_saved_configuration_is_its_own(method):
    config = default_config(method)
    refuse_differences("a folder", from_json(to_json(config)), config)
    older = json.loads(to_json(config))  # of before there were all of its keys
    for section in (older["method"], older["task"], older["method"].get("over", {})):
        for key in set(section) - {"name", "over"}:
            del section[key]
    refuse_differences("a folder", from_json(json.dumps(older)), config)


def test_a_checkpoint_that_cannot_be_read_is_set_aside(uninterrupted, config_file, tmp_path):
    """The newest one's largest file is cut short, as by a disk that failed."""
    workdir = tmp_path / "spoilt"
    shutil.copytree(uninterrupted, workdir)
    (workdir / "result.json").unlink()
    files = [path for path in (workdir / "checkpoints" / f"{STEPS}").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    said = ftjax("train", "--config", config_file, "--workdir", workdir, *OVERRIDES)
    assert "resumed at step" in said.stdout
    assert f"checkpoints/{STEPS} cannot be read" in said.stdout + said.stderr
    assert (workdir / "checkpoints" / f"{STEPS}.unreadable").is_dir()
    same(uninterrupted, workdir)


def test_where_none_can_be_read_nothing_is_begun_anew(uninterrupted, config_file, tmp_path):
    workdir = tmp_path / "spoilt"
    shutil.copytree(uninterrupted, workdir)
    (workdir / "result.json").unlink()
    folder = workdir / "checkpoints"
    for file in folder.glob("*/meta/metadata"):
        file.write_bytes(file.read_bytes()[:50])
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    command = ["train", "--config", config_file, "--workdir", workdir, *OVERRIDES]
    said = ftjax(*command, expect=2).stderr
    assert "no checkpoint can be read" in said and f"move {folder} away" in said
    assert all(f"{folder / str(step)} cannot be read" in said for step in (STEPS - 3, STEPS))
    after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert {p: after.get(p) for p in before if "checkpoints" in str(p)} == {
        p: content for p, content in before.items() if "checkpoints" in str(p)
    }


def test_where_the_best_is_damaged_the_best_of_the_others_is_tested(config_file, tmp_path):
    """At a rate by which nothing moves: the first of equal ones is the best."""
    workdir = tmp_path / "run"
    worse = [f"--config.train.{key}" for key in ("best_metric=loss", "keep=3", "eval_every=3")]
    worse += ["--config.train.steps=12", "--config.optimizer.learning_rate=1e-12"]
    command = ["train", "--config", config_file, "--workdir", workdir, *worse]
    ftjax(*command)
    result, folder = json.loads((workdir / "result.json").read_text()), workdir / "checkpoints"
    rows = read_rows(workdir / "metrics.jsonl")
    losses = {row["step"]: row["validation/loss"] for row in rows if "validation/loss" in row}
    assert result["best_step"] == 3 and len({*losses.values()}) == 1
    (folder / "3" / "params" / "manifest.ocdbt").write_bytes(b"")
    (workdir / "result.json").unlink()
    with pytest.raises(UserError, match="checkpoints/3 cannot be read .* another, of 3, 6, 9, 12"):
        here("evaluate", "--workdir", workdir)
    said = ftjax(*command).stdout
    assert "3.unreadable\nof those left, the best is of step 6" in said
    again = json.loads((workdir / "result.json").read_text())
    assert again["best_step"] == 6 and "cannot be read" in again["notes"][0]
    assert again["metrics"]["validation"]["loss"] == pytest.approx(losses[6], rel=1e-6)
    assert {path.name for path in folder.iterdir()} == {"3.unreadable", "6", "9", "12"}
    here("evaluate", "--workdir", workdir)  # of the same step
    scored = json.loads((workdir / "evaluate_test.json").read_text())
    assert scored["step"] == 6
    assert scored["loss"] == pytest.approx(again["metrics"]["test"]["loss"], rel=1e-5)
    assert "is finished already" in ftjax(*command).stdout


def test_readers_leave_a_run_whole(shallow, config_file, tmp_path):
    """While it saves after every step and deletes what is old."""
    workdir, base = tmp_path / "read", shallow
    often = ("--config.train.checkpoint_every=1", "--config.train.steps=16")
    process, count = start(config_file, workdir, *often), 0
    while process.poll() is None:
        if Saved(workdir / "checkpoints").steps():
            params, step = best_params(workdir, base)
            count += 1
    out = process.communicate(timeout=10)[0]
    assert process.returncode == 0, out
    assert count > 1 and len(params) == 10 and step > 0


def test_a_changed_base_method_or_rank_is_refused(uninterrupted, config_file, tmp_path):
    workdir = tmp_path / "lora"
    base = write_tiny(tmp_path / "base")
    short = ["--config.train.steps=2", "--config.train.eval_every=2"]
    common = ["train", "--config", config_file, "--workdir", workdir, *short]
    model = [f"--config.model.path={base}"]
    lora = ["--config.method.name=lora", *model]
    ftjax(*common, *lora)
    os.remove(workdir / "result.json")
    for changes, message in {
        ("--config.method.name=houlsby", *model): "method.name: 'lora' there, 'houlsby' now",
        (*lora, "--config.method.rank=4"): "method.rank: 8 there, 4 now",
        (*lora, "--config.method.alpha=4"): "method.alpha: 8.0 there, 4.0 now",
    }.items():
        assert message in ftjax(*common, *changes, expect=2).stderr
    write_tiny(base, seed=5)  # other weights under the same name
    assert "(base model: " in ftjax(*common, *lora, expect=2).stderr
    split = ["--split", "validation"]
    assert "another base" in ftjax("evaluate", "--workdir", workdir, *split, expect=2).stderr
    write_tiny(base)
    ftjax(*common, *lora)
