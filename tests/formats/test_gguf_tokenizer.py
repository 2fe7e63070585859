"""Tokenizers inside GGUF files cut text as published ones do; SmolLM2 as a whole."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats.export import write_export
from ftjax.formats.folder import load_tokenizer, locate, read_config
from ftjax.formats.gguf.file import read
from ftjax.generation import settings
from tests.formats.test_gguf import entries_of, stored, write
from tests.models.cases import DECODER

FULL = methods.create({"name": "full"})
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
TEXTS = [
    "The capital of France is",
    "it's we'll I'LL don't, 3.14 of 100000 people in 2024",
    "naïve Ünïcode — 日本語 🙂",
    "  two\n\n\tlines \r\n  x = y[0]  ",
    "<|endoftext|>user<|im_end|>\n",
]


def write_vocabulary(path: Path, kind: str, **changes) -> Path:
    """A small model with a byte-level vocabulary learned from `TEXTS`."""
    learned = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|im_end|>"]
    learned.train_from_iterator(TEXTS * 3, vocab_size=400, special_tokens=special)
    tokens = [learned.id_to_token(i) for i in range(learned.get_vocab_size())]
    learned.save_model(str(path.parent))
    lines = (path.parent / "merges.txt").read_text(encoding="utf-8").splitlines()
    entries = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [line for line in lines if not line.startswith("#")],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
        **changes,
    }
    sizes = {**DECODER, "vocab_size": len(tokens)}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    entries |= entries_of("llama", model.config)
    return write(path, "llama", entries, stored("llama", model))


@pytest.mark.parametrize(
    ("more", "changes", "wanted"),
    [
        (["<end_of_turn>"], {}, ["<|im_end|>", "<end_of_turn>", "<|endoftext|>"]),
        (["halt"], {"tokenizer.ggml.eot_token_id": -1}, ["<|im_end|>", "halt", "<|endoftext|>"]),
        (["halt"], {"tokenizer.ggml.eom_token_id": -1}, ["<|im_end|>", "halt", "<|endoftext|>"]),
        (["halt"], {}, ["<|im_end|>", "<|endoftext|>"]),
        (["<|end|>"], {}, ["<|im_end|>", "<|end|>", "<|endoftext|>"]),
        # As of gpt-oss, whose <|end|> ends what comes before an answer.
        (
            ["<|end|>", "<|return|>", "<|call|>"],
            {},
            ["<|im_end|>", "<|return|>", "<|call|>", "<|endoftext|>"],
        ),
    ],
)
def test_what_ends_a_turn_ends_a_text(tmp_path, more, changes, wanted):
    """By llama.cpp's rules (llama-vocab.cpp, special_eog_ids)."""
    plain = read(write_vocabulary(tmp_path / "plain.gguf", "gpt-2")).metadata
    tokens = [*plain["tokenizer.ggml.tokens"], *more]
    entries = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*plain["tokenizer.ggml.token_type"], *[3] * len(more)],
        **{key: len(tokens) - 1 for key in changes},
    }
    file = write_vocabulary(tmp_path / "model.gguf", "gpt-2", **entries)
    ends = settings.of_folder(file).end
    assert tokens[ends[0]] == "<|im_end|>" and {tokens[i] for i in ends} == {*wanted}
    assert len(ends) == len(wanted)


def reference(file: Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)


@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe", "qwen2"])
def test_words_are_cut_as_transformers_cuts_them(tmp_path, kind):
    file = write_vocabulary(tmp_path / "model.gguf", kind, **{"tokenizer.ggml.add_bos_token": True})
    ours, theirs = load_tokenizer(file), reference(file)
    for text in TEXTS:
        found = ours(text)["input_ids"]
        assert found == [0, *theirs(text, add_special_tokens=False)["input_ids"]]
        assert ours.decode(found[1:]) == text
    pair = ours("a", "b")["input_ids"]
    assert pair == [*ours("a")["input_ids"], *ours("b")["input_ids"]]


def test_qwen_composes_characters_as_its_published_tokenizer(tmp_path):
    file = write_vocabulary(tmp_path / "model.gguf", "qwen2")
    said = read(file).metadata
    vocabulary = {token: i for i, token in enumerate(said["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split()) for merge in said["tokenizer.ggml.merges"]]
    published = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    for text in ("nai\u0308ve U\u0308 e\u0301", *TEXTS[:-1]):
        assert load_tokenizer(file)(text)["input_ids"] == published(text)["input_ids"]


def merged(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """SentencePiece by hand: merge the neighbours that make the best token, leftmost first."""
    numbers, pieces = {token: i for i, token in enumerate(tokens)}, list(text.replace(" ", "▁"))
    while True:
        pairs = [numbers.get(a + b) for a, b in pairwise(pieces)]
        known = [(-scores[number], at) for at, number in enumerate(pairs) if number is not None]
        if not known:
            break
        _, at = min(known)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    spelled = [[p] if p in numbers else [f"<0x{b:02X}>" for b in p.encode()] for p in pieces]
    return [numbers[piece] for word in spelled for piece in word]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_merges_by_score(tmp_path, prefix):
    learned = Tokenizer(BPE())
    outer = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(vocab_size=400, special_tokens=[*outer, "<turn>"], show_progress=False)
    learned.train_from_iterator([text.replace(" ", "▁") for text in TEXTS[:2] * 3], trainer)
    tokens = [learned.id_to_token(i) for i in range(learned.get_vocab_size())]
    scores = [-float(i) for i in range(len(tokens))]
    entries = {
        "llama.context_length": 64,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 4, *[1] * (len(tokens) - 260)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    tensors = {"token_embd.weight": np.ones((len(tokens), 2), "f")}
    tokenizer = load_tokenizer(write(tmp_path / "model.gguf", "llama", entries, tensors))
    for text in TEXTS[:4]:
        wanted = merged(" " * prefix + text, tokens, scores)
        assert max(wanted) > 259
        assert tokenizer(text)["input_ids"] == [1, *wanted]
        assert tokenizer.decode(wanted) == text
        turn = [tokens.index("<turn>"), *wanted, 2]
        assert tokenizer(f"<turn>{text}</s>", add_special_tokens=False)["input_ids"] == turn


@pytest.fixture(scope="module")
def smollm2():
    """The packaged model's file and transformers' reading of its tokenizer."""
    file = locate("smollm2")
    with pytest.MonkeyPatch.context() as patch:  # parsed once for all, to save time
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, cache(getattr(gguf, name)))
        yield file, reference(file)


def test_smollm2_tokenizer(smollm2):
    file, theirs = smollm2
    ours = load_tokenizer(file)
    published = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    cut = ours.backend_tokenizer.pre_tokenizer
    for text in TEXTS:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
        assert cut.pre_tokenize_str(text) == published.pre_tokenize_str(text)
    # transformers does not cut off digits first.
    assert ours.tokenize("in  2024") == ["in", "ĠĠ", "2", "0", "2", "4"]
    messages = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]
    found, wanted = (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for tokenizer in (ours, theirs)
    )
    assert found == wanted
    assert "<|im_start|>user\nHello?<|im_end|>" in found
    assert ours.eos_token == "<|im_end|>"


def test_smollm2_says_paris_with_transformers_logits(smollm2, one_device):
    file, tokenizer = smollm2
    model = build_tuned(read_config(file), FULL, {"segments": "scan"}, {"head": "causal_lm"})
    params, absent = pretrained.load(file, model, one_device, jax.random.key(0))
    assert absent == []
    inputs = tokenizer("The capital of France is", return_tensors="np")
    found = np.asarray(jax.jit(model.apply)(params, dict(inputs)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    with torch.no_grad():
        wanted = theirs(torch.tensor(inputs["input_ids"])).logits.numpy()
    assert load_tokenizer(file).decode(found[0, -1].argmax()) == " Paris"
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())


def test_export_of_a_gguf_model_is_a_whole_folder(tmp_path, one_device):
    file = write_vocabulary(tmp_path / "model.gguf", "smollm")
    head = {"head": "classification", "labels": 2, "pooling": "cls"}
    model = build_tuned(read_config(file), FULL, {}, head)
    params, absent = pretrained.load(file, model, one_device, jax.random.key(0))
    assert absent == ["classifier/kernel"]
    write_export("hf", tmp_path / "out", file, model, params, ("no", "yes"))
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    tokenizer = load_tokenizer(file)
    for text in TEXTS:
        assert exported(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert exported.chat_template == TEMPLATE
    assert exported.pad_token == "<|endoftext|>"
    inputs = tokenizer(TEXTS[0], return_tensors="np")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        wanted = theirs(torch.tensor(inputs["input_ids"])).logits.numpy()
    found = jax.jit(model.apply)(params, dict(inputs))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_unknown_kinds_are_said(tmp_path):
    file = write_vocabulary(tmp_path / "model.gguf", "chatglm-bpe")
    with pytest.raises(UserError, match="'chatglm-bpe' is not supported .*'smollm'"):
        load_tokenizer(file)
    changes = {"tokenizer.ggml.merges": ["absent pair"]}
    with pytest.raises(UserError, match="has a tokenizer that cannot be read: .*absent"):
        load_tokenizer(write_vocabulary(tmp_path / "pairs.gguf", "gpt-2", **changes))
    with pytest.raises(UserError, match="lacks its tokenizer's tokens"):
        load_tokenizer(write(tmp_path / "none.gguf", "llama", {}, {"x": np.ones((2, 2), "f")}))
