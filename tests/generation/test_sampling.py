"""Sampled tokens come as often as transformers' processors and softmax say."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from transformers.generation import logits_process as theirs

from ftjax.errors import UserError
from ftjax.generation.choice import adjust, choose, truncated
from ftjax.generation.settings import Settings, from_hf, of_folder
from tests.models.cases import CASES as MODELS

COUNT = 40_000
CASES = {
    "plain": ({"temperature": 1.0}, []),
    "temperature": ({"temperature": 0.6}, [theirs.TemperatureLogitsWarper(0.6)]),
    "top_k": ({"temperature": 1.0, "top_k": 5}, [theirs.TopKLogitsWarper(5)]),
    "top_p": ({"temperature": 1.0, "top_p": 0.8}, [theirs.TopPLogitsWarper(0.8)]),
    "min_p": ({"temperature": 1.0, "min_p": 0.1}, [theirs.MinPLogitsWarper(0.1)]),
    "all": (
        {"temperature": 1.5, "top_k": 9, "top_p": 0.85, "min_p": 0.05},
        [
            theirs.TemperatureLogitsWarper(1.5),
            theirs.TopKLogitsWarper(9),
            theirs.TopPLogitsWarper(0.85),
            theirs.MinPLogitsWarper(0.05),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_distribution(case):
    asked, processors = CASES[case]
    logits = 1.5 * np.random.default_rng(0).normal(size=12).astype(np.float32)
    scores = torch.tensor(logits)[None]
    for processor in processors:
        scores = processor(None, scores)
    wanted = torch.softmax(scores, -1)[0].double().numpy()
    keys = jax.random.split(jax.random.key(1), COUNT)
    many = np.broadcast_to(logits, (COUNT, len(logits)))
    tokens = jax.jit(choose, static_argnums=0)(Settings(**asked), many, keys)
    found = np.bincount(tokens, minlength=len(logits))
    possible = wanted > 0
    assert found[~possible].sum() == 0
    wanted = wanted[possible] / wanted.sum()
    assert scipy.stats.chisquare(found[possible], COUNT * wanted).pvalue > 1e-3


@pytest.mark.parametrize("top_k", [0, 40])
@pytest.mark.parametrize("step", [0.0, 0.5])  # of tied logits
def test_what_is_sampled_from_is_what_transformers_keeps(step, top_k):
    """Of each logit as many tokens: which of equal ones, torch's sort leaves open."""
    random = np.random.default_rng(0)
    logits = random.choice([0.1, 1, 5], (40, 1)) * random.normal(size=(40, 300))
    logits = np.float32(np.round(logits / step) * step if step else logits)

    def kept(logits, top_p):
        settings = Settings(temperature=1.0, top_k=top_k, top_p=top_p)
        return jax.jit(truncated, static_argnums=0)(settings, logits)

    for top_p in (0.05, 0.31, 0.77, 0.93, 0.9999):
        scores = torch.tensor(logits)
        if top_k:
            scores = theirs.TopKLogitsWarper(top_k)(None, scores)
        wanted = theirs.TopPLogitsWarper(top_p)(None, scores).numpy()
        found = np.asarray(kept(logits, top_p))
        before = np.cumsum(-np.sort(-scipy.special.softmax(scores.double().numpy(), 1)), 1)
        clear = (np.abs(before - top_p) > 1e-6).all(1)  # not for rounding to decide
        assert clear.sum() > 20
        found, wanted = found[clear], wanted[clear]
        np.testing.assert_array_equal(np.sort(found, 1), np.sort(wanted, 1), err_msg=str(top_p))
        assert ((found == logits[clear]) | np.isinf(found)).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"temperature": -1.0}, "temperature"),
        ({"num_beams": 2, "temperature": 1.0}, "temperature to 0"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"num_beams": 2, "num_return_sequences": 3}, "exceeds num_beams"),
        ({"early_stopping": "always"}, "early_stopping"),
    ],
)
def test_settings_that_make_no_sense(asked, message):
    with pytest.raises(UserError, match=message):
        Settings(**asked)


def test_generation_config_that_is_not_implemented():
    with pytest.raises(UserError, match="typical_p=0.9"):
        from_hf({"typical_p": 0.9})
    assert from_hf({"typical_p": 1.0, "do_sample": True}).top_k == 50


def test_a_token_of_minus_one_is_none():
    """Older files have it; transformers bans nothing by it."""
    none = {"eos_token_id": -1, "forced_bos_token_id": -1, "bad_words_ids": [[-1]]}
    found = from_hf({**none, "suppress_tokens": [-1, 3]})
    assert (found.end, found.forced_first, found.banned) == ((), None, (3,))


@pytest.mark.parametrize("key", ["max_new_tokens", "num_beams", "no_repeat_ngram_size"])
def test_files_ask_for_no_room_without_end(key, tmp_path):
    (tmp_path / "config.json").write_text(MODELS["llama"]().to_json_string())
    (tmp_path / "generation_config.json").write_text(json.dumps({key: 10**9}))
    with pytest.raises(UserError, match=f"generation_config.json: {key}=1000000000 must be"):
        of_folder(tmp_path)


def test_longer_runs_than_there_are_tokens_cannot_come_twice():
    settings = Settings(no_repeat_ngram_size=9, max_new_tokens=4)
    before, tokens = jnp.ones((1, 2), jnp.int32), jnp.ones((1, 4), jnp.int32)
    logits = jnp.arange(5.0)[None]
    assert (adjust(settings, logits, before, tokens, jnp.asarray(3)) == logits).all()
