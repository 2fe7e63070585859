"""Exported models of embeddings are read by sentence-transformers and PEFT."""

import json

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer

from ftjax import pretrained
from ftjax.formats.export import write_export
from ftjax.formats.folder import load_tokenizer
from ftjax.formats.sentence_transformers.modules import pooling_of
from ftjax.tasks.contrastive import Contrastive
from tests.conftest import build, perturbed
from tests.formats.published import TEXTS, write
from tests.models.cases import CASES
from tests.models.random_models import quick


@pytest.mark.parametrize(
    ("case", "how"), [("bert", "mean"), ("bert", "cls"), ("distilbert", "mean"), ("xlnet", "cls")]
)
def test_embeddings_are_sentence_transformers(case, how, one_device, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    torch.manual_seed(0)
    config = CASES[case]()
    config.vocab_size = 150
    transformers.AutoModel.from_config(config).save_pretrained(base)
    write(case, base)
    (base / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "query: "}, "default_prompt_name": "query"})
    )
    task = Contrastive(pooling=how)
    method = {"name": "lora", "rank": 2}
    if case == "xlnet":  # whose attention has no modules that PEFT adapts
        method["targets"] = ("ffn.up", "ffn.down")
    model = build(base, method, head=task.head((), base))
    params, _ = pretrained.load(base, model, one_device, jax.random.key(0))
    params = perturbed(params, model)
    write_export("hf", out, base, model, params, problem=None)
    assert pooling_of(out) == how
    theirs = SentenceTransformer(str(out), device="cpu").encode(TEXTS)
    tokens = load_tokenizer(base)(TEXTS, padding=True, padding_side="right")
    batch = {name: np.array(tokens[name])[:, None] for name in ("input_ids", "attention_mask")}
    apply = quick(model.apply)
    ours = task.outputs(lambda flat: apply(params, flat), batch)[:, 0]
    np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    write_export("peft", tmp_path / "adapter", base, model, params, problem=None)
    adapted = peft.PeftModel.from_pretrained(
        transformers.AutoModel.from_pretrained(base), tmp_path / "adapter"
    ).eval()
    mask = batch["attention_mask"][:, 0]
    with torch.no_grad():
        ids, real = torch.tensor(batch["input_ids"][:, 0]), torch.tensor(mask)
        hidden = adapted(input_ids=ids, attention_mask=real).last_hidden_state.numpy()
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    last = hidden[np.arange(len(hidden)), mask.sum(1) - 1]
    vector = mean if how == "mean" else last if case == "xlnet" else hidden[:, 0]
    vector /= np.linalg.norm(vector, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, vector, atol=1e-5)
