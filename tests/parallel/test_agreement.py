"""Two processes whose disks hold other things: one decision for both, or a message of both."""

import json
import shutil

import pytest

from ftjax import cache
from tests.conftest import ftjax, make_rows, write_jsonl
from tests.parallel import processes

STEPS = ["--config.train.steps=2", "--config.train.eval_every=2", "--config.mesh.data=2"]


def run(config_file, workdir, overrides, variables, expect=0):
    """The outputs of a run on two devices, in a process for each of `variables`."""
    command = ["train", "--config", config_file, "--workdir", workdir, *STEPS, *overrides]

    def told(count):
        each = zip(processes.named(count), variables, strict=True)
        return [others | {name: str(x) for name, x in own.items()} for others, own in each]

    return processes.ended(processes.start(command, len(variables), 2, told=told), {expect})


def test_what_a_model_said_before_is_the_first_host_s(config_file, tmp_path, monkeypatch):
    """The second host's disk has another answer, the first one's none."""
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "alone"))
    alone = ["train", "--config", config_file, *STEPS]
    judge = tmp_path / "judge"
    learnt = ["--config.train.steps=20", "--config.train.eval_every=20"]
    learnt += ["--config.optimizer.learning_rate=3e-3", "--config.data.buckets=2"]
    ftjax(*alone, "--workdir", judge, *learnt, devices=2)
    step = {"step": "filter_classifier", "workdir": str(judge), "labels": ["positive"]}
    prepare = [f"--config.data.prepare={[step]!r}"]
    ftjax(*alone, "--workdir", tmp_path / "one", *prepare, devices=2)
    shutil.copytree(tmp_path / "alone", tmp_path / "second")
    files = list((tmp_path / "second" / "prepared").glob("*.json"))
    assert files
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "second"))
    for name in [file.name for file in files]:
        said = json.loads(str(cache.read("prepared", name), "utf-8"))
        other = json.dumps([{"positive": 0.0, "negative": 1.0} for _ in said]).encode()
        assert cache.write("prepared", name, lambda file, other=other: file.write(other))
    caches = [{"FTJAX_CACHE": tmp_path / name} for name in ("first", "second")]
    run(config_file, tmp_path / "two", prepare, caches)
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two")]
    one, two = (result["metrics"]["validation"] for result in results)
    assert 0 < one["examples"] < 40  # some are dropped
    assert one["examples"] == two["examples"] and one["loss"] == pytest.approx(two["loss"], 1e-4)


def test_one_decision_or_one_refusal_for_both(tmp_path):
    calls = dict.fromkeys(range(2), "tests.parallel.differing:main")
    processes.ended(processes.start([tmp_path], 2, 2, calls))
    first, second = ((tmp_path / f"said_{n}").read_text("utf-8").splitlines() for n in range(2))
    other = " on process 1 is not that of process 0: all hosts must see the same files, and have "
    other += "the same versions of packages"
    folder = " is not the same folder on all hosts: it must be on a disk that they share, or in an "
    folder += "object store as gs://..."
    assert first == [
        "gave None",
        "gave None",
        f"the configuration{other}",
        f"--workdir {tmp_path / '0'}{folder}",
        "gave None",
        f"{tmp_path} is closed",
        "gave True",
        "another's",
        "the first's",
        "gave None",
        f"numbers{other}",
        "gave '0'",
    ]
    first[3], first[7] = f"--workdir {tmp_path / '1'}{folder}", "mine"
    assert second == first


def test_other_rows_on_another_host_are_refused_by_both(config_file, tmp_path):
    rows = make_rows(30, 0)
    for name, changed in (("a", rows), ("b", [*rows[:-1], {**rows[-1], "text": "good film"}])):
        write_jsonl(tmp_path / name / "data.jsonl", changed)
    homes = [{"HOME": tmp_path / name} for name in ("a", "b")]
    overrides = ["--config.data.path=~/data.jsonl"]
    for said in run(config_file, tmp_path / "work", overrides, homes, expect=2):
        assert "as it is prepared and encoded, on process 1 is not that of process 0" in said
    for name in ("a", "b"):  # a stream of the same, until its second window
        folder = tmp_path / name / "data"
        write_jsonl(folder / "validation.jsonl", rows)
        own = [*rows[:20], {**rows[20], "text": f"a {name} film"}, *rows[21:]]
        write_jsonl(folder / "train.jsonl", own)
    overrides = ["--config.data.path=~/data", "--config.data.streaming=True"]
    overrides.append("--config.data.prepare=()")
    overrides += ["--config.data.window=16", "--config.train.steps=4"]
    for said in run(config_file, tmp_path / "stream", overrides, homes, expect=2):
        assert "a window of the stream on process 1 is not that of process 0" in said
