"""What models from scratch start from: each tensor is spread as transformers spreads it."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.formats.hf import mapping

SIZES = {"vocab_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 96}
BART = {
    **{f"{side}_{key}": value for side in ("encoder", "decoder")
       for key, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 192))},
    "vocab_size": 512, "d_model": 96, "max_position_embeddings": 64,
}  # fmt: skip
T5 = {"vocab_size": 512, "d_model": 96, "d_kv": 48, "d_ff": 192, "num_layers": 2, "num_heads": 3}
CASES = {
    "bert": ("BertForMaskedLM", "masked_lm", SIZES | {"intermediate_size": 192}),
    "modernbert": (
        "ModernBertForMaskedLM", "masked_lm",
        SIZES | {"intermediate_size": 192, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
                 "cls_token_id": 2, "sep_token_id": 1},
    ),
    "gpt2": (
        "GPT2LMHeadModel", "causal_lm",
        {"vocab_size": 512, "n_embd": 96, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "llama": ("LlamaForCausalLM", "causal_lm", SIZES | {"intermediate_size": 192}),
    "bart": ("BartForConditionalGeneration", "seq2seq_lm", BART),
    "marian": (
        "MarianMTModel", "seq2seq_lm",
        BART | {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    ),
    "t5": (
        "T5ForConditionalGeneration", "seq2seq_lm", T5 | {"feed_forward_proj": "gated-gelu"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", CASES)
def test_each_tensor_is_spread_as_theirs(model_type):
    name, head, values = CASES[model_type]
    config = transformers.AutoConfig.for_model(model_type, **values)
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(config).state_dict()
    model = build_tuned(
        json.loads(config.to_json_string()), methods.create({"name": "full"}), {}, {"head": head}
    )
    params = model.init(jax.random.key(0), list(model.shapes), dict.fromkeys(model.shapes))
    ours = mapping.to_tensors(
        {p: np.asarray(x) for p, x in params.items()}, model.names, prefix=True
    )
    several = 0
    for tensor, found in ours.items():
        wanted = theirs[tensor].numpy()
        assert found.shape == wanted.shape, tensor
        if found.ndim < 2:
            np.testing.assert_array_equal(found, wanted, err_msg=tensor)  # ones and zeros
        elif found.size > 2000:
            several += 1
            np.testing.assert_allclose(found.std(), wanted.std(), rtol=0.1, err_msg=tensor)
            assert abs(found.mean()) < 0.1 * found.std(), tensor
    assert several >= 10
