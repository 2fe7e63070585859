"""Tasks from the command line: trained a few steps, evaluated, and predicted with."""

import json

import numpy as np
import pytest

from tests.conftest import WORDS, ftjax, here, write_jsonl
from tests.models.reference import Reference
from tests.tasks.small_models import write_words


def rows_of(task, count, seed):
    random = np.random.default_rng(seed)

    def text(least=3, most=10):
        return " ".join(random.choice(WORDS, int(random.integers(least, most))))

    def row():
        said = text()
        words = said.split()
        if task == "token_classification":
            tags = ["B-good" if word in WORDS[:4] else "O" for word in words]
            return {"tokens": words, "tags": tags, "label": "yes" if "B-good" in tags else "no"}
        if task == "span_qa":
            answer = {"text": [words[1]], "answer_start": [len(words[0]) + 1]}
            return {"question": text(1, 3), "context": said, "answers": answer}
        if task == "seq2seq":
            return {"source": said, "target": words[0]}
        if task == "instruction":
            return {"instruction": said, "output": words[0]}
        if task == "preference":
            return {"prompt": said, "chosen": words[0], "rejected": text(2, 4)}
        return {"text": said}

    return [row() for _ in range(count)]


# Task → the model's case and head (None: the tests' BERT), method, and options.
RUNS = {
    "token_classification": (None, "lora", {}),
    "span_qa": (None, "full", {"stride": 4}),
    "masked_lm": (("bert", "masked_lm"), "full", {"rate": 0.3}),
    "seq2seq": (("bart", "seq2seq_lm"), "full", {"max_new_tokens": 4}),
    "instruction": (
        ("llama", "causal_lm"),
        "lora",
        {"template": "plain", "generate": 8, "max_new_tokens": 4},
    ),
    "preference": (("llama", "causal_lm"), "lora", {"template": "plain"}),
}
CHOOSES = {"seq2seq": "chrf", "instruction": "exact_match"}  # of what is written
METRICS = {
    "token_classification": {"f1", "intent_accuracy", "exact"},
    "span_qa": {"exact_match", "f1"},
    "masked_lm": {"perplexity", "masked_accuracy"},
    "seq2seq": {"bleu", "chrf", "bleu_signature", "token_accuracy"},
    "instruction": {"exact_match", "perplexity", "written"},
    "preference": {"accuracy", "margin"},
}
FOUND = {
    "token_classification": {"tags", "probabilities", "entities", "label", "probability"},
    "span_qa": {"answer", "start", "score", "probability"},
    "masked_lm": {"loss", "tokens"},
    "seq2seq": {"written", "probability", "log_probability"},
    "instruction": {"written", "probability", "log_probability"},
    "preference": {"preferred", "probability", "margin", "log_probabilities"},
}


def assert_same(found, wanted):
    if isinstance(wanted, dict):
        found, wanted = list(found.values()), list(wanted.values())
    if isinstance(wanted, list):
        for pair in zip(found, wanted, strict=True):
            assert_same(*pair)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-4)
    else:
        assert found == wanted


def interrupted(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize("task", RUNS)
def test_train_evaluate_predict(task, tiny, tmp_path, monkeypatch):
    case, method, options = RUNS[task]
    folder = tiny
    if case:  # with the tokenizer whose end is the model's
        folder = write_words(tmp_path / "model", eos="[CLS]" if case[0] == "bart" else "[SEP]")
        Reference.make(*case, folder)
    rows = {
        split: rows_of(task, n, n) for split, n in (("train", 48), ("validation", 16), ("test", 13))
    }
    writes = task in ("seq2seq", "instruction")
    if writes:  # more than the model is let read, which training cuts, or leaves out
        rows["test"].insert(0, rows_of(task, 1, 0)[0])
        name = "source" if task == "seq2seq" else "instruction"
        rows["test"][0][name] = " ".join(WORDS * 3)
    for split, of_split in rows.items():
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", of_split)
    file, work = tmp_path / "config.py", tmp_path / "work"
    file.write_text(
        f"""
from ftjax.config import default_config

def get_config():
    config = default_config({method!r}, {task!r})
    config.model.path = {str(folder)!r}
    config.data.path = {str(tmp_path / "data")!r}
    config.data.max_length = 32
    config.data.buckets = 1
    config.task.update({options!r})
    config.optimizer.learning_rate = 5e-3
    config.train.epochs = 2
    config.train.batch_size = 16
    config.train.eval_batch_size = 16
    config.train.log_every = 1
    config.train.best_metric = {CHOOSES.get(task, "auto")!r}
    return config
"""
    )
    if writes:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("ftjax.runs.held_out.written_scores", interrupted)
            here("train", "--config", file, "--workdir", work, devices=2)
        kept = json.loads((work / "result.json").read_text())
        assert kept["pending"] and kept["metrics"]["test"]["loss"]
    ftjax("train", "--config", file, "--workdir", work)
    logged = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in logged if "loss" in row]
    assert len(losses) == 6 and min(losses[3:]) < losses[0] and np.isfinite(losses).all()
    if task == "preference":
        np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-4)
    if metric := CHOOSES.get(task):
        name = f"validation/{metric}"
        scores = {row["step"]: row[name] for row in logged if name in row}
        best = json.loads((work / "result.json").read_text())
        assert len(scores) == 2 and best["best_step"] == max(scores, key=scores.get)
        assert best["metrics"]["validation"][metric] == max(scores.values())
    result = json.loads((work / "result.json").read_text())
    scores = result["metrics"]["test"]
    assert scores["examples"] == 13 + (task == "seq2seq") and METRICS[task] <= set(scores)
    said = [json.loads(line) for line in (work / "predictions_test.jsonl").open()]
    assert len(said) == 13 + bool(writes) and FOUND[task] <= said[0]["predicted"].keys()
    wrong = any(row.get("right") is False for row in said)
    shown = "What it wrote" if writes else "What it got wrong" if wrong else "Metrics"
    assert shown in (work / "report.html").read_text()
    if writes:
        before = kept["metrics"]["test"]["loss"]  # of another mesh
        assert "pending" not in result and scores["loss"] == pytest.approx(before, rel=1e-5)
        report = json.loads((work / "data_report.json").read_text())
        cut = {row["split"]: row["cut"] for row in report if row["step"] == "prompt"}
        assert cut["test"] == 1 and not cut.get("validation")
    ftjax("evaluate", "--workdir", work)
    scored = json.loads((work / "evaluate_test.json").read_text())
    for name in METRICS[task]:
        wanted = result["metrics"]["test"][name]
        wanted = wanted if isinstance(wanted, str) else pytest.approx(wanted, rel=1e-4)
        assert scored[name] == wanted, name
    asked = rows["test"]
    if task not in ("masked_lm", "preference"):  # without what is to be found
        hidden = {"tags", "label", "answers", "target", "output"}
        asked = [{key: value for key, value in row.items() if key not in hidden} for row in asked]
    write_jsonl(tmp_path / "asked.jsonl", asked)
    asked_for = ["--input", tmp_path / "asked.jsonl", "--output", tmp_path / "found.jsonl"]
    ftjax("predict", "--workdir", work, *asked_for)
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert len(found) == 13 + writes and all(FOUND[task] <= set(row) for row in found), found[0]
    for row, own in zip(found, said, strict=True):  # as the run has it, but for losses of answers
        for name in own["predicted"].keys() - {"loss", "tokens"}:
            assert_same(row[name], own["predicted"][name])
    if task == "instruction":  # nothing was said that could have a loss
        assert all(row["loss"] is None and row["tokens"] == 0 for row in found)
    if task == "token_classification":
        assert [len(row["tags"]) for row in found] == [len(row["tokens"]) for row in asked]
    if task == "span_qa":
        for row, given in zip(found, asked, strict=True):
            assert given["context"][row["start"] :].startswith(row["answer"]) and row["answer"]
    if task == "preference":  # the reference of a run that goes on from an adapter has it too
        adapter, again = tmp_path / "adapter", tmp_path / "again"
        ftjax("export", "--workdir", work, "--format", "peft", "--output", adapter)
        ftjax(
            "train", "--config", file, "--workdir", again,
            f"--config.model.adapter={adapter}", "--config.train.steps=1",
        )  # fmt: skip
        first = json.loads((again / "metrics.jsonl").read_text().splitlines()[0])
        np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-4)
