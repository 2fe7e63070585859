"""Two trainers on one work folder, of which one lives, is killed, or is on another host."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest

from ftjax.errors import UserError
from ftjax.evaluation import preparation_models
from ftjax.files import write_text
from ftjax.setup.new_model import make_model
from ftjax.workdir.lock import NAME, Holder, Lock, started
from ftjax.workdir.records import read_rows
from tests.conftest import environment, ftjax
from tests.forked import Forked
from tests.parallel.processes import ended, start
from tests.setup.test_new_model import CASES, asked

OVERRIDES = [
    "--config.train.steps=24",
    "--config.train.eval_every=12",
    "--config.train.log_every=1",
]
SOON = {"beat": 0.05, "stale": 0.5}


def command(config_file, workdir):
    return ["train", "--config", f"{config_file}:lora", "--workdir", workdir, *OVERRIDES]


def begun(config_file, workdir):
    """A run that is about to train: it has logged a step."""
    process = Forked(command(config_file, workdir), environment(), together=True)
    while not read_rows(workdir / "metrics.jsonl"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGSTOP)
    return process


def test_a_second_trainer_is_refused_and_one_after_a_kill_goes_on(config_file, tmp_path):
    workdir = tmp_path / "run"
    first = begun(config_file, workdir)
    held = json.loads((workdir / NAME).read_text())
    before = (workdir / "metrics.jsonl").read_bytes()
    error = ftjax(*command(config_file, workdir), expect=2).stderr
    assert f"is being trained in by process {first.pid} on {held['host']}" in error
    assert (workdir / "metrics.jsonl").read_bytes() == before
    os.kill(first.pid, signal.SIGCONT)
    first.communicate(timeout=300)
    assert first.returncode == 0 and not (workdir / NAME).exists()
    rows = read_rows(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [*range(1, 25)]
    # Of one that is killed nothing is left but its lock
    killed = tmp_path / "killed"
    second = begun(config_file, killed)
    second.kill()
    assert second.wait() == -signal.SIGKILL and (killed / NAME).exists()
    ftjax(*command(config_file, killed))
    losses = [
        [row.get("loss") for row in read_rows(f / "metrics.jsonl")] for f in (workdir, killed)
    ]
    assert losses[0] == losses[1] and not (killed / NAME).exists()


def test_nothing_is_left_where_a_run_does_not_start(config_file, tmp_path):
    absent = f"--config.data.path={tmp_path / 'absent'}"
    ftjax(*command(config_file, tmp_path / "run"), absent, expect=2)
    assert not (tmp_path / "run").exists()


def test_all_processes_of_a_run_are_refused_alike(config_file, tmp_path):
    write_text(tmp_path / "run" / NAME, Holder.this().text())
    for out in ended(start(command(config_file, tmp_path / "run"), 2, devices=2), {2}):
        assert f"trained in by process {os.getpid()}" in out, out
    assert [path.name for path in (tmp_path / "run").iterdir()] == [NAME]


def elsewhere(**changes):
    return replace(Holder.this(), host="other", machine="other", **changes)


def test_of_many_at_once_one_holds(tmp_path):
    """Also where they all find the lock of one that died."""
    child = subprocess.Popen(["true"])
    child.wait()
    for turn in range(20):
        together = threading.Barrier(8, timeout=30)
        if turn % 2:
            write_text(tmp_path / NAME, replace(Holder.this(), pid=child.pid, token="x").text())

        def one(_, together=together):
            together.wait()
            try:
                with Lock(tmp_path, **SOON):
                    together.wait()
                    return True
            except UserError:
                together.wait()
                return False

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(one, range(8))) == 1
        assert not any(tmp_path.iterdir())


OTHERS = {  # what its lock says, and how it is called
    "on another host": (elsewhere, "process .* on other, which took it at"),
    "whose start is not told": (lambda: replace(Holder.this(), started=""), "process .* which"),
    "of another version": (lambda: elsewhere(), "another process"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_one_that_cannot_be_asked_for_is_known_by_its_signs_of_life(tmp_path, other):
    (make_other, called), ended = OTHERS[other], threading.Event()
    holder = make_other()

    def text(beats=0):
        said = replace(holder, beats=beats).text()
        return said if called != "another process" else said.replace('"host"', '"node"')

    def live():
        beats = 0
        while not ended.wait(0.05):
            beats += 1
            write_text(tmp_path / NAME, text(beats))

    write_text(tmp_path / NAME, text())
    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(UserError, match=f"is being trained in by {called}"):
        Lock(tmp_path, **SOON).__enter__()
    ended.set()
    thread.join()
    with Lock(tmp_path, **SOON) as lock:  # it has died meanwhile
        lock.check()
        before = beats_of(tmp_path)
        time.sleep(0.3)
        assert beats_of(tmp_path) > before
    assert not (tmp_path / NAME).exists()


def beats_of(folder):
    return Holder.read((folder / NAME).read_text()).beats


@contextmanager
def full_disk():
    """Files can be made, and nothing written to them."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_left_as_it_was(tmp_path):
    """Nothing is there that the next run would wait for; a run that holds it holds it on."""
    with full_disk(), pytest.raises(OSError, match="run/lock.json"):
        Lock(tmp_path / "run").__enter__()
    assert not any(tmp_path.iterdir())
    with Lock(tmp_path, **SOON) as lock:
        with full_disk():
            time.sleep(0.3)
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
        lock.check()
        before = beats_of(tmp_path)
        time.sleep(0.3)
        assert beats_of(tmp_path) > before


@pytest.mark.parametrize("left", [b"", b'{"host": "a', b"\xff\xfe\x00"])
def test_what_a_kill_left_of_a_lock_gives_way(tmp_path, left):
    """Of one that was being written, or being taken over."""
    (tmp_path / NAME).write_bytes(left)
    text = left.decode(errors="replace")
    guard = hashlib.sha256(text.encode()).hexdigest()[:16]
    (tmp_path / f"{NAME}.{guard}").write_text(elsewhere().text())
    with Lock(tmp_path, **SOON) as lock:
        lock.check()


def test_one_that_was_taken_over_says_so_and_leaves_the_other_alone(tmp_path):
    text = elsewhere().text()
    with Lock(tmp_path, **SOON) as lock:
        write_text(tmp_path / NAME, text)
        with pytest.raises(UserError, match="was taken over while this process was suspended"):
            lock.check()
    assert (tmp_path / NAME).read_text() == text


def test_a_folder_that_is_removed_meanwhile_changes_no_result(tmp_path):
    with Lock(tmp_path / "run", **SOON):
        shutil.rmtree(tmp_path / "run")


def test_numbers_of_processes_are_used_again(tmp_path):
    """This one's number with another start is a process that has died."""
    assert started(os.getpid()) and started(1) != started(os.getpid())
    write_text(tmp_path / NAME, replace(Holder.this(), started="1").text())
    with Lock(tmp_path, **SOON):
        pass


def test_several_runs_make_one_model_at_once(tmp_path):
    (model_type, kind), (task, _, sizes) = next(iter(CASES.items()))
    new = {"model_type": model_type, "tokenizer": kind, **sizes}
    config = asked(tmp_path / "model", task, **new)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(partial(make_model, models=preparation_models), [config] * 3))
    assert {path.name for path in tmp_path.iterdir()} == {"model", f"{task}.jsonl"}
    assert (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("moment", ["start", "join"])
def test_a_process_that_was_interrupted_as_it_took_or_left_a_folder_can_train_there(
    moment, tmp_path, monkeypatch
):
    """As a notebook, in which Ctrl-C ends a cell and not the process."""

    def interrupted(*_):
        raise KeyboardInterrupt

    lock = Lock(tmp_path / "run", **SOON)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lock._thread, moment, interrupted)
        with lock:
            pass
    assert (tmp_path / "run" / NAME).exists()
    with Lock(tmp_path / "run") as held:
        held.check()
        with pytest.raises(UserError, match="is being trained in by"), Lock(tmp_path / "run"):
            pass
    assert not (tmp_path / "run").exists() or not [*(tmp_path / "run").iterdir()]
