"""The tokenizer inside a GGUF file, as one of transformers'."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftjax.errors import UserError
from ftjax.formats.gguf import TOKENS, read

CONTROL, USER_DEFINED = 3, 4  # kinds of tokens that are found in text before it is split
CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
WORDS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Kind:
    """How text is cut into words, within which pairs are merged.

    Attributes:
        splits: expressions; each cuts what the one before left, at its matches.
        compose: characters are composed first (Unicode's form NFC).
        whole: a word that is a token stays whole, whether or not pairs merge into it.
        starts: texts start with the beginning-of-sequence token, if the file does not say.
    """

    splits: tuple[str, ...]
    compose: bool = False
    whole: bool = False
    starts: bool = False


GPT2 = f"{CONTRACTIONS}|{WORDS}"
MODERN = rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}%s|{LINES}"
LLAMA3 = Kind((MODERN % "{1,3}",), whole=True, starts=True)
# By `tokenizer.ggml.pre`.
KINDS = {
    "gpt-2": Kind((GPT2,)),
    "smollm": Kind((r"\p{N}", GPT2)),
    "llama-bpe": LLAMA3,
    "llama-v3": LLAMA3,
    "llama3": LLAMA3,
    "qwen2": Kind((MODERN % "",), compose=True),
}


def build(path: Path) -> Any:
    """The tokenizer, with its special tokens and its chat template.

    Words are cut as llama.cpp defines for the file's `tokenizer.ggml.pre`. transformers' own reader
    cuts a "smollm" like a "gpt-2", so that spaces before a number come out otherwise than in the
    published tokenizer, which cuts off every digit. "qwen2" composes characters, as the published
    tokenizer does and llama.cpp does not.

    Raises:
        UserError: the file has none, or one of a kind that is not supported.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre
    from transformers import PreTrainedTokenizerFast

    file = read(path)
    said = {
        name.removeprefix("tokenizer.ggml."): value
        for name, value in file.metadata.items()
        if name.startswith("tokenizer.ggml.")
    }
    kind, tokens = _kind(path, said), said["tokens"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in said["merges"]]
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=kind.whole)
    except Exception as error:
        raise UserError(f"{path}: the tokenizer's merges cannot be read: {error}") from error
    tokenizer = Tokenizer(model)
    if kind.compose:
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre.Split(Regex(split), "isolated") for split in kind.splits]
    tokenizer.pre_tokenizer = pre.Sequence(
        [*cuts, pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    numbers = {name: file.token_id(name) for name in TOKENS}
    special = {f"{name}_token": tokens[n] for name, n in numbers.items() if n is not None}
    sorts = dict(zip(tokens, said.get("token_type", ()), strict=False))
    control = [t for t in tokens if sorts.get(t) == CONTROL or t in special.values()]
    whole = [t for t in tokens if sorts.get(t) == USER_DEFINED and t not in control]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])
    start = "bos_token" in special and said.get("add_bos_token", kind.starts)
    end = "eos_token" in special and said.get("add_eos_token", False)
    if start or end:
        ends = [special["bos_token"]] * start, [special["eos_token"]] * end
        tokenizer.post_processor = _template(*ends, vocabulary)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=file.metadata.get("tokenizer.chat_template"),
        model_max_length=file.get("context_length"),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )


def _kind(path: Path, said: Mapping[str, Any]) -> Kind:
    model, kind = said.get("model"), said.get("pre")
    if model != "gpt2" or kind not in KINDS:
        raise UserError(
            f"{path}: a tokenizer of the kind tokenizer.ggml.model={model!r}, "
            f"tokenizer.ggml.pre={kind!r} is not supported (supported: 'gpt2', with any of "
            f"{', '.join(map(repr, KINDS))})"
        )
    if not {"tokens", "merges"} <= set(said):
        raise UserError(f"{path} lacks the tokens or merges of its tokenizer")
    return KINDS[kind]


def _template(start: list[str], end: list[str], vocabulary: Mapping[str, int]) -> Any:
    """What puts tokens before and after each text."""
    from tokenizers.processors import TemplateProcessing

    def around(text: str, kind: int) -> list[str]:
        return [f"{piece}:{kind}" for piece in (*start, text, *end)]

    return TemplateProcessing(
        single=around("$A", 0),
        pair=around("$A", 0) + around("$B", 1),
        special_tokens=[(token, vocabulary[token]) for token in dict.fromkeys(start + end)],
    )
