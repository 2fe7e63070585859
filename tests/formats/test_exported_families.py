"""Exports of other families, methods and heads: read again by a run, and by transformers."""

import numpy as np
import pytest
import torch
import transformers

from ftjax.formats.adapter import read_method
from ftjax.formats.export import write_export
from ftjax.formats.hf import mapping
from ftjax.formats.jsons import read_json, write_json
from tests.conftest import write_jsonl, write_tokenizer
from tests.formats.test_round_trips import (
    CLASSES,
    NAMES,
    SPANS,
    TAGGED,
    agree,
    configured,
    scored,
    texts,
)
from tests.models.random_models import build, config_of, kind_of, natural, parameters, quick

pytestmark = pytest.mark.usefixtures("first_device")

SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
LABELS = {"labels": NAMES}
TAGS = [{k: v for k, v in row.items() if k != "label"} for row in TAGGED]
PLAIN = [{"text": t} for t in texts()]
TURNED = [{"source": t, "target": " ".join(t.split()[::-1])} for t in texts()]
HF, PEFT, HUB = ("hf",), ("peft",), ("adapterhub",)
# Family, task, its options, rows, method, formats: kinds of each; few of them run by default.
CASES = [
    ("roberta", "classification", {**LABELS, "pooling": "mean"}, CLASSES, "unipelt", HUB),
    ("xlm-roberta", "span_qa", {"stride": 8}, SPANS, "dora", HF + PEFT),
    ("distilbert", "classification", LABELS, CLASSES, "adalora", HF + PEFT),
    ("roberta", "token_classification", {}, TAGS, "prefix_tuning", PEFT),
    ("electra", "classification", LABELS, CLASSES, "ia3", HF + PEFT),
    ("albert", "multilabel", {**LABELS, "pooling": "mean"}, CLASSES, "lora", HF + PEFT),
    ("deberta-v2", "classification", LABELS, CLASSES, "vera", HF + PEFT),
    ("bert", "token_classification", {}, TAGS, "reft", HUB),
    ("xlnet", "classification", LABELS, CLASSES, "lora", HF),
    ("modernbert", "classification", LABELS, CLASSES, "oft", HF),
    ("gpt2", "classification", LABELS, CLASSES, "lora", HF + PEFT),
    ("llama", "causal_lm", {}, PLAIN, "rslora", HF + PEFT),
    ("mistral", "causal_lm", {}, PLAIN, "prompt_tuning", PEFT),
    ("qwen2", "causal_lm", {}, PLAIN, "prefix_tuning", PEFT),
    ("gemma2", "causal_lm", {}, PLAIN, "layer_norm", HF),
    ("qwen3", "regression", {}, [{**row, "label": 0.5} for row in CLASSES], "p_tuning", PEFT),
    ("t5", "seq2seq", {}, TURNED, "lora", HF + PEFT),
    ("t5", "classification", LABELS, CLASSES, "ia3", HF + PEFT),
    ("t5", "seq2seq", {}, TURNED, "houlsby", HUB),
    ("bart", "classification", LABELS, CLASSES, "pissa", HF + PEFT),
    ("marian", "seq2seq", {}, TURNED, "full", HF),
]
# By default: of every kind of family and of method a case, with one format; and one that a fault
# was found in, whose one kind of token the pairs' second text is beyond.
FEW = {
    ("xlm-roberta", "dora"): HF + PEFT,
    ("bert", "reft"): HUB,
    ("electra", "ia3"): HF,
    ("albert", "lora"): PEFT,
    ("gpt2", "lora"): HF,
    ("llama", "rslora"): PEFT,
    ("t5", "lora"): HF,
    ("qwen3", "p_tuning"): PEFT,
}
AUTO = {  # head → transformers' class
    "classification": transformers.AutoModelForSequenceClassification,
    "tokens": transformers.AutoModelForTokenClassification,
    "choice": transformers.AutoModelForMultipleChoice,
    "span": transformers.AutoModelForQuestionAnswering,
    "causal_lm": transformers.AutoModelForCausalLM,
    "seq2seq_lm": transformers.AutoModelForSeq2SeqLM,
}


def write_base(folder, case):
    """A pretrained model of a family: an encoder alone, others with their language model's head."""
    model = build(case, None if kind_of(case) == "encoder" else natural(case))
    config = config_of(case)
    config |= {key: value for key, value in SPECIAL.items() if key in config}
    head = model.config.heads.get(model.model.head)
    config["architectures"] = [head.architecture if head else model.names.model]
    tensors = mapping.to_tensors(parameters(model), model.names, prefix=head is not None)
    folder.mkdir()
    mapping.write_folder(folder, folder, config, tensors)
    write_tokenizer(folder)
    file = folder / "tokenizer_config.json"
    write_json(file, read_json(file) | {"bos_token": "[CLS]", "eos_token": "[SEP]"})
    return folder


def chosen():
    """Cases with few formats, and with all of theirs where these are more."""
    for case in CASES:
        name, few = f"{case[0]}-{case[1]}-{case[4]}", FEW.get((case[0], case[4]), ())
        if few:
            yield pytest.param((*case[:-1], few), id=name)
        if few != case[-1]:
            yield pytest.param(case, id=f"{name}-all", marks=pytest.mark.product)


@pytest.mark.parametrize("case", chosen())
def test_exports_of_families_are_read_with_their_scores(case, tmp_path):
    family, task, options, rows, method, formats = case
    folder = write_base(tmp_path / "base", family)
    data = write_jsonl(tmp_path / "train.jsonl", rows)
    config = configured(task, data, folder, {"name": method}, **options)
    predictor, wanted = scored(config, folder, move=True)
    run, names = predictor.run, predictor.names
    outputs, problem = run.task.output_names(names), run.task.problem_type
    for kind in formats:
        out = tmp_path / kind
        note = write_export(kind, out, folder, run.tuned, predictor.params, outputs, problem)
        place, own = (out, None) if kind == "hf" else (folder, read_method(out))
        known = {k: v for k, v in options.items() if k not in ("labels", "pooling")}
        config = configured(task, data, place, own, **known)
        if kind != "hf":
            config.model.adapter = str(out)
        again, found = scored(config, place)
        assert again.names == names
        agree(found, wanted)
        if kind == "hf" and not note:
            assert_equal_in_transformers(out, predictor, folder)


def assert_equal_in_transformers(out, predictor, folder):
    """The class of the head that transformers finds has every tensor, our outputs and our names."""
    run = predictor.run
    auto = AUTO[run.tuned.model.head]
    model, report = auto.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    if names := run.task.output_names(predictor.names):
        assert model.config.id2label == dict(enumerate(names))
    ids = np.random.default_rng(1).integers(5, 30, (4, 9))
    ids[:, -1] = SPECIAL["eos_token_id"]  # which BART's classifier looks for
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if run.tuned.model.head == "seq2seq_lm":
        batch |= {"decoder_input_ids": ids[:, :5], "decoder_attention_mask": np.ones((4, 5), int)}
    ours = quick(run.tuned.apply)(predictor.params, batch)
    many = run.tuned.model.head == "choice"
    given = {k: torch.tensor(v)[None] if many else torch.tensor(v) for k, v in batch.items()}
    with torch.no_grad():
        theirs = model.eval()(**given)
    if run.tuned.model.head == "span":
        theirs = torch.stack([theirs.start_logits, theirs.end_logits], -1)
    else:
        theirs = theirs.logits
    np.testing.assert_allclose(
        np.asarray(ours).reshape(theirs.shape), theirs.numpy(), rtol=1e-3, atol=1e-3
    )
