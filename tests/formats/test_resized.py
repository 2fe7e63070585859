"""Tokenizers with more words than their model: said, and mended as transformers mends it."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats.folder import read_config
from ftjax.formats.hf import mapping
from ftjax.formats.hf.vocabulary import Resized, sized, with_words
from tests.conftest import ftjax, here, write_jsonl, write_tiny
from tests.models.cases import CASES
from tests.models.random_models import natural
from tests.models.reference import Reference

MORE = 3
# Of DeBERTa v3's head transformers leaves the bias as it was, and of untied BART it forgets tables.
RESIZED = [case for case in CASES if case != "deberta-v3"]
UNTIED = ("bert", "distilbert", "gpt2", "gemma")


@pytest.mark.parametrize("case", [*RESIZED, *(f"{case}-untied" for case in UNTIED)])
def test_every_tensor_is_resized_as_theirs(case, one_device, tmp_path, monkeypatch):
    name, untied = case.removesuffix("-untied"), case.endswith("-untied")
    if untied:
        make = CASES[name]
        monkeypatch.setitem(CASES, name, lambda: untie(make()))
    head = natural(name)
    theirs = Reference.make(name, head, tmp_path).model
    count = theirs.config.vocab_size + MORE
    config = sized(read_config(tmp_path), count)
    full = methods.create({"name": "full"})
    model = build_tuned(config, full, {}, {"head": head})
    params, absent = pretrained.load(tmp_path, model, one_device, jax.random.key(0), resize=True)
    assert not absent
    torch.manual_seed(0)
    theirs.resize_token_embeddings(count)
    tensors, wanted = mapping.to_tensors(params, model.names, prefix=True), theirs.state_dict()
    unused = {"cls.predictions.bias"} if untied else set()
    words = [path for path, axes in model.axes.items() if "vocab" in axes]
    grown = {name for path in words for name, _ in model.names.stored(path)}
    assert grown <= {key.removeprefix(f"{model.names.prefix}.") for key in tensors}
    for key in (tensors.keys() & wanted.keys()) - unused:  # of experts, theirs are stacked
        largest = np.abs(wanted[key].numpy()).max()
        np.testing.assert_allclose(tensors[key], wanted[key], atol=1e-3 * largest, err_msg=key)


def untie(config):
    config.tie_word_embeddings = False
    return config


def test_any_slice_of_a_resized_tensor():
    table = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    for axis, stored in ((0, table), (1, table.T)):
        found = Resized(stored, axis, 10)
        whole = np.concatenate([table, np.repeat(table.mean(0, keepdims=True), 3, 0)])
        whole = whole if axis == 0 else whole.T
        np.testing.assert_allclose(found[...], whole, rtol=1e-6)
        for a, b in ((0, 5), (5, 9), (8, 10), (0, 10)):
            index = (slice(a, b), slice(1, 3)) if axis == 0 else (slice(1, 3), slice(a, b))
            np.testing.assert_allclose(found[index], whole[index], rtol=1e-6)


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """A tiny model whose tokenizer knows three words that the table lacks; rows that have them."""
    folder = write_tiny(tmp_path_factory.mktemp("more") / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.add_tokens(["<e1>", "<e2>", "<e3>"]) == MORE
    tokenizer.save_pretrained(folder)
    rows = [
        {"text": f"the {word} <e{1 + i % 3}> film", "label": label}
        for i in range(12)
        for word, label in (("good", "yes"), ("bad", "no"))
    ]
    data = folder.parent / "rows"
    for split in ("train", "validation"):
        write_jsonl(data / f"{split}.jsonl", rows)
    config = folder.parent / "config.py"
    config.write_text(f"""
from ftjax.config import default_config

def get_config(method="full"):
    config = default_config(method)
    config.model.path = {str(folder)!r}
    config.data.path = {str(data)!r}
    config.data.max_length = 16
    config.data.prepare = ()
    config.train.epochs = 1
    config.train.batch_size = 8
    return config
""")
    return folder, data, config


def test_too_small_a_vocabulary_is_said(more, tmp_path):
    folder, _, config = more
    with pytest.raises(UserError, match="ids up to 66.*vocabulary of 64.*resize_vocabulary"):
        with_words(folder, read_config(folder))
    out = ftjax("train", "--config", config, "--workdir", tmp_path / "run", expect=2)
    assert "ids up to 66" in out.stderr and "vocabulary of 64" in out.stderr


def test_a_resized_model_is_trained_and_exported(more, tmp_path):
    _, data, config = more
    run, output = tmp_path / "run", tmp_path / "out"
    here("train", "--config", config, "--workdir", run, "--config.model.resize_vocabulary=True")
    here(
        "predict",
        "--workdir",
        run,
        "--input",
        data / "train.jsonl",
        "--output",
        tmp_path / "p.jsonl",
    )
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    here("export", "--workdir", run, "--format", "hf", "--output", output)
    assert json.loads((output / "config.json").read_text())["vocab_size"] == 64 + MORE
    cls = transformers.AutoModelForSequenceClassification
    model, info = cls.from_pretrained(output, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    texts = [json.loads(line)["text"] for line in (data / "train.jsonl").read_text().splitlines()]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert batch["input_ids"].max() == 63 + MORE
    with torch.no_grad():
        wanted = model(**batch).logits.softmax(-1).numpy()
    names = [model.config.id2label[i] for i in range(2)]
    found = [[row["probabilities"][name] for name in names] for row in rows]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
