"""The models that steps of preparation ask, beside transformers and `ftjax predict`."""

import json

import numpy as np
import pytest
import torch
import transformers

from ftjax.config import check, default_config, load_config
from ftjax.data.preparation.words import WORD
from ftjax.errors import UserError
from ftjax.evaluation import preparation_models
from ftjax.formats.folder import load_tokenizer
from ftjax.runs.train import train
from ftjax.setup.splits import read_splits
from ftjax.tasks.classification import Classification
from tests.conftest import here, make_rows
from tests.data.preparation.rows import applied, texts_of
from tests.generation.conftest import write_model

pytestmark = pytest.mark.usefixtures("first_device")

TEXTS = [row["text"] for row in make_rows(7, 5)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    return {
        "there": write_model(folder / "bart", "bart", "seq2seq_lm"),
        "back": write_model(folder / "marian", "marian", "seq2seq_lm"),
        "masked": write_model(folder / "bert", "bert", "masked_lm"),
    }


def translated(folder, texts, count):
    """Greedy, by transformers, one text at a time."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    found = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        out = model.generate(ids, do_sample=False, num_beams=1, max_new_tokens=count)
        found.append(tokenizer.decode(out[0], skip_special_tokens=True).strip())
    return found


def test_back_translation_equals_transformers(folders, monkeypatch):
    entry = {
        "step": "back_translation",
        "there": str(folders["there"]),
        "back": str(folders["back"]),
        "prompt_there": "the story : {text}",
        "max_new_tokens": 6,
        "batch_size": 3,
    }
    found, counts = applied(entry, preparation_models, train=TEXTS, test=TEXTS)
    abroad = translated(folders["there"], [f"the story : {text}" for text in TEXTS], 6)
    wanted = translated(folders["back"], [text or "x" for text in abroad], 6)
    wanted = [new for new, old in zip(wanted, abroad, strict=True) if new and old]
    assert texts_of(found["train"]) == TEXTS + wanted and texts_of(found["test"]) == TEXTS
    assert counts["train"]["added"] == len(wanted) > 3
    monkeypatch.setattr(preparation_models, "open_model", None)  # what was said is kept
    assert texts_of(applied(entry, preparation_models, train=TEXTS)[0]["train"]) == TEXTS + wanted
    with pytest.raises(TypeError):
        applied({**entry, "max_new_tokens": 7}, preparation_models, train=TEXTS)
    with pytest.raises(UserError, match="copies=2 would be alike"):
        applied({**entry, "copies": 2}, preparation_models, train=TEXTS)


def test_words_at_masks_equal_transformers(folders):
    folder = folders["masked"]
    model, tokenizer = transformers.BertForMaskedLM.from_pretrained(folder), load_tokenizer(folder)
    texts = [["the ", " was ", "."], ["", " film"], ["a very good movie and a ", ""]]
    found = preparation_models.fill(str(folder), texts, 4)
    assert [len(gaps) for gaps in found] == [2, 1, 1]
    words = [i for w, i in tokenizer.get_vocab().items() if WORD.fullmatch(w)]
    for parts, gaps in zip(texts, found, strict=True):
        ids = torch.tensor([tokenizer("[MASK]".join(parts))["input_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0, ids[0] == tokenizer.mask_token_id][:, words]
        chances, best = logits.softmax(-1).topk(4)
        for gap, p, ranked in zip(gaps, chances, best, strict=True):
            assert list(gap) == [tokenizer.convert_ids_to_tokens(words[i]) for i in ranked]
            np.testing.assert_allclose(list(gap.values()), p.numpy(), rtol=1e-4)


def test_masked_substitution_puts_likely_words(folders):
    entry = {"step": "masked_substitution", "model": str(folders["masked"]), "alpha": 0.3,
             "copies": 3, "top_k": 5}  # fmt: skip
    found, counts = applied(entry, preparation_models, train=TEXTS, validation=TEXTS)
    again, _ = applied(entry, preparation_models, train=TEXTS)
    other, _ = applied({**entry, "seed": 1}, preparation_models, train=TEXTS)
    assert texts_of(found["train"]) == texts_of(again["train"]) != texts_of(other["train"])
    assert texts_of(found["validation"]) == TEXTS and counts["train"]["added"] == 21
    asked, put = [], []
    for row in found["train"].rows.to_list()[len(TEXTS) :]:
        old, new = TEXTS[row["row"] - 1].split(), row["text"].split()
        places = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
        assert len(places) == max(1, int(0.3 * len(old)))
        holes = " ".join("\0" if i in places else word for i, word in enumerate(old))
        asked.append(holes.split("\0"))
        put.append([(old[i], new[i]) for i in places])
    for words, gaps in zip(put, preparation_models.fill(entry["model"], asked, 6), strict=True):
        for (old, new), gap in zip(words, gaps, strict=True):
            assert new in [word for word in gap if word != old][:5]
    with pytest.raises(UserError, match="masked_lm"):
        applied({**entry, "model": str(folders["there"])}, preparation_models, train=TEXTS)


def test_a_classifier_filters_as_it_predicts(config_file, corpus, tmp_path):
    run = tmp_path / "run"
    config = load_config(str(config_file), ["--config.method.name=head"])
    config.train.steps = 20
    train(check(config), run)
    out = tmp_path / "out.jsonl"
    here("predict", "--workdir", run, "--input", corpus / "train.jsonl", "--output", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    chances = [row["probabilities"]["negative"] for row in rows]
    threshold = float(np.median(chances)) + 1e-4
    entry = {"step": "filter_classifier", "workdir": str(run), "labels": ["negative"],
             "threshold": threshold, "splits": ["train"]}  # fmt: skip
    asked = default_config()
    asked.data.update({"path": str(corpus), "prepare": (entry,)})
    splits, report = read_splits(asked, Classification(), preparation_models)
    wanted = [row["text"] for row, p in zip(rows, chances, strict=True) if p < threshold]
    assert splits["train"].column("text") == wanted and 0 < len(wanted) < len(rows)
    (row,) = (row for row in report if row["step"] == "filter_classifier")
    assert row["reasons"] == {"label negative": len(rows) - len(wanted)}
    with pytest.raises(UserError, match=r"filter_classifier: .*has no config\.json"):
        asked.data.prepare = ({**entry, "workdir": str(tmp_path)},)
        read_splits(asked, Classification(), preparation_models)
