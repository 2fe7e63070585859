"""Models from scratch: a folder that transformers reads whole, and a tokenizer that loses nothing."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import transformers
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from ftjax.config import default_config
from ftjax.errors import UserError
from ftjax.evaluation import preparation_models
from ftjax.setup.new_model import make_model
from tests.conftest import ftjax, here, make_rows, write_jsonl

TEXTS = [
    "Good evening, the film wasn't bad: 3 of 5!",
    "A cat sat on the mat, twice.",
    "我喜欢这部电影，因为音乐很好。",
    "The plot is thin.  The music is loud.",
    "他们昨天没有来。",
]
LAYERS = {f"{side}_layers": 1 for side in ("encoder", "decoder")}
LAYERS |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
BART = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, **LAYERS}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 1}
CASES = {  # model type and tokenizer → task, class of transformers, sizes
    ("bert", "wordpiece"): ("masked_lm", "BertForMaskedLM", BERT),
    ("modernbert", "wordpiece"): ("masked_lm", "ModernBertForMaskedLM", BERT),
    ("gpt2", "characters"): ("causal_lm", "GPT2LMHeadModel", GPT2),
    ("gpt2", "bpe"): ("causal_lm", "GPT2LMHeadModel", GPT2),
    ("bart", "bpe"): ("denoising", "BartForConditionalGeneration", BART),
    ("t5", "unigram"): ("span_corruption", "T5ForConditionalGeneration", T5),
    ("marian", "unigram"): ("seq2seq", "MarianMTModel", BART | {"scale_embedding": True}),
}


def asked(folder, task, **new):
    """A configuration for a model in a folder, trained on the texts."""
    config = default_config("full", task)
    rows = [
        {"source": text, "target": text[::-1]} if task == "seq2seq" else {"text": text}
        for text in TEXTS
    ]
    config.data.path = str(write_jsonl(folder.parent / f"{task}.jsonl", rows))
    config.data.prepare = ()
    config.model.path = str(folder)
    config.model.new = ConfigDict({"vocab_size": 400, **new})
    return config


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_transformers_reads_the_folder(case, tmp_path):
    task, architecture, sizes = CASES[case]
    (model_type, kind), folder = case, tmp_path / "model"
    new = {"model_type": model_type, "tokenizer": kind, **sizes}
    (tmp_path / ".model.partial").mkdir()  # of one that was killed
    (tmp_path / ".model.partial" / "model.safetensors").write_text("cut")
    make_model(asked(folder, task, **new), preparation_models)
    assert {path.name for path in tmp_path.iterdir()} == {"model", f"{task}.jsonl"}
    auto = getattr(transformers, architecture)
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) <= 500
    known = [name for name in ("cls", "sep") if hasattr(model.config, f"{name}_token_id")]
    for name in ("pad", "bos", "eos", *known):
        given = getattr(model.config, f"{name}_token_id")
        assert given == getattr(tokenizer, f"{name}_token_id"), name
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    model(**inputs, labels=inputs["input_ids"])  # takes all that the tokenizer gives
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids and max(ids) < len(tokenizer)
        found, wanted = tokenizer.decode(ids, skip_special_tokens=True), text
        if kind == "wordpiece":  # which leaves out case and spaces
            found, wanted = ("".join(each.lower().split()) for each in (found, wanted))
        elif kind == "unigram":  # which composes characters
            wanted = wanted.replace("，", ",")
        assert found == wanted


def test_a_seed_gives_a_model(tmp_path):
    new = {"model_type": "gpt2", "tokenizer": "characters", **GPT2}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = asked(tmp_path / name, "causal_lm", **new)
        config.seed = seed
        make_model(config, preparation_models)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(np.array_equal(a[key], b[key]) for key in a) and a.keys() == b.keys()
    assert not np.array_equal(a["transformer.wte.weight"], c["transformer.wte.weight"])
    before = (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns
    make_model(asked(tmp_path / "a", "causal_lm", **new), preparation_models)  # it is there already
    assert (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"model_type": "gpt2"}, "model.new needs model_type and tokenizer"),
        ({"model_type": "gpt3", "tokenizer": "bpe"}, "model.new.model_type='gpt3'"),
        ({"model_type": "gpt2", "tokenizer": "byte"}, "model.new.tokenizer='byte'.*bpe"),
    ],
)
def test_what_cannot_be_made_is_named(new, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make_model(asked(tmp_path / "model", "causal_lm", **new), preparation_models)
    assert not (tmp_path / "model").exists()


def test_a_translator_is_trained_from_nothing(tmp_path):
    """By one command: the folder is made, and what is written is text of its tokenizer."""
    for split, count in (("train", 32), ("validation", 8), ("test", 8)):
        rows = [{"source": row["text"], "target": row["label"]} for row in make_rows(count, count)]
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", rows)
    file, work = tmp_path / "config.py", tmp_path / "work"
    file.write_text(
        f"""
from ml_collections import ConfigDict

from ftjax.config import default_config

def get_config():
    config = default_config("full", "seq2seq")
    config.model.path = {str(tmp_path / "model")!r}
    config.model.new = ConfigDict({ {"model_type": "marian", "tokenizer": "unigram", **BART}!r})
    config.data.path = {str(tmp_path / "data")!r}
    config.data.max_length = 32
    config.data.prepare = ()
    config.task.max_new_tokens = 12
    config.optimizer.learning_rate = 1e-2
    config.train.epochs = 24
    config.train.batch_size = 8
    config.train.eval_every = 96
    config.train.log_every = 1
    return config
"""
    )
    ftjax("train", "--config", file, "--workdir", work)
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    result = json.loads((work / "result.json").read_text())["metrics"]["test"]
    assert result["written"] == 8 and result["exact_match"] > 0


def test_the_recipe_of_pretraining_runs_as_its_page_says(tmp_path, monkeypatch, capfd):
    """Its three commands, on fewer words: only the classifier is new to what was pretrained."""
    for seed, (split, count) in enumerate({"train": 60, "validation": 20, "test": 20}.items()):
        write_jsonl(tmp_path / "DATA" / f"{split}.jsonl", make_rows(count, seed))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(Path(__file__).parents[2] / "configs")
    page = (tmp_path / "configs" / "masked_lm.py").read_text()
    commands = page.split('"""')[1].replace("\\\n", " ").splitlines()
    pretrain, export, tune = (shlex.split(line)[1:] for line in commands if line[:6] == "ftjax ")
    small = ["vocab_size=100", "hidden_size=16", "num_hidden_layers=1", "intermediate_size=32"]
    data = ["--config.data.source=json", "--config.data.path=DATA", "--config.train.steps=4"]
    here(*pretrain, *data, *(f"--config.model.new.{size}" for size in small))
    here(*export)
    here(*tune, "--config.train.epochs=1")
    said = capfd.readouterr().out
    assert "not in reviews, initialized: classifier/bias, classifier/kernel\n" in said
    result = json.loads((tmp_path / "runs/tuned/result.json").read_text())
    assert result["metrics"]["test"]["examples"] == 20
