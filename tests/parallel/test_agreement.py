"""Two processes whose disks hold other things: one decision for both, or a message of both."""

import json
import shutil

import pytest

from tests.conftest import make_rows, write_jsonl
from tests.parallel import processes

STEPS = ["--config.train.steps=2", "--config.train.eval_every=2", "--config.mesh.data=2"]


def run(config_file, workdir, overrides, variables, expect=0):
    """The outputs of a run on two devices, in a process for each of `variables`."""
    command = ["train", "--config", config_file, "--workdir", workdir, *STEPS, *overrides]

    def told(count):
        each = zip(processes.named(count), variables, strict=True)
        return [others | {name: str(x) for name, x in own.items()} for others, own in each]

    return processes.ended(processes.start(command, len(variables), 2, told=told), {expect})


def test_what_a_model_said_before_is_the_first_host_s(config_file, tmp_path):
    """The second host's disk has another answer, the first one's none."""
    judge = tmp_path / "judge"
    learnt = ["--config.train.steps=40", "--config.train.eval_every=40"]
    run(config_file, judge, learnt, [{"FTJAX_CACHE": tmp_path / "alone"}])
    step = {"step": "filter_classifier", "workdir": str(judge), "labels": ["positive"]}
    prepare = [f"--config.data.prepare={[step]!r}"]
    run(config_file, tmp_path / "one", prepare, [{"FTJAX_CACHE": tmp_path / "alone"}])
    shutil.copytree(tmp_path / "alone", tmp_path / "second")
    files = list((tmp_path / "second" / "prepared").glob("*.json"))
    assert files
    for file in files:
        other = [{"positive": 0.0, "negative": 1.0} for _ in json.loads(file.read_text())]
        file.write_text(json.dumps(other))
    caches = [{"FTJAX_CACHE": tmp_path / name} for name in ("first", "second")]
    run(config_file, tmp_path / "two", prepare, caches)
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two")]
    one, two = (result["metrics"]["validation"] for result in results)
    assert 0 < one["examples"] < 40  # some are dropped
    assert one["examples"] == two["examples"] and one["loss"] == pytest.approx(two["loss"], 1e-4)


def test_other_rows_on_another_host_are_refused_by_both(config_file, tmp_path):
    rows = make_rows(30, 0)
    for name, changed in (("a", rows), ("b", [*rows[:-1], {**rows[-1], "text": "good film"}])):
        write_jsonl(tmp_path / name / "data.jsonl", changed)
    homes = [{"HOME": tmp_path / name} for name in ("a", "b")]
    overrides = ["--config.data.path=~/data.jsonl"]
    for said in run(config_file, tmp_path / "work", overrides, homes, expect=2):
        assert "as it is prepared and encoded, on process 1 is not that of process 0" in said
