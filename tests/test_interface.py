"""The public interface, as a notebook uses it: beside the command, and in a process of its own."""

import doctest
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import datasets
import jax
import numpy as np
import pandas
import pytest

import ftjax
from ftjax.config import load_config
from ftjax.errors import Stopped
from ftjax.workdir.records import read_rows
from tests.conftest import make_rows, write_jsonl
from tests.generation.conftest import write_model

pytestmark = pytest.mark.usefixtures("first_device")
ROWS = {"train": make_rows(24, 0), "validation": make_rows(8, 1), "test": make_rows(8, 2)}
STEPS = ("--config.train.steps=3", "--config.train.eval_every=3", "--config.data.prepare=()")


@pytest.fixture(scope="module")
def config(config_file):
    return load_config(f"{config_file}:lora", STEPS)


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("interface") / "run"
    return ftjax.train(config, str(workdir), ROWS)


def test_importing_it_imports_nothing_heavy():
    code = "import sys, ftjax; dir(ftjax); print({'jax', 'datasets', 'pandas'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_all_that_is_named_is_there():
    for name in ftjax.__all__:
        assert getattr(ftjax, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        ftjax.nothing  # noqa: B018


def test_a_result_is_what_the_file_holds(trained):
    assert dict(trained) == json.loads((trained.workdir / "result.json").read_text())
    table = trained.to_pandas()
    assert table["test"]["accuracy"] == trained.metrics["test"]["accuracy"]
    assert "accuracy" in trained._repr_html_() and str(trained.workdir) in repr(trained)


def test_rows_of_any_form_train_alike(config, trained, tmp_path):
    for name, form in {"frames": pandas.DataFrame, "sets": datasets.Dataset.from_list}.items():
        given = {split: form(rows) for split, rows in ROWS.items()}
        assert ftjax.train(config, tmp_path / name, given).metrics == trained.metrics
    for split, rows in ROWS.items():
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", rows)
    assert ftjax.train(config, tmp_path / "files", tmp_path / "data").metrics == trained.metrics


def test_values_of_other_libraries_are_as_in_files(config, trained, tmp_path):
    """Numbers of numpy, times, and what has no form of its own."""
    rows = {
        split: [
            {"text": np.str_(row["text"]), "label": row["label"], "n": np.int64(3), "at": moment}
            for row in rows
        ]
        for split, rows in ROWS.items()
        for moment in [datetime(2026, 1, 2, 3)]
    }
    rows["train"][0] |= {"where": Path("x"), "scores": np.array([1.5, np.nan])}
    assert ftjax.train(config, tmp_path / "run", rows).metrics == trained.metrics
    first = json.loads((tmp_path / "run" / "rows" / "train.jsonl").open().readline())
    assert first["n"] == 3 and first["at"] == "2026-01-02T03:00:00"
    assert first["where"] == "x" and first["scores"] == [1.5, None]


def test_the_configuration_given_is_left_as_it_is(config, trained):
    assert config.data.path != str(trained.workdir / "rows")


def test_a_run_goes_on_without_its_rows(config, trained, capsys):
    again = ftjax.train(config, trained.workdir, ROWS)
    assert again == trained and "is finished already" in capsys.readouterr().out
    with pytest.raises(ftjax.UserError, match="holds other rows, of an earlier run"):
        ftjax.train(config, trained.workdir, {"train": make_rows(5, 7)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"text": "x"}], "must be a mapping, as"),
        ({"train": [{"text": "x"}], "dev": []}, "must be a mapping, as"),
        ({"train": ["x"]}, "row 1 is a str, not a mapping"),
        ({"train": 3}, "rows must be a list of mappings"),
    ],
)
def test_rows_that_are_none(config, tmp_path, data, message):
    with pytest.raises(ftjax.UserError, match=message):
        ftjax.train(config, tmp_path / "run", data)
    assert not (tmp_path / "run" / "config.json").exists()


def test_predictions_are_those_of_the_command(trained, tmp_path):
    file = write_jsonl(tmp_path / "in.jsonl", ROWS["test"])
    of_file = ftjax.predict(trained.workdir, file, tmp_path / "out.jsonl")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").open()] == of_file.rows
    model = ftjax.load(trained.workdir)
    for rows in (ROWS["test"], pandas.DataFrame(ROWS["test"])):
        assert ftjax.predict(trained.workdir, rows).rows == of_file.rows == model.predict(rows).rows
    assert list(of_file.to_pandas()["label"]) == [row["label"] for row in ROWS["test"]]
    assert model.predict([*ROWS["test"], {"text": 3}]).errors[0].startswith("the given rows: row 9")


def test_scores_are_those_of_the_run(trained):
    scores = ftjax.evaluate(trained.workdir)
    given = ftjax.evaluate(trained.workdir, rows=ROWS["test"])
    assert scores["loss"] == given["loss"] == trained.metrics["test"]["loss"]
    assert "data_digest" not in given
    with pytest.raises(ftjax.UserError, match="model.path"):
        ftjax.evaluate(trained.workdir, **{"model.path": "x"})


def test_a_model_is_pure_functions_of_its_parameters(trained):
    model = ftjax.load(trained.workdir)
    ids = np.array([[5, 6, 7], [8, 9, 0]], np.int32)
    batch = {
        "input_ids": ids,
        "attention_mask": (ids > 0).astype(np.int32),
        "labels": np.array([0, 1]),
        "weights": np.ones(2, np.float32),
    }
    logits = jax.jit(model.apply)(model.params, batch)
    loss = model.loss(model.params, batch)
    wanted = -jax.nn.log_softmax(logits)[np.arange(2), batch["labels"]].sum()
    assert float(loss.total) == pytest.approx(float(wanted), rel=1e-5)
    trainable, frozen = model.partition.split(model.params)

    def mean(trainable):
        loss = model.loss({**frozen, **trainable}, batch)
        return loss.total / loss.weight

    gradients = jax.jit(jax.grad(mean))(trainable)
    assert gradients.keys() == trainable.keys() and model.labels
    merged = model.merged()
    assert not any("lora" in path for path in merged) and merged.keys() < model.params.keys()


def test_sentences_become_vectors(trained):
    model = ftjax.load("minilm")
    one, two, three = model.embed(["a good film", "a great movie", "tax law of 1987"])
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5) and one @ two > one @ three + 0.3
    assert ftjax.load(trained.workdir).embed(["good film"]).shape == (1, 32)


def test_one_text_has_one_vector_and_what_is_no_text_none(trained):
    model = ftjax.load(trained.workdir)
    np.testing.assert_array_equal(model.embed("good film"), model.embed(["good film"])[0])
    for texts in ([], 5, ["good", None]):
        with pytest.raises(ftjax.UserError, match="text"):
            model.embed(texts)


def test_texts_are_written(tmp_path):
    text = ftjax.generate("smollm2", "The capital of France is", max_new_tokens=2)
    assert text == " Paris."
    folder = write_model(
        tmp_path / "small", "llama", "causal_lm", architectures=["LlamaForCausalLM"]
    )
    written = ftjax.load(folder).generate(["good film", "a"], max_new_tokens=3)
    assert written == [ftjax.generate(folder, x, max_new_tokens=3) for x in ("good film", "a")]
    with pytest.raises(ftjax.UserError, match="does not generate"):
        ftjax.load("minilm").generate("x")


def test_what_is_no_model(trained, tmp_path):
    with pytest.raises(ftjax.UserError, match="name its labels"):
        ftjax.load("minilm", task="classification")
    model = ftjax.load("minilm", task="classification", labels=("no", "yes"))
    assert {row["label"] for row in model.predict([{"text": "x"}]).rows} <= {"no", "yes"}
    with pytest.raises(ftjax.UserError, match="are of pretrained models"):
        ftjax.load(trained.workdir, task="classification")
    with pytest.raises(ftjax.UserError, match="is no work folder"):
        ftjax.load("minilm", step=3)


def test_an_export_is_read_again(trained, tmp_path):
    step, _ = ftjax.export(trained.workdir, "hf", tmp_path / "hf")
    assert step == trained["best_step"]
    rows = ROWS["test"]
    of_run, of_folder = (
        [row["probabilities"] for row in ftjax.load(folder).predict(rows).rows]
        for folder in (trained.workdir, tmp_path / "hf")
    )
    for a, b in zip(of_run, of_folder, strict=True):
        assert b == pytest.approx(a, abs=1e-4)


def test_ctrl_c_saves_and_the_run_goes_on(config, tmp_path):
    """As a notebook's stop button does it: in this process, which goes on too."""
    more = config.copy_and_resolve_references()
    more.train.steps, more.train.eval_every = 200, 200
    workdir = tmp_path / "run"

    def interrupt():
        while not read_rows(workdir / "metrics.jsonl"):  # it is there before the first step
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Stopped):
        ftjax.train(more, workdir, ROWS)
    assert signal.getsignal(signal.SIGINT) is before
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert 0 < max(steps) < 200
    assert ftjax.train(more, workdir, ROWS)["steps"] == 200


def test_the_process_is_left_as_it_was(config, tmp_path):
    before = (dict(os.environ), list(sys.path), sys.unraisablehook)
    with pytest.raises(ftjax.UserError):
        ftjax.train(config, tmp_path / "run", tmp_path / "nothing")
    assert (dict(os.environ), list(sys.path), sys.unraisablehook) == before


def test_files_in_the_current_folder_are_no_packages(tmp_path):
    """A datasets.py there, as users have, is not what `import datasets` means."""
    (tmp_path / "datasets.py").write_text("raise SystemExit('the wrong module')\n")
    paths = os.pathsep.join([str(Path(ftjax.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-m", "ftjax", "predict", "--workdir", "x", "--input", "y.csv"]
    done = subprocess.run(
        [*command, "--output", "z.csv"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "the wrong module" not in done.stderr, done.stderr


def test_examples_in_docstrings():
    modules = [m.name for m in pkgutil.walk_packages(ftjax.__path__, "ftjax.")]
    texts = {n: Path(importlib.util.find_spec(n).origin).read_text() for n in modules}
    shown = [name for name, text in texts.items() if ">>>" in text]
    results = [doctest.testmod(importlib.import_module(name)) for name in shown]
    assert sum(each.attempted for each in results) >= 2
    assert not sum(each.failed for each in results)


def test_a_study_of_a_configuration(config, tmp_path, forked_runs):
    keys = {"train.steps": 1, "data.prepare": ()}
    keys["optimizer.learning_rate"] = np.float64(1e-3)
    study = ftjax.compare(config, "head, bitfit,head", tmp_path / "study", jobs=2, **keys)
    table = study.to_pandas()
    assert list(table["method"]) == ["head", "bitfit"] and table["score"].between(0, 1).all()
    latex, html = study.to_latex(), study._repr_html_()
    assert latex.count("\\\\\n") == 3 and "bitfit" in latex and "bitfit" in html
    assert "bitfit" in repr(study) and (tmp_path / "study" / "report.html").exists()


def test_rows_of_a_call_that_failed_are_no_run_s(config, trained, tmp_path):
    """They can be mended in the same folder, as in a notebook; once trained they stay."""
    bad = [*ROWS["train"], {"text": "good", "label": None}]
    with pytest.raises(ftjax.UserError, match="row 25: field 'label' is null"):
        ftjax.train(config, tmp_path / "run", {**ROWS, "train": bad, "test": bad})
    rows = {name: ROWS[name] for name in ("train", "validation")}
    validation = ftjax.train(config, tmp_path / "run", rows).metrics["validation"]
    assert validation == trained.metrics["validation"]
    for other in ({**rows, "train": bad}, ROWS):
        with pytest.raises(ftjax.UserError, match="rows.*: use another work folder"):
            ftjax.train(config, tmp_path / "run", other)


def test_columns_of_one_name_are_refused(trained):
    frame = pandas.DataFrame([["good", "bad"]], columns=["text", "text"])
    for rows in (frame, [{1: "good", "1": "bad"}]):
        with pytest.raises(ftjax.UserError, match="two columns .*: rename one"):
            ftjax.predict(trained.workdir, rows)


NO_PATH = {
    "train": lambda config, place, it: ftjax.train(config, it, ROWS),
    "evaluate": lambda config, place, it: ftjax.evaluate(it),
    "predict": lambda config, place, it: ftjax.predict(it, ROWS["test"]),
    "output": lambda config, place, it: ftjax.predict(place, ROWS["test"], it or 5),
    "export": lambda config, place, it: ftjax.export(it, "hf", place),
    "exported": lambda config, place, it: ftjax.export(place, "hf", it),
    "load": lambda config, place, it: ftjax.load(it),
    "adapter": lambda config, place, it: ftjax.load("minilm", adapter=it or 5),
    "compare": lambda config, place, it: ftjax.compare(config, ["lora"], it),
}


@pytest.mark.parametrize("call", NO_PATH)
@pytest.mark.parametrize("place", [None, 5, b"run", "a\0b"])
def test_what_is_no_path_is_said(call, place, config, trained):
    with pytest.raises(ftjax.UserError, match="is no path"):
        NO_PATH[call](config, trained.workdir, place)


def adapter_of(folder):
    (folder / "adapter_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, w, t: ftjax.train("sst2", t), "config must be what ftjax.config.*not 'sst2'"),
        (lambda c, w, t: ftjax.compile(None, "v5e:2x2"), "config must be"),
        (lambda c, w, t: ftjax.explain("seed", "sst2"), "config must be"),
        (lambda c, w, t: ftjax.explain(5), "5 is no key"),
        (lambda c, w, t: ftjax.train(c, w / "config.json", ROWS), "is a file, not a folder"),
        (lambda c, w, t: ftjax.train(c, t / "run", ROWS["train"]), 'as {"train": rows}'),
        (lambda c, w, t: ftjax.predict(w, t), "is a folder: name a file"),
        (lambda c, w, t: ftjax.evaluate(w, ["test"]), "the data has train, validation, test"),
        (lambda c, w, t: ftjax.export(w, "hff", t / "x"), "'hf'"),
        (lambda c, w, t: ftjax.export(w, "hf", t / "x", shard_bytes="5GB"), "shard_bytes='5GB'"),
        (lambda c, w, t: ftjax.export(w, "hf", t / "x", shard_bytes=0), "shard_bytes=0"),
        (lambda c, w, t: ftjax.load("minilm", task="classification", labels="ab"), "list of diff"),
        (lambda c, w, t: ftjax.load("minilm", task="classification", labels=["a", "a"]), "list of"),
        (lambda c, w, t: ftjax.load(adapter_of(t)), "is an adapter: name its base model"),
        (lambda c, w, t: ftjax.compare(c, ["lora"]), "workdir is empty"),
        (lambda c, w, t: ftjax.compare(c, 5, t), "methods=5 must be a list"),
        (lambda c, w, t: ftjax.compare(c, "lora", t, seeds="3"), "--seeds '3' must be a whole"),
    ],
)
def test_arguments_of_other_types_are_said(call, message, config, trained, tmp_path):
    with pytest.raises(ftjax.UserError, match=message):
        call(config, trained.workdir, tmp_path)


def test_a_configuration_from_python():
    config = ftjax.config("sst2", method="lora", **{"method.rank": 4, "train.epochs": 1})
    assert (config.method.name, config.method.rank, config.train.epochs) == ("lora", 4, 1)
    with pytest.raises(ftjax.UserError, match="method.rank"):
        ftjax.config("sst2", method="lora", **{"method.rank": 0})
    assert "data.batching" in ftjax.explain("data.batching")
