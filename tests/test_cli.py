"""The command line, from end to end, as a user would run it."""

import asyncio
import ctypes
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorstore
import transformers

from ftjax.commands import COMMANDS
from ftjax.commands import entry as cli
from ftjax.commands.entry import main
from ftjax.errors import UserError
from ftjax.workdir.records import read_rows
from tests.conftest import environment, ftjax, make_rows, write_jsonl
from tests.forked import Forked

METHODS = "head,prompting"


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command in this process, checks its exit code, and gives what it said."""
    monkeypatch.setenv("GLIBC_TUNABLES", "")

    def run(*arguments, expect=0):
        assert main([*map(str, arguments)]) == expect
        return capsys.readouterr()

    return run


@pytest.mark.smoke
def test_help_and_lists_need_no_jax():
    script = (
        "import sys, contextlib, io\n"
        "from ftjax.commands.entry import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "    [main(['list', what]) for what in ('methods', 'models', 'tasks', 'optimizers')]\n"
        "    with contextlib.suppress(SystemExit): main(['--help'])\n"
        "    main(['list', 'rates'])\n"
        "    with contextlib.suppress(SystemExit): main(['train', '--help'])\n"
        "assert 'jax' not in sys.modules and 'transformers' not in sys.modules\n"
        "print(out.getvalue())"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for name in [*METHODS.split(","), "houlsby", "bert", "classification", "adafactor", "compare"]:
        assert name in out.stdout


@pytest.mark.skipif(cli._has_tpu(), reason="there is a TPU: libtpu says nothing")
def test_libtpu_says_nothing_where_no_tpu_is():
    """As a user starts a command, without JAX_PLATFORMS."""
    given = {name: value for name, value in environment().items() if name != "JAX_PLATFORMS"}
    script = (
        "import sys; sys.argv[1:] = ['list', 'tasks']\n"
        "from ftjax.commands.entry import console; console(); import jax; jax.devices()"
    )
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
    assert not said.stderr


@pytest.mark.smoke
def test_train_evaluate_predict_export(config_file, corpus, tmp_path, command):
    work = tmp_path / "work"
    train = ["train", "--config", f"{config_file}:lora", "--workdir", work]
    out = ftjax(*train)
    assert "classifier/kernel" in out.stderr + out.stdout  # the head was initialized, it says
    assert "\r" not in out.stderr and " (100%)" in out.stderr  # no bars in a log
    result = json.loads((work / "result.json").read_text())
    rows = read_rows(work / "metrics.jsonl")
    assert result["method"] == "lora" and result["trainable_params"] < 0.2 * result["total_params"]
    assert result["epochs"] == 2.0 and result["steps"] == 2 * int(np.ceil(result_rows(work) / 16))
    assert any("validation/accuracy" in row for row in rows)
    assert {"step", "loss", "learning_rate", "grad_norm", "tokens_per_second"} <= set(rows[0])
    assert list((work / "tensorboard").iterdir())
    for name in ("config.json", "labels.json", "data_report.json"):
        assert (work / name).exists()

    assert "finished already" in command(*train).out

    ftjax("evaluate", "--workdir", work, "--split", "test")
    scored = json.loads((work / "evaluate_test.json").read_text())
    wanted = result["metrics"]["test"]  # to the bit: batches have the run's shapes
    assert {name: scored[name] for name in wanted} == wanted
    path = f"--config.data.path={corpus / 'test.jsonl'}"
    command("evaluate", "--workdir", work, path)
    assert json.loads((work / "evaluate_test.json").read_text())["confusion"] == scored["confusion"]
    for name in ("predictions_validation.jsonl", "predictions_test.jsonl", "report.html"):
        assert (work / name).exists()

    rows = [json.loads(line) for line in (corpus / "test.jsonl").read_text().splitlines()]
    inputs = write_jsonl(tmp_path / "in.jsonl", [{"text": row["text"]} for row in rows])
    predictions = tmp_path / "out.jsonl"
    ftjax("predict", "--workdir", work, "--input", inputs, "--output", predictions)
    found = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    hits = np.mean([a["label"] == b["label"] for a, b in zip(found, rows, strict=True)])
    assert abs(hits - scored["accuracy"]) < 0.03  # the test split lost its duplicates

    refused = command("generate", "--workdir", work, "--prompt", "good", expect=2)
    assert "needs a language-model head, not 'classification'" in refused.err

    for kind in ("hf", "peft", "adapterhub"):
        run = ftjax if kind == "hf" else command
        run("export", "--workdir", work, "--format", kind, "--output", tmp_path / kind)
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["r"] == 8
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert config.id2label == {0: "negative", 1: "positive"}


def result_rows(work):
    report = json.loads((work / "data_report.json").read_text())
    return next(r["rows_out"] for r in report if r["step"] == "encode" and r["split"] == "train")


def test_compare_trains_reports_and_goes_on(config_file, tmp_path):
    work = tmp_path / "study"
    arguments = ["compare", "--config", config_file, "--methods", METHODS, "--workdir", work]
    out = ftjax(*arguments, "--jobs=2", "--config.train.epochs=1")
    results = json.loads((work / "results.json").read_text())["methods"]
    assert [row["method"] for row in results] == METHODS.split(",")
    for row in results:
        assert row["method"] in out.stdout and 0 <= row["low"] <= row["score"] <= row["high"]
    for name in ("report.html", "report.md", "results.json"):
        assert str(work / name) in out.stdout and (work / name).exists()
    again = ftjax(*arguments, "--config.train.epochs=1")
    assert again.stdout.count("finished already") == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.optimizer.learning_rat=1"], "did you mean 'optimizer.learning_rate'"),
        (["--config.method.rank=2"], "unknown config key 'method.rank'"),
        (["--config.optimizer=lion"], "'optimizer' is a section; its keys are optimizer.name,"),
        (["--config.task.name=regression"], "give --task regression, or on a page default_config"),
        (["--config.model.path="], "model.path is empty"),
        (["--config.method.name=lora", "--config.method.rnk=2"], "did you mean 'method.rank'"),
        (["--config.train.epochs=many"], "train.epochs='many' has the wrong type: a whole"),
        (["--config.train.epochs=1.5"], "wrong type"),
        (["--config.model.remat=none", "--config.data.path=nowhere"], "nowhere"),
        (["--config.optimizer.learning_rate=fast"], "must be auto or a number above 0"),
        (["--config.optimizer.learning_rate=-1"], "must be auto or a number above 0"),
        (["--config.train.accumulation=3"], "does not divide"),
        (["--config.method.name=lorra"], "did you mean 'lora'"),
        (["--config.method.name=lora", "--config.method.rank=0"], "method.rank=0 must be positive"),
        (["--config.method.name=lora", "--config.method.targets=qury"], "did you mean 'query'"),
        (["--config.method.name=top_k", "--config.method.k=9"], "the model has 2 layers"),
        (["--config.model.segments=3,3"], "sum to 2 layers"),
        (["--config.model.remat=ful"], "must be one of none, dots, dots_context"),
        (["--config.model.path=./nothing"], "neither a folder nor a .gguf file"),
        (["--config.model.path=/etc"], "is a folder without a config.json, so of no model"),
        (["--config.model.path=minlm"], "a nickname (did you mean 'minilm'"),
        (["--config.data.path=./nothing"], "does not exist"),
        (["--config.data.max_length=65"], "exceeds the model's 64 positions"),
        (["--config.data.batching=packed"], "must be one of bucket, pack, pad"),
        (["--config.train.best_metric=acuracy"], "did you mean 'accuracy'"),
        (["--config.optimizer.name=adam"], "'adam' is not known (did you mean 'adamw'?)"),
        (["--config.task.pooling=max"], "must be one of auto, cls, mean"),
        (["--config.mesh.data=3"], "mesh.data=3"),
        (["--nonsense"], "'--nonsense' is not understood"),
    ],
)
def test_bad_input_is_named_and_exits_with_2(config_file, tmp_path, overrides, message, command):
    work = tmp_path / "work"
    failed = command("train", "--config", config_file, "--workdir", work, *overrides, expect=2)
    assert message in failed.err
    assert not (work / "result.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("x = 1", "no get_config()"),
        (
            "from ftjax.config import default_config\n"
            "def get_config():\n    c = default_config()\n    c.trian = 1\n    return c",
            "trian",
        ),
    ],
)
def test_a_bad_config_file_is_named(tmp_path, text, message, command):
    file = tmp_path / "config.py"
    if text:
        file.write_text(text)
    failed = command("train", "--config", file, "--workdir", tmp_path / "w", expect=2)
    assert message in failed.err


def test_commands_on_a_folder_without_a_run(tmp_path, command):
    for arguments in (["evaluate"], ["export", "--format", "hf", "--output", tmp_path / "o"]):
        failed = command(*arguments, "--workdir", tmp_path / "none", expect=2)
        assert "no run was started there" in failed.err


def test_reads_that_end_late_print_no_tracebacks(capsys, monkeypatch):
    """Of a checkpoint whose first read has failed, where nothing waits for the others any more."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    def run(arguments, overrides):
        loop, (promise, later) = asyncio.new_event_loop(), tensorstore.Promise.new()

        async def read():
            await later

        reading = loop.create_task(read())
        loop.call_later(0.01, loop.stop)
        loop.run_forever()
        loop.close()
        promise.set_result(1)
        del reading
        raise UserError("the first failed")

    command = replace(COMMANDS["list"], run=run)
    monkeypatch.setitem(COMMANDS, "list", command)
    assert main(["list", "tasks"]) == 2
    assert capsys.readouterr().err == "error: the first failed\n"
    assert not told and sys.unraisablehook == told.append


def test_nan_stops_and_keeps_the_last_good_checkpoint(config_file, tmp_path):
    work = tmp_path / "work"
    failed = ftjax(
        "train", "--config", config_file, "--workdir", work, "--config.optimizer.name=sgd",
        "--config.optimizer.learning_rate=1e30", "--config.optimizer.clip_norm=0",
        "--config.optimizer.warmup=3", "--config.train.checkpoint_every=1", expect=2,
    )  # fmt: skip
    assert "loss is" in failed.stderr and "at step" in failed.stderr
    kept = {int(p.name) for p in (work / "checkpoints").iterdir() if p.name.isdigit()}
    assert f"last good checkpoint is step {max(kept)}" in failed.stderr
    assert "Traceback" not in failed.stderr


def refused(call, *arguments):
    """What a command in a process of its own, which is limited, wrote to stderr."""
    process = Forked(arguments, environment(), call=call)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    return said


def test_a_disk_that_is_full_while_saving(config_file, tmp_path):
    """A limit on file size stands for it: the write of a later checkpoint fails."""
    work = tmp_path / "work"
    arguments = ["train", "--config", config_file, "--workdir", work, "--config.train.steps=4"]
    ftjax(*arguments, "--config.train.eval_every=4")
    (work / "result.json").unlink()
    shutil.rmtree(work / "checkpoints" / "4")
    said = refused("tests.limited:full", *arguments, "--config.train.eval_every=4")
    assert "could not be written" in said
    assert not [p for p in (work / "checkpoints").iterdir() if p.name.isdigit()]
    ftjax(*arguments, "--config.train.eval_every=4")  # with room again, the run goes on
    assert (work / "result.json").exists()


def test_a_folder_that_cannot_be_written(config_file, tmp_path):
    """Nothing of the run that it holds is lost."""
    work = tmp_path / "work"
    arguments = ["train", "--config", config_file, "--workdir", work, "--config.train.steps=4"]
    arguments += ["--config.train.checkpoint_every=2", "--config.train.keep=2"]
    ftjax(*arguments)
    (work / "result.json").unlink()
    shutil.rmtree(work / "checkpoints" / "4")
    (work / "checkpoints").chmod(0o555)

    def without_privilege():  # root writes everywhere unless it gives up CAP_DAC_OVERRIDE
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)

    failed = subprocess.run(
        [sys.executable, "-m", "ftjax", *map(str, arguments)],
        capture_output=True, text=True, env=environment(), preexec_fn=without_privilege,
    )  # fmt: skip
    (work / "checkpoints").chmod(0o755)
    assert failed.returncode == 2, failed.stderr
    assert "no permission to write there" in failed.stderr and "step 2 is kept" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert [p.name for p in (work / "checkpoints").iterdir()] == ["2"]
    assert "resumed at step 2" in ftjax(*arguments).stdout


def test_a_disk_without_room_is_told_before_the_attempt(
    config_file, tmp_path, monkeypatch, command
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    work = tmp_path / "work"
    arguments = ["train", "--config", config_file, "--workdir", work, "--config.train.steps=2"]
    said = command(*arguments, "--config.mesh.data=8", expect=2).err
    assert "1,000 are free" in said and "step 2 could not be written" in said


def test_early_stopping_and_best(config_file, tmp_path):
    work = tmp_path / "work"
    ftjax(
        "train", "--config", config_file, "--workdir", work, "--config.train.epochs=50",
        "--config.train.early_stopping=2", "--config.optimizer.learning_rate=3e-3",
    )  # fmt: skip
    result = json.loads((work / "result.json").read_text())
    scores = [
        (row["step"], row["validation/accuracy"])
        for row in read_rows(work / "metrics.jsonl")
        if "validation/accuracy" in row
    ]
    best = max(score for _, score in scores)
    first = next(step for step, score in scores if score == best)
    assert result["best_step"] == first and result["metrics"]["validation"]["accuracy"] == best
    assert [s for s, _ in scores].index(first) == len(scores) - 3 and result["epochs"] < 50
    kept = {int(p.name) for p in (work / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {first, scores[-1][0]}


def test_long_texts_and_bad_rows_are_counted(config_file, tmp_path):
    bad = {"text": None, "label": "positive"}
    long = [{"text": "good " * 60, "label": "positive"}, {"text": "bad " * 70, "label": "negative"}]
    file = write_jsonl(tmp_path / "train.jsonl", [*make_rows(60, 0), *long, bad])
    out = ftjax(
        "train", "--config", config_file, "--workdir", tmp_path / "w",
        f"--config.data.path={file}", "--config.train.steps=2", "--config.data.on_error=skip",
    )  # fmt: skip
    said = out.stderr + out.stdout
    assert "train: 1 bad rows are left out, as" in said and "row 63: field 'text' is null" in said
    assert "row 63: field &#x27;text&#x27; is null" in (tmp_path / "w/data_report.html").read_text()
    report = json.loads((tmp_path / "w" / "data_report.json").read_text())
    cut = sum(row["cut"] for row in report if row["step"] == "encode")
    assert cut == 2 and "were truncated" in said
