"""Texts, streams, stop strings, chats, seeds, and the command."""

import copy
import json
from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.commands.entry import main
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer, read_config
from ftjax.generation.settings import Settings
from ftjax.generation.text import Generator
from ftjax.methods import METHODS
from tests.conftest import ftjax, perturbed
from tests.covering import product
from tests.generation.conftest import write_model
from tests.methods.bases import ALIKE, WITHIN

PROMPTS = ["the film was", "a very good story and", "bad"]


def opened(folder, mesh, method=None, head="causal_lm"):
    """A model under a method, its trainable leaves moved."""
    method = methods.create(method or {"name": "prompting"})
    model = build_tuned(read_config(folder), method, {}, {"head": head})
    params, _ = pretrained.load(folder, model, mesh, jax.random.key(0))
    return model, perturbed(params, model)


@pytest.fixture(scope="module")
def make(decoder, one_device):
    model, params = opened(decoder, one_device)
    tokenizer = load_tokenizer(decoder)

    def make(stop=(), **asked):
        settings = Settings(**{"max_new_tokens": 12, "end": (3,), **asked})
        return Generator(model, params, tokenizer, settings, stop)

    return make


def naive(model, params, batch, count: int) -> np.ndarray:
    """Greedy tokens without a cache: the whole text anew for each."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    room = np.zeros((len(ids), count), ids.dtype)
    ids, length = np.concatenate([ids, room], 1), ids.shape[1]
    mask = np.concatenate([mask, np.ones_like(room)], 1)
    places = np.maximum(mask.cumsum(1) - 1, 0)
    forward = jax.jit(model.apply)
    for column in range(length, length + count):
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
        ids[:, column] = np.asarray(forward(params, inputs))[:, column - 1].argmax(-1)
    return ids[:, length:]


def greedy(model, params, tokenizer, count: int):
    """Greedy texts, and the tokens they must have."""
    generator = Generator(model, params, tokenizer, Settings(max_new_tokens=count))
    wanted = naive(model, params, generator.encode(PROMPTS), count)
    texts = [texts[0] for texts in generator(PROMPTS)]
    return texts, tokenizer.batch_decode(wanted, skip_special_tokens=True)


# Llama has no biases; UniPELT's gates are the prompt's in generation, and of all tokens without.
NOT_HERE = ("prompting", "bitfit", "unipelt")
SMALL = {
    "regex": {"patterns": ((r".*/attention/.*", "attention"),)},
    "galore": {"rank": 8},
    "compacter": {"reduction": 4},
    "compacter_pp": {"reduction": 4},
    "qlora": {"bits": "int8"},
}
NAMES = [(name,) for name in METHODS if name not in NOT_HERE]
FEW = [each for each in NAMES if each[0] not in ALIKE | WITHIN]


@pytest.mark.parametrize("name", product(NAMES, FEW))
def test_every_method_generates_as_without_a_cache(name, decoder, one_device):
    segments = {"segments": "scan"} if name == "lora" else {}
    method = methods.create({"name": name, **SMALL.get(name, {})})
    model = build_tuned(read_config(decoder), method, segments, {"head": "causal_lm"})
    params = perturbed(pretrained.load(decoder, model, one_device, jax.random.key(0))[0], model)
    tokenizer = load_tokenizer(decoder)
    found, wanted = greedy(model, params, tokenizer, 8)
    assert found == wanted
    if name == "lora":
        plain = build_tuned(
            read_config(decoder), methods.create({"name": "full"}), segments, {"head": "causal_lm"}
        )
        settings = Settings(max_new_tokens=8)
        merged = Generator(plain, method.merge(model.base, params), tokenizer, settings)
        assert [texts[0] for texts in merged(PROMPTS)] == found


def test_streams_add_up(make):
    whole = [texts[0] for texts in make()(PROMPTS)]
    for every in (1, 5):
        parts = list(make().stream(PROMPTS, every))
        assert parts[-1] == whole
        for before, after in pairwise(parts):
            assert all(b.startswith(a) for a, b in zip(before, after, strict=True))


def test_stop_strings_end_texts_and_are_held_back(make):
    whole = [texts[0] for texts in make()(PROMPTS)]
    word = whole[0].split()[3]
    found = [texts[0] for texts in make(stop=[word])(PROMPTS)]
    assert found == [text.split(word)[0] for text in whole]
    for texts in make(stop=[word]).stream(PROMPTS):
        assert not any(text.endswith(word[:size]) for text in texts for size in (len(word),))


def test_stop_strings_with_special_tokens(make, decoder):
    """A special token is found where it stands, and is no part of what is returned."""
    tokenizer, whole = load_tokenizer(decoder), make()(PROMPTS)[0][0].split()
    word = whole[3]
    tokenizer.add_special_tokens({"additional_special_tokens": [word]})

    def said(*stop):
        generator = make(stop=stop)
        generator.encode = replace(generator.encode, tokenizer=tokenizer)
        return generator(PROMPTS)[0][0]

    first = whole.index(word)
    assert said(word).strip() == " ".join(whole[:first])
    assert said(f"{whole[first - 1]} {word}").strip() == " ".join(whole[: first - 1])
    assert word not in said().split()  # and it is not shown where nothing stops at it


def test_chats_that_a_template_refuses(make):
    generator = make()
    raises = "{{ raise_exception('no system') }}"
    tokenizer = copy.copy(generator.encode.tokenizer)
    tokenizer.chat_template = raises
    generator.encode = replace(generator.encode, tokenizer=tokenizer)
    with pytest.raises(UserError, match="prompt 2: the chat template says: no system"):
        generator(["good", [{"role": "user", "content": "good"}]])


def test_seeds(make):
    asked = {"temperature": 1.0, "num_return_sequences": 3}
    first = make(**asked, seed=1)(PROMPTS)
    assert make(**asked, seed=1)(PROMPTS) == first
    assert make(**asked, seed=2)(PROMPTS) != first
    assert len(set(first[0])) > 1
    # Neither the other prompts of a batch nor its padding matter.
    assert make(**asked, seed=1)(PROMPTS[2:], [2]) == first[2:]


def test_chats_follow_the_template(make, decoder):
    chat = [{"role": "the", "content": "film was"}]
    tokenizer = load_tokenizer(decoder)
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "the film was [SEP] "
    # What the template says, with no special tokens but its own.
    ids = make().encode([chat])["input_ids"][0]
    wanted = tokenizer("the film was [SEP] the", add_special_tokens=False)["input_ids"]
    assert list(ids[ids > 0]) == wanted


def test_an_encoder_decoder_reads_then_writes(sequences, one_device):
    model, params = opened(sequences, one_device, head="seq2seq_lm")
    tokenizer = load_tokenizer(sequences)
    generator = Generator(model, params, tokenizer, Settings(max_new_tokens=6))
    batch = generator.encode(PROMPTS)
    written, forward = np.zeros((3, 7), np.int32), jax.jit(model.apply)
    for column in range(6):
        logits = forward(params, {**batch, "decoder_input_ids": written})
        written[:, column + 1] = np.asarray(logits)[:, column].argmax(-1)
    wanted = tokenizer.batch_decode(written[:, 1:], skip_special_tokens=True)
    assert [texts[0] for texts in generator(PROMPTS)] == wanted


def test_prompts_that_do_not_fit(make, decoder, one_device):
    with pytest.raises(UserError, match="prompt 2 is empty"):
        tokenizer = load_tokenizer(decoder)
        tokenizer.backend_tokenizer.post_processor = None
        model, params = opened(decoder, one_device)
        Generator(model, params, tokenizer, Settings())(["good", ""])
    with pytest.raises(UserError, match="language-model head"):
        model, params = opened(decoder, one_device, head="classification")
        Generator(model, params, load_tokenizer(decoder), Settings())(PROMPTS)
    with pytest.raises(UserError, match="beam search"):
        make(stop=["film"], num_beams=2)


@pytest.mark.parametrize(("case", "head"), [("gpt2", "causal_lm"), ("marian", "seq2seq_lm")])
def test_more_tokens_than_positions(case, head, one_device, tmp_path):
    model, params = opened(write_model(tmp_path / case, case, head), one_device, head=head)
    generator = Generator(
        model, params, load_tokenizer(tmp_path / case), Settings(max_new_tokens=9)
    )
    with pytest.raises(UserError, match="positions"):
        generator(["good " * 60])


def test_command(decoder, make, tmp_path):
    whole = [texts[0] for texts in make()(PROMPTS)]
    common = ("generate", "--model", decoder, "--max-new-tokens", 12)
    printed = ftjax(*common, *(x for prompt in PROMPTS for x in ("--prompt", prompt))).stdout
    assert printed == "".join(f"{text}\n" for text in whole)
    rows = tmp_path / "in.jsonl"
    rows.write_text(
        "".join(json.dumps({"id": i, "prompt": p}) + "\n" for i, p in enumerate(PROMPTS))
    )
    ftjax(*common, "--input", rows, "--output", tmp_path / "out.jsonl", "--batch-size", 2)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in written] == whole and [row["id"] for row in written] == [0, 1, 2]
    assert ftjax(*common, "--chat", input="film was\n\nbad\n").stdout.count("\n") == 2


def test_bad_input_to_the_command(decoder, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # as if started with them
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"prompt": "good"}\n{"text": "bad"}\n')
    for arguments, message in (
        (("--model", decoder), "--prompt"),
        (("--model", decoder, "--prompt", "good", "--output", rows), "--input"),
        (("--model", decoder, "--input", rows), "in.jsonl, row 2: needs 'prompt'"),
        (("--model", tiny, "--prompt", "good"), "bert does not generate"),
    ):
        assert main(["generate", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
