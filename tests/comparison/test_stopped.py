"""A study and its runs stop together: by a signal to either, once the runs have saved."""

import os
import signal
import sys
import time
from threading import Thread

import pytest

from ftjax.comparison.study import Runs, compare
from ftjax.errors import Stopped, UserError

WAITS = """#!/bin/sh
while [ $# -gt 1 ]; do [ "$1" = --workdir ] && mkdir -p "$2" && cd "$2"; shift; done
save() { sleep 0.5; touch saved; exit 143; }
trap save TERM
[ -e stubborn ] && trap '' TERM
touch begun
for i in $(seq 600); do sleep 0.1 & wait $!; done
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """What stands where runs are started."""

    def write(text):
        file = tmp_path / "run.sh"
        file.write_text(text)
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))

    return write


@pytest.mark.parametrize(
    ("ends", "code"), [("exit 143", 143), ("exit 130", 130), ("kill $$", 143), ("exit 2", 2)]
)
def test_a_run_ends_its_study(config_file, tmp_path, run, ends, code):
    run(f"#!/bin/sh\n{ends}\n")
    with pytest.raises(UserError if code == 2 else Stopped) as error:
        Runs(str(config_file), tmp_path, {}).run("lora", 0)
    assert getattr(error.value, "code", 2) == code


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_of_bad_input_is_to_be_mended(config_file, tmp_path, run, jobs):
    run("#!/bin/sh\necho 'error: no such file' >&2\nexit 2\n")
    with pytest.raises(UserError) as error:
        Runs(str(config_file), tmp_path, {}, jobs).run("lora", 0)
    why = ", error: no such file" if jobs == 2 else ""  # else it is printed just before
    assert f"(exit code 2{why}); once that is mended, the same command" in str(error.value)


def stopped(config_file, workdir, jobs, signals):
    """The error that a study ends with, to which signals come once `jobs` runs have begun."""

    def send():
        for number in signals:
            while len([*workdir.glob("*/seed_0/begun")]) < jobs:
                time.sleep(0.01)
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    sender = Thread(target=send)
    sender.start()
    with pytest.raises(Stopped) as error:
        compare(config_file, ["full", "head", "lora"], workdir, jobs=jobs)
    sender.join()
    return error.value


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_study_ends_once_its_runs_have_saved(config_file, tmp_path, run, number, jobs):
    run(WAITS)
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    assert stopped(config_file, tmp_path / "study", jobs, [number]).code == 128 + number
    names = {path.parent.parent.name for path in tmp_path.glob("study/*/seed_0/saved")}
    assert names == {"full", "head"} if jobs == 2 else {"full"}
    assert len([*tmp_path.glob("study/*/seed_0/begun")]) == jobs  # no other is started
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("signals", [[2, 2], [15, 2, 2]])
def test_a_second_interrupt_ends_it_at_once(config_file, tmp_path, run, signals):
    run(WAITS)
    folder = tmp_path / "study" / "full" / "seed_0"
    folder.mkdir(parents=True)
    (folder / "stubborn").touch()
    assert stopped(config_file, tmp_path / "study", 1, signals).code == 128 + signals[0]
    assert not (folder / "saved").exists()
