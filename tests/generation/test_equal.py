"""Greedy and beam search equal transformers' generate, token for token."""

import jax
import numpy as np
import pytest
import torch

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.formats.folder import read_config
from ftjax.generation import beam, decode
from ftjax.generation.settings import Settings, from_hf
from tests.models.cases import CASES
from tests.models.random_models import by_layers
from tests.models.reference import Reference

TOKENS = 14
QUICK = {"xla_backend_optimization_level": 0}  # small models are compiled longer than run
# Case → settings of model.segments; prompts are longer than the windows of those that have them.
MODELS = {
    "gpt2": "unrolled",
    "gpt_neo": "scan",
    "llama": "scan",
    "mistral": "unrolled",
    "gemma": "scan",
    "gemma2": "unrolled",
    "gemma3": "scan",
    "qwen3": "scan",
    "mixtral": "scan",
    "t5": "scan",
    "bart": "scan",
    "mbart": "unrolled",
    "marian": "scan",
}
BEAMS = {"num_beams": 4, "num_return_sequences": 2}


class Pair:
    """A random model on both sides, and prompts."""

    def __init__(self, case: str, folder, mesh, segments: str) -> None:
        config = CASES[case]()
        self.sequences = config.is_encoder_decoder
        head = "seq2seq_lm" if self.sequences else "causal_lm"
        self.theirs = Reference.make(case, head, folder).model
        full = methods.create({"name": "full"})
        self.ours = build_tuned(read_config(folder), full, {"segments": segments}, {"head": head})
        self.params, _ = pretrained.load(folder, self.ours, mesh, jax.random.key(0))
        self.config = self.theirs.generation_config.to_dict() | {"max_length": None}
        sizes = np.array([9, 6, 2])[:, None]
        place = np.arange(9) if self.sequences else np.arange(9)[::-1]
        self.mask = (place < sizes).astype(np.int32)
        ids = np.random.default_rng(0).integers(5, 64, self.mask.shape)
        self.ids = np.where(self.mask, ids, config.pad_token_id)

    def settings(self, **changes) -> Settings:
        return from_hf(self.config, max_new_tokens=TOKENS, **changes)

    def generate(self, settings: Settings) -> np.ndarray:
        """(rows · sequences, tokens), ours."""
        search = beam if settings.num_beams > 1 else decode

        def run(params, batch):
            state = search.start(self.ours, settings, params, batch)
            return search.go_on(self.ours, settings, params, state, settings.max_new_tokens)

        numbers = np.arange(len(self.ids))
        batch = {"input_ids": self.ids, "attention_mask": self.mask, "numbers": numbers}
        state = jax.jit(run, compiler_options=QUICK)(self.params, batch)
        if search is decode:
            return np.asarray(state.tokens)
        best = np.asarray(state.done_tokens)[:, : settings.num_return_sequences]
        return best.reshape(-1, best.shape[-1])

    def reference(self, settings: Settings, alone: bool = False, **changes) -> np.ndarray:
        """The same by transformers; `alone`: a prompt at a time, without padding."""
        rows = []
        for ids, mask in (
            zip(self.ids, self.mask, strict=True) if alone else [(self.ids, self.mask)]
        ):
            ids, mask = np.atleast_2d(ids), np.atleast_2d(mask)
            if alone:
                ids, mask = ids[:, mask[0] > 0], mask[:, mask[0] > 0]
            out = self.theirs.generate(
                input_ids=torch.tensor(ids),
                attention_mask=torch.tensor(mask),
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,
                **changes,
            ).numpy()
            out = out[:, 1 if self.sequences else ids.shape[1] :]
            rows += list(np.pad(out, ((0, 0), (0, settings.max_new_tokens - out.shape[1]))))
        rows = np.array(rows)
        for row in rows:  # what follows an end is no token
            ended = np.flatnonzero(np.isin(row, settings.end))
            row[ended[0] + 1 if len(ended) else len(row) :] = settings.pad
        return rows


@pytest.mark.parametrize("case", by_layers(MODELS))
def test_greedy_and_beams(case, one_device, tmp_path, parity):
    pair = Pair(case, tmp_path, one_device, MODELS[case])
    head = pair.ours.model.head
    greedy = pair.settings()
    np.testing.assert_array_equal(pair.generate(greedy), pair.reference(greedy))
    parity.record(case, head, "greedy", "equal")
    beams = pair.settings(**BEAMS)
    np.testing.assert_array_equal(pair.generate(beams), pair.reference(beams, **BEAMS))
    parity.record(case, head, "beams", "equal")


VARIANTS = {
    "favours long": {**BEAMS, "length_penalty": 2.0, "early_stopping": True},
    "never stops early": {**BEAMS, "length_penalty": 0.5, "early_stopping": "never"},
    "beams with a penalty": {**BEAMS, "repetition_penalty": 1.4},
    "penalty": {"repetition_penalty": 1.4},
    "no bigram twice": {"no_repeat_ngram_size": 2},
    "beams without a run twice": {**BEAMS, "no_repeat_ngram_size": 3},
    "at least": {"min_new_tokens": 12, "eos_token_id": [3, 20, 31]},
    "several ends": {**BEAMS, "eos_token_id": [3, 20, 31]},
    "banned": {"suppress_tokens": [10, 11, 12, 44], "bad_words_ids": [[33]]},
    "forced": {**BEAMS, "forced_bos_token_id": 7, "forced_eos_token_id": 3},
}


@pytest.fixture(scope="module")
def gpt2(one_device, tmp_path_factory):
    return Pair("gpt2", tmp_path_factory.mktemp("gpt2"), one_device, "unrolled")


@pytest.fixture(scope="module")
def bart(one_device, tmp_path_factory):
    return Pair("bart", tmp_path_factory.mktemp("bart"), one_device, "unrolled")


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings(variant, gpt2, bart):
    asked = VARIANTS[variant]
    pair = bart if variant == "forced" else gpt2  # it comes first only where a text begins
    ours = {name: value for name, value in asked.items() if name in Settings.__dataclass_fields__}
    settings = from_hf({**pair.config, **asked}, max_new_tokens=TOKENS, **ours)
    # transformers' penalty and runs count padding, ours do not
    alone = {"repetition_penalty", "no_repeat_ngram_size"} & set(asked)
    wanted = pair.reference(settings, alone=bool(alone), **asked)
    np.testing.assert_array_equal(pair.generate(settings), wanted)
