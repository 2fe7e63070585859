"""What a run goes on with is compared by content: moved is the same, changed is named."""

import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ftjax import tasks
from ftjax.config import check, load_config
from ftjax.errors import UserError
from ftjax.evaluation import preparation_models
from ftjax.formats import digests
from ftjax.formats.folder import fingerprint
from ftjax.setup.inputs import inputs_of, require_same_inputs
from ftjax.setup.splits import read_data
from ftjax.workdir.fingerprints import NAME, require_same_tokenizer, tokenizer_of
from ftjax.workdir.records import read_rows
from tests.conftest import ftjax, write_tiny

OVERRIDES = ["--config.train.steps=4", "--config.train.eval_every=2", "--config.train.log_every=1"]


@pytest.fixture
def laid(shallow, corpus, tmp_path):
    """Copies of a model and of data that a test may change."""
    shutil.copytree(shallow, tmp_path / "model")
    shutil.copytree(corpus, tmp_path / "data")
    return tmp_path


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def inputs(config_file, laid, *more):
    paths = [f"--config.model.path={laid / 'model'}", f"--config.data.path={laid / 'data'}"]
    config = check(load_config(f"{config_file}:lora", [*paths, *more]))
    data = read_data(config, tasks.create(config.task), laid / "model", preparation_models)
    return inputs_of(config, data, laid / "model")


def longer(laid):
    file = laid / "data" / "train.jsonl"
    write(file, [*rows_of(file), {"text": "a very good film", "label": "positive"}])


def turned(laid):
    """The names of the labels, turned round in all splits: the arrays alone would tell it."""
    for file in (laid / "data").iterdir():
        names = {"positive": "a_good_one", "negative": "bad"}
        write(file, [{**row, "label": names[row["label"]]} for row in rows_of(file)])


def another_word(laid):
    file = laid / "data" / "validation.jsonl"
    first, *rest = rows_of(file)
    write(file, [{**first, "text": first["text"] + " too"}, *rest])


def reordered(laid):
    file = laid / "data" / "train.jsonl"
    write(file, rows_of(file)[::-1])


def halved(laid):
    file = laid / "data" / "train.jsonl"
    write(file, rows_of(file)[::2])


def a_third_label(laid):
    file = laid / "data" / "train.jsonl"
    first, *rest = rows_of(file)
    write(file, [{**first, "label": "neither"}, *rest])


def flipped(laid):
    other = {"positive": "negative", "negative": "positive"}
    for file in (laid / "data").iterdir():
        write(file, [{**row, "label": other[row["label"]]} for row in rows_of(file)])


def another_tokenizer(laid):
    file = laid / "model" / "tokenizer.json"
    file.write_text(
        re.sub(
            r'"good": (\d+)(.*)"bad": (\d+)',
            r'"good": \3\2"bad": \1',
            file.read_text(),
            flags=re.DOTALL,
        )
    )


def capitals(laid):
    """Which no text of the run has, and others may."""
    file = laid / "model" / "tokenizer.json"
    held = json.loads(file.read_text())
    held["normalizer"]["lowercase"] = False
    file.write_text(json.dumps(held))


def other_weights(laid):
    write_tiny(laid / "model", seed=5)


CHANGES = {
    longer: {"train split"},
    turned: {"train split", "validation split", "test split", "label names"},
    another_word: {"validation split"},
    other_weights: {"base model"},
    reordered: {"train split"},
    halved: {"train split"},
    a_third_label: {"train split", "validation split", "test split", "label names"},
    flipped: {"train split", "validation split", "test split"},
    another_tokenizer: {"train split", "validation split", "test split", "tokenizer"},
    capitals: {"tokenizer"},
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_each_change_is_told_from_the_rest(config_file, laid, change):
    before = inputs(config_file, laid)
    assert inputs(config_file, laid) == before
    change(laid)
    after = inputs(config_file, laid)
    assert {name for name in before if before[name] != after[name]} == CHANGES[change]


def test_a_base_is_read_once_and_again_when_it_has_changed(laid, monkeypatch):
    count, read = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: count.append(1) or read(*given))
    before = fingerprint(laid / "model")
    assert fingerprint(laid / "model") == before and len(count) == 1
    file = laid / "model" / "model.safetensors"
    times, held = file.stat(), bytearray(file.read_bytes())
    held[-1] ^= 1
    file.write_bytes(held)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as of a copy that keeps them
    assert fingerprint(laid / "model") != before


def test_a_digest_is_kept_for_other_commands_while_the_file_is_what_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "LARGE", 100)
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    count, read = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: count.append(1) or read(*given))
    files = [tmp_path / name for name in "abc"]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * (99 if number == 2 else 100))

    def told(reads):
        digests._digest_of.cache_clear()  # as in another process
        count.clear()
        wanted = [hashlib.sha256(file.read_bytes()).digest() for file in files]
        assert digests.digests(files) == wanted and len(count) == reads

    told(3)
    told(3)  # the files are so new that they may change unseen
    monkeypatch.setattr(digests, "SETTLED", 0)
    told(3)
    told(1)  # the small one
    kept = sorted((tmp_path / "cache" / "digests").iterdir())
    assert len(kept) == 2
    kept[0].write_text(kept[0].read_text().replace("a", "b"))
    told(2)  # a damaged one is not believed, and made again
    told(1)
    times = files[0].stat()
    files[0].write_bytes(b"x" * 100)
    os.utime(files[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    told(2)
    monkeypatch.setenv("FTJAX_CACHE", str(files[2] / "no folder"))
    told(3)


def test_a_damaged_note_is_named_and_left(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / NAME).write_text('{"train spl')
    with pytest.raises(UserError, match="inputs.json is not valid JSON: .* once it is removed"):
        require_same_inputs(tmp_path, {"train split": "a"})
    (tmp_path / NAME).unlink()
    require_same_inputs(tmp_path, {"train split": "a"})
    with pytest.raises(UserError, match="train split: a there, b now"):
        require_same_inputs(tmp_path, {"train split": "b"})


def test_adapters_are_compared_by_their_tensors(config_file, laid):
    adapter = laid / "adapter"
    adapter.mkdir()
    save_file({"a": np.zeros(3, np.float32)}, adapter / "adapter_model.safetensors")
    option = f"--config.model.adapter={adapter}"
    before = inputs(config_file, laid, option)
    moved = adapter.rename(laid / "moved")
    (moved / "README.md").write_text("said of it")
    option = f"--config.model.adapter={moved}"
    assert inputs(config_file, laid, option) == before
    tensors = load_file(moved / "adapter_model.safetensors")
    save_file({"a": tensors["a"] + 1}, moved / "adapter_model.safetensors")
    after = inputs(config_file, laid, option)
    assert {name for name in before if before[name] != after[name]} == {"model.adapter"}


def test_a_stream_is_compared_by_its_first_window_and_what_is_held_out(config_file, laid):
    stream = ["--config.data.streaming=True", "--config.data.window=32", "--config.train.steps=4"]
    stream.append("--config.data.prepare=()")
    before = inputs(config_file, laid, *stream)
    longer(laid)  # beyond the first window
    assert inputs(config_file, laid, *stream) == before
    file = laid / "data" / "train.jsonl"
    write(file, rows_of(file)[1:])
    another_word(laid)
    after = inputs(config_file, laid, *stream)
    names = {name for name in before if before[name] != after[name]}
    assert names == {"stream's first window", "validation split"}


def test_a_run_goes_on_where_its_data_and_model_lie_now_and_not_with_others(config_file, laid):
    workdir = laid / "run"

    def command(folder, *more):
        paths = [f"--config.{key}.path={folder / key}" for key in ("model", "data")]
        return ["train", "--config", f"{config_file}:lora", "--workdir", workdir,
                *OVERRIDES, *paths, *more]  # fmt: skip

    ftjax(*command(laid))
    result = json.loads((workdir / "result.json").read_text())
    moved = laid / "moved"
    moved.mkdir()
    for name in ("model", "data"):
        shutil.move(laid / name, moved / name)
    (workdir / "result.json").unlink()
    assert "resumed at step 4" in ftjax(*command(moved)).stdout
    again = json.loads((workdir / "result.json").read_text())
    assert again["metrics"] == result["metrics"]
    scores = ftjax("evaluate", "--workdir", workdir).stdout  # of where they lie now
    assert f"{result['metrics']['test']['accuracy']:.4f}" in scores
    turned(moved)
    longer(moved)
    kept = {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    kept.pop(workdir / "evaluate_test.json")
    other = moved.rename(laid / "other")  # also where the run is finished
    for name in (other, other):
        error = ftjax(*command(name), expect=2).stderr
        assert "train split: 150 examples" in error and "151 examples" in error
        assert "label names: negative, positive" in error and "a_good_one, bad" in error
        (workdir / "result.json").unlink(missing_ok=True)
    for path, said in kept.items():
        assert path.name == "result.json" or path.read_bytes() == said
    # Nothing is trained yet: what it began with may be mended
    (workdir / "checkpoints").rename(laid / "gone")
    ftjax(*command(other))
    assert json.loads((workdir / "labels.json").read_text()) == ["a_good_one", "bad", "positive"]
    assert read_rows(workdir / "metrics.jsonl")


def test_a_tokenizer_that_has_changed_is_refused_by_what_reads_a_run(laid):
    note = {"tokenizer": tokenizer_of(laid / "model")}
    (laid / NAME).write_text(json.dumps(note))
    require_same_tokenizer(laid, laid / "model")
    file = laid / "model" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=3))  # the same in other words
    require_same_tokenizer(laid, laid / "model")
    capitals(laid)
    with pytest.raises(UserError, match="was trained with another tokenizer"):
        require_same_tokenizer(laid, laid / "model")
    (laid / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match="tokenizer: "):
        require_same_inputs(laid, {"tokenizer": tokenizer_of(laid / "model")})
    (laid / NAME).write_text("{}")  # as of an earlier version
    require_same_tokenizer(laid, laid / "model")
    require_same_inputs(laid, {"tokenizer": tokenizer_of(laid / "model")})
