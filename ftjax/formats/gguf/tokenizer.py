"""The tokenizer inside a GGUF file, as one of transformers'."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftjax.errors import UserError, require
from ftjax.formats.gguf.file import TOKENS, read
from ftjax.formats.guard import reading
from ftjax.formats.jsons import check
from ftjax.options import Size
from ftjax.process import transformers

CONTROL, USER_DEFINED = 3, 4  # types of tokens that are found in text before it is split
CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
WORDS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LONGEST = 4096  # characters of a token, far above any; what they are made of is tried out
SPACE = "▁"  # how SentencePiece spells it
# Of texts, turns and messages: tokens that end what is written, besides those that a file names.
ENDS = ("eos", "eot", "eom")
END_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
)
HARMONY = (
    {"<|return|>", "<|call|>"},
    {"<|calls|>", "<|flush|>"},
)  # in which <|end|> ends no answer


@dataclass(frozen=True)
class Kind:
    """How text is cut into words, within which pairs of bytes are merged.

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


@dataclass(frozen=True)
class Fields:
    """Keys after `tokenizer.ggml.`, with examples."""

    model: str = "gpt2"
    pre: str = "smollm"
    token_type: list = ()
    scores: list = ()
    merges: list = ()
    add_bos_token: bool = True
    add_eos_token: bool = False
    add_space_prefix: bool = True


def build(path: Path) -> Any:
    """The tokenizer, with its special tokens and its chat template.

    The kind "gpt2" merges bytes within words, which are cut as llama.cpp defines for the file's
    `tokenizer.ggml.pre`. transformers' own reader cuts a "smollm" like a "gpt-2", so that spaces
    before a number come out otherwise than in the published tokenizer, which cuts off every digit.
    "qwen2" composes characters, as the published tokenizer does and llama.cpp does not.

    The kind "llama" is SentencePiece's, of pairs by score (Kudo and Richardson 2018).

    Raises:
        UserError: the file has none, or one of a kind that is not supported.
    """
    from tokenizers import AddedToken

    file = read(path)
    fields = {
        name.removeprefix("tokenizer.ggml."): value
        for name, value in file.metadata.items()
        if name.startswith("tokenizer.ggml.")
    }
    check(path, fields, Fields, "tokenizer.ggml.")
    tokens, types = file.tokens(), fields.get("token_type", [])
    longest = max(map(len, tokens), default=0)
    require(longest <= LONGEST, f"{path} has a token of {longest} characters")
    numbers = {name: file.token_id(name) for name in TOKENS}
    if max(number or 0 for number in numbers.values()) >= len(tokens):
        raise UserError(f"{path} lacks its tokenizer's tokens")
    special = {f"{name}_token": tokens[n] for name, n in numbers.items() if n is not None}
    tokenizer_of, starts = _maker(path, fields, file.architecture)
    template = file.metadata.get("tokenizer.chat_template")
    require(isinstance(template, str | None), f"{path}: tokenizer.chat_template is no text")
    most = file.get("context_length", Size)
    with reading(path, "has a tokenizer that cannot be read"):
        tokenizer = tokenizer_of(fields, special.get("unk_token"))
        kinds = dict(zip(tokens, types, strict=False))
        control = {token for token in tokens if kinds.get(token) == CONTROL} | {*special.values()}
        whole = [token for token in tokens if kinds.get(token) == USER_DEFINED]
        own = [token for token in tokens if token in control]
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in own])
        start = "bos_token" in special and fields.get("add_bos_token", starts)
        end = "eos_token" in special and fields.get("add_eos_token", False)
        if start or end:
            ends = [special["bos_token"]] * start, [special["eos_token"]] * end
            tokenizer.post_processor = _template(*ends, tokenizer)
        return transformers().PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            chat_template=template,
            model_max_length=most,
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", "attention_mask"],
            **special,
        )


def end_tokens(path: Path) -> list[int]:
    """Tokens that end what is written, as llama.cpp has them: the first is that of texts.

    The file names some (`tokenizer.ggml.eos_token_id`, `eot`, `eom`); others are known by what they
    are spelled.
    """
    file = read(path)
    named = [file.token(f"{end}_token_id") for end in ENDS]
    number = {token: i for i, token in enumerate(file.tokens())}
    harmony = any(marks <= number.keys() for marks in HARMONY)
    spelled = [t for t in END_TEXTS if t in number and not (harmony and t == "<|end|>")]
    ends = [*(end for end in named if end is not None), *(number[text] for text in spelled)]
    return list(dict.fromkeys(ends))


def _maker(path: Path, fields: Mapping[str, Any], architecture: str) -> tuple[Any, bool]:
    """What makes the tokenizer, and whether texts start with a token, if the file does not say."""
    model, kind = fields.get("model"), fields.get("pre")
    if model == "gpt2" and kind in KINDS:
        return _byte_level, KINDS[kind].starts
    # Phi 3's strips spaces after some tokens, of which the file says nothing.
    if model == "llama" and architecture != "phi3":
        return _sentencepiece, True
    raise UserError(
        f"{path}: a tokenizer of tokenizer.ggml.model={model!r}, tokenizer.ggml.pre={kind!r} is "
        f"not supported for {architecture} (supported: 'gpt2' with {', '.join(map(repr, KINDS))}; "
        "'llama', but for phi3)"
    )


def _byte_level(fields: Mapping[str, Any], unknown: str | None) -> Any:
    """Pairs of bytes (Radford et al. 2019); no text is unknown to it."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre

    kind = KINDS[fields["pre"]]
    vocabulary = {token: number for number, token in enumerate(fields["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=kind.whole))
    if kind.compose:
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre.Split(Regex(split), "isolated") for split in kind.splits]
    tokenizer.pre_tokenizer = pre.Sequence(
        [*cuts, pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(fields: Mapping[str, Any], unknown: str | None) -> Any:
    """Pairs of characters, the best-scored first; what has no token falls back to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    prefix = fields.get("add_space_prefix", True)
    vocabulary = {token: number for number, token in enumerate(fields["tokens"])}
    scores = dict(zip(fields["tokens"], fields["scores"], strict=True))
    merges = sorted(_pairs(vocabulary), key=lambda pair: -scores[pair[0] + pair[1]])
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    spaces = [normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE)] * prefix + spaces)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefix)
    return tokenizer


def _pairs(vocabulary: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """All pairs of tokens that make up a token."""
    for token in vocabulary:
        for at in range(1, len(token)):
            if token[:at] in vocabulary and token[at:] in vocabulary:
                yield token[:at], token[at:]


def _template(start: list[str], end: list[str], tokenizer: Any) -> Any:
    """What puts tokens before and after each text."""
    from tokenizers.processors import TemplateProcessing

    def around(text: str, kind: int) -> list[str]:
        return [f"{piece}:{kind}" for piece in (*start, text, *end)]

    return TemplateProcessing(
        single=around("$A", 0),
        pair=around("$A", 0) + around("$B", 1),
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in dict.fromkeys(start + end)],
    )
