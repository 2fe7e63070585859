"""Guessed tokens change nothing but speed: greedy and sampled texts are those of token by token."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats.folder import read_config
from ftjax.generation import decode, speculation
from ftjax.generation.load import make_generator, open_model
from ftjax.generation.settings import Settings
from tests.generation.conftest import write_model

QUICK = {"xla_backend_optimization_level": 0}
TOKENS = 24


@pytest.fixture(scope="module")
def model(decoder, one_device):
    return open_model(str(decoder), one_device)


def batch_of(rows: int = 3) -> dict[str, np.ndarray]:
    """Prompts of different lengths, which repeat themselves, so that something is looked up."""
    rng = np.random.default_rng(1)
    ids = np.tile(rng.integers(5, 30, (rows, 4)), 3)
    mask = (np.arange(12)[::-1] < np.array([12, 7, 2])[:rows, None]).astype(np.int32)
    return {"input_ids": ids * mask, "attention_mask": mask, "numbers": np.arange(rows)}


def written(module, model, settings, *draft, params=None) -> decode.State:
    tuned, given = model[:2]

    def run(params, batch):
        state = module.start(tuned, settings, *draft, params, batch)
        return module.go_on(tuned, settings, *draft, params, state, settings.max_new_tokens)

    return jax.jit(run, compiler_options=QUICK)(params or given, batch_of())


CASES = {
    "greedy": {},
    "ends": {"end": (3, 9, 17, 21, 40), "min_new_tokens": 3},
    "adjusted": {"repetition_penalty": 1.3, "banned": (10, 11)},
    "sampled": {"temperature": 0.7, "top_k": 5, "seed": 4},
}


@pytest.mark.parametrize("case", CASES)
def test_looked_up(case, model):
    plain = Settings(max_new_tokens=TOKENS, **CASES[case])
    guessing = Settings(max_new_tokens=TOKENS, prompt_lookup_num_tokens=4, **CASES[case])
    expected = written(decode, model, plain)
    params = speculation.Params(model[1])
    state = written(speculation, model, guessing, None, params=params)
    np.testing.assert_array_equal(state.tokens, expected.tokens)
    np.testing.assert_allclose(state.likelihood, expected.likelihood, rtol=1e-4)
    np.testing.assert_array_equal(state.finished, expected.finished)


@pytest.mark.parametrize("same", [True, False])
def test_drafted(same, model, one_device, tmp_path):
    """A draft model that is the model itself is always right, another nearly never."""
    other = write_model(tmp_path / "draft", "llama", "causal_lm", num_hidden_layers=1)
    draft = model if same else open_model(str(other), one_device)
    plain = Settings(max_new_tokens=TOKENS, end=(3,))
    guessing = Settings(max_new_tokens=TOKENS, end=(3,), num_assistant_tokens=3)
    params = speculation.Params(model[1], draft[1])
    state = written(speculation, model, guessing, draft[0], params=params)
    np.testing.assert_array_equal(state.tokens, written(decode, model, plain).tokens)


def test_passes_of_the_model_are_fewer(model, monkeypatch):
    """By its own guesses the model is run once for four tokens."""
    passes = []
    read = speculation.logits_after

    def counted(*args):
        jax.debug.callback(lambda: passes.append(1))
        return read(*args)

    monkeypatch.setattr(speculation, "logits_after", counted)
    settings = Settings(max_new_tokens=TOKENS + 1, num_assistant_tokens=3)
    params = speculation.Params(model[1], model[1])
    jax.block_until_ready(written(speculation, model, settings, model[0], params=params))
    jax.effects_barrier()
    assert len(passes) == TOKENS / 4


def test_places_are_the_latest_of_the_longest():
    ids = jnp.array([[1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3], [5, 6, 5, 6, 5, 6, 5, 6, 5, 6, 5]])
    nothing = jnp.array([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]])
    tokens = jnp.zeros((2, 4), jnp.int32)

    def looked_up(ids, tokens, count):
        prompt = decode.Prompt(ids, ids, ids[:, 0], jnp.asarray(11))
        state = decode.State(prompt, None, tokens, jnp.asarray(count), None, None, None)
        return speculation.looked_up(state, 4)

    guessed, known = looked_up(ids, tokens, 0)
    np.testing.assert_array_equal(known, [True, True])
    np.testing.assert_array_equal(guessed, [[7, 9, 2, 3], [6, 5, 6, 5]])
    guessed, known = looked_up(ids, tokens.at[:, 0].set(jnp.array([7, 30])), 1)
    np.testing.assert_array_equal(known, [True, False])
    np.testing.assert_array_equal(guessed[0], [9, 2, 3, 8])
    assert not looked_up(nothing, tokens[:1], 0)[1].any()


def test_texts(decoder, one_device, model):
    prompts = ["the film the film the", "a"]
    make = partial(make_generator, *model)
    plain = make(changes={"max_new_tokens": 20})
    for changes, draft in (({"prompt_lookup_num_tokens": 3}, None), ({}, model)):
        guessing = make(changes={"max_new_tokens": 20, **changes}, draft=draft)
        assert guessing(prompts) == plain(prompts)
        assert list(guessing.stream(prompts))[-1] == list(plain.stream(prompts))[-1]


@pytest.mark.parametrize("case", ["mistral", "t5"])
def test_refused(case, one_device, tmp_path):
    head = "seq2seq_lm" if case == "t5" else "causal_lm"
    folder = write_model(tmp_path / case, case, head)
    frozen = methods.create({"name": "prompting"})
    tuned = build_tuned(read_config(folder), frozen, {}, {"head": head})
    with pytest.raises(UserError, match="decoders alone|sliding window"):
        speculation.check(tuned, Settings(prompt_lookup_num_tokens=2), None)


def test_settings_are_refused():
    with pytest.raises(UserError, match="do not go together"):
        Settings(prompt_lookup_num_tokens=2, num_assistant_tokens=2)
    with pytest.raises(UserError, match="beam search"):
        Settings(prompt_lookup_num_tokens=2, num_beams=2)
