"""A run gone on with ends as one that was as long; one begun from another starts with its model."""

import json
import shutil

import numpy as np
import pytest
import transformers

from ftjax.workdir.checkpoints import Checkpoints
from ftjax.workdir.records import read_rows
from tests.conftest import CONFIG, ftjax

OVERRIDES = ["--config.train.eval_every=3", "--config.train.log_every=1", "--config.train.keep=2"]
CONSTANT = ["--config.optimizer.schedule=constant", "--config.optimizer.warmup=0"]


def train(config_file, workdir, steps, *more, expect=0):
    return ftjax(
        "train", "--config", f"{config_file}:lora", "--workdir", workdir, *OVERRIDES,
        f"--config.train.steps={steps}", *more, expect=expect,
    )  # fmt: skip


def params(workdir, step):
    checkpoints = Checkpoints(workdir / "checkpoints")
    found = checkpoints.params(step, None)
    checkpoints.close()
    return found


@pytest.fixture(scope="module")
def extended(config_file, tmp_path_factory):
    """A work folder of a run of 6 steps, then of 12, and what was said."""
    workdir = tmp_path_factory.mktemp("extended") / "run"
    train(config_file, workdir, 6, *CONSTANT)
    short = json.loads((workdir / "result.json").read_text())
    error = train(config_file, workdir, 12, *CONSTANT, expect=2).stderr
    assert "train.steps: 6 there, 12 now" in error and "--extend goes on" in error
    fewer = train(config_file, workdir, 5, *CONSTANT, "--extend", expect=2).stderr
    assert "of 6 steps, and 5 are fewer" in fewer
    assert json.loads((workdir / "result.json").read_text()) == short
    said = train(config_file, workdir, 12, *CONSTANT, "--extend").stdout
    assert json.loads((workdir / "result_6.json").read_text()) == short
    return workdir, said


def test_it_ends_as_one_that_was_as_long(extended, config_file, tmp_path):
    workdir, said = extended
    assert "extended from 6 to 12 steps: the learning rate goes on at 0.001" in said
    train(config_file, tmp_path / "whole", 12, *CONSTANT)
    results = [json.loads((f / "result.json").read_text()) for f in (workdir, tmp_path / "whole")]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["best_step"] == results[1]["best_step"] and results[0]["steps"] == 12
    folders = (workdir, tmp_path / "whole")
    rows = [[row.get("loss") for row in read_rows(f / "metrics.jsonl")] for f in folders]
    assert rows[0] == rows[1]
    both = [params(folder, 12) for folder in folders]
    for path, leaf in both[1].items():
        np.testing.assert_array_equal(both[0][path], leaf, err_msg=path)
    # It is finished as it now is: with the flag or without
    for more in ((), ("--extend",)):
        assert "is finished already" in train(config_file, workdir, 12, *CONSTANT, *more).stdout


def test_a_falling_rate_is_that_of_the_longer_run(extended, config_file, tmp_path):
    """1e-3 · (1 − step / total) without a warm-up; the last step of the first part had a sixth."""
    linear = ["--config.optimizer.warmup=0", "--config.train.early_stopping=9"]
    train(config_file, tmp_path / "run", 6, *linear)
    said = train(config_file, tmp_path / "run", 12, *linear, "--extend").stdout
    assert "the learning rate goes on at 0.0005, that of step 6 of a linear schedule" in said
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    wanted = [1 - step / 6 for step in range(6)] + [1 - step / 12 for step in range(6, 12)]
    np.testing.assert_allclose(rates, 1e-3 * np.array(wanted), rtol=1e-5)


def test_a_step_is_chosen(extended, tmp_path):
    workdir, _ = extended
    steps = {9, 12, json.loads((workdir / "result.json").read_text())["best_step"]}
    rows = {r["step"]: r for r in read_rows(workdir / "metrics.jsonl") if "validation/loss" in r}
    for step in steps:
        ftjax("evaluate", "--workdir", workdir, "--split", "validation", "--step", step)
        scored = json.loads((workdir / f"evaluate_validation_step_{step}.json").read_text())
        assert scored["step"] == step
        assert scored["loss"] == pytest.approx(rows[step]["validation/loss"], rel=1e-5)
    out = tmp_path / "adapter"
    said = ftjax("export", "--workdir", workdir, "--step", 9, "--format", "peft", "--output", out)
    assert "step 9 exported" in said.stdout
    error = ftjax("evaluate", "--workdir", workdir, "--step", 7, expect=2).stderr
    assert "no checkpoint of step 7, only of" in error and "9, 12" in error


def test_a_run_begins_with_anothers_model(extended, config_file, tmp_path):
    """By a rate that moves nothing, under another method; and needs the other no more."""
    earlier, workdir = tmp_path / "earlier", tmp_path / "run"
    shutil.copytree(extended[0], earlier)
    rows = {r["step"]: r for r in read_rows(earlier / "metrics.jsonl") if "validation/loss" in r}
    best = json.loads((earlier / "result.json").read_text())["best_step"]
    still = ["--config.method.name=houlsby", "--config.optimizer.learning_rate=1e-12"]
    still.append(f"--config.model.from_run={earlier}")

    def first(folder):
        return next(r for r in read_rows(folder / "metrics.jsonl") if "validation/loss" in r)

    train(config_file, workdir, 3, *still)
    wanted = pytest.approx(rows[best]["validation/loss"], rel=1e-4)
    assert first(workdir)["validation/loss"] == wanted
    other = next(step for step in (9, 12) if step != best)
    train(config_file, tmp_path / "of_step", 3, *still, f"--config.model.from_step={other}")
    wanted_other = pytest.approx(rows[other]["validation/loss"], rel=1e-4)
    assert first(tmp_path / "of_step")["validation/loss"] == wanted_other
    assert abs(rows[other]["validation/loss"] / rows[best]["validation/loss"] - 1) > 1e-3
    auto = transformers.AutoModelForSequenceClassification
    model, info = auto.from_pretrained(workdir / "start", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.hidden_size == CONFIG["hidden_size"]
    shutil.rmtree(earlier)
    assert "is finished already" in train(config_file, workdir, 3, *still).stdout
    (workdir / "result.json").unlink()
    assert "resumed at step 3" in train(config_file, workdir, 3, *still).stdout
    moved = workdir.rename(tmp_path / "moved")
    split = ["--split", "validation"]
    assert "loss" in ftjax("evaluate", "--workdir", moved, *split).stdout
    scored = json.loads((moved / "evaluate_validation.json").read_text())
    assert scored["loss"] == wanted
    # What adds layers cannot be merged; another base is none to begin with
    again = [f"--config.model.path={moved / 'start'}", f"--config.model.from_run={moved}"]
    error = train(config_file, tmp_path / "again", 3, *again, expect=2).stderr
    assert f"model.from_run='{moved}': houlsby changes the computation" in error
    error = train(config_file, tmp_path / "again", 3, again[1], expect=2).stderr
    assert "is of another base model" in error and not (tmp_path / "again").exists()
