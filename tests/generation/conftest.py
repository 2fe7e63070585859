"""A tiny decoder and a tiny encoder-decoder with tokenizers, as folders."""

import json

import jax
import numpy as np
import pytest

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.formats.hf import mapping
from tests.conftest import write_tokenizer
from tests.models.cases import CASES

CHAT = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} [SEP] "
    "{% endfor %}{% if add_generation_prompt %}the{% endif %}"
)


def write_model(folder, case: str, head: str, **changes):
    """A folder of a random model, seed 0, with the tests' WordPiece tokenizer."""
    config = json.loads(CASES[case]().to_json_string())
    config |= {"eos_token_id": 3, **changes}
    model = build_tuned(config, methods.create({"name": "full"}), {}, {"head": head})
    params = model.init(jax.random.key(0), list(model.shapes), dict.fromkeys(model.shapes))
    tensors = mapping.to_tensors(jax.tree.map(np.asarray, params), model.names, prefix=True)
    folder.mkdir(parents=True)
    mapping.write_folder(folder, folder, config, tensors)
    write_tokenizer(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": CHAT}))
    return folder


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    return write_model(folder, "llama", "causal_lm", num_hidden_layers=2)


@pytest.fixture(scope="session")
def sequences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "t5"
    return write_model(folder, "t5", "seq2seq_lm", num_layers=2)
