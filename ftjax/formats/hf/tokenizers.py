"""New tokenizers, trained on texts: what `tokenizers` gives, as each kind of model expects it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from ftjax.errors import UserError, nearest
from ftjax.process import transformers

# Model type → special tokens by their part; others are as of GPT-2.
SPECIAL: Mapping[str, Mapping[str, str]] = {
    "bert": {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "bart": {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"},
    "t5": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    "gpt2": {"unk": "<unk>", "eos": "<|endoftext|>"},
}
LIKE = {  # model types whose texts are begun and ended as another's
    **dict.fromkeys(("distilbert", "electra", "albert", "modernbert", "deberta-v2"), "bert"),
    **dict.fromkeys(("roberta", "mbart"), "bart"),
    **dict.fromkeys(("mt5", "marian"), "t5"),
}
FRAME = {  # of a text, and of a pair
    "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "bart": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "t5": ("$A </s>", "$A </s> $B </s>"),
}
TYPED = ("bert", "electra", "albert", "deberta-v2")  # models that tell a pair's texts apart
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))
CHINESE = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
KINDS = ("characters", "bpe", "wordpiece", "unigram")


def frame_of(model_type: str) -> str:
    """The model type whose special tokens a model type has: a key of `SPECIAL`."""
    kind = LIKE.get(model_type, model_type)
    return kind if kind in SPECIAL else "gpt2"


def train(kind: str, texts: Iterable[str], size: int, model_type: str) -> Tokenizer:
    """A tokenizer trained on texts.

    Args:
        kind: "characters" (all that the texts have, `size` is not read), "bpe" (of bytes, as
            GPT-2's), "wordpiece" (lower case, as BERT's) or "unigram" (as SentencePiece's, but
            Chinese characters stand alone).
        texts: read once.
        size: of the vocabulary, special tokens included.
        model_type: what it is for.

    Raises:
        UserError: another kind.
    """
    if kind not in KINDS:
        raise UserError(f"model.new.tokenizer={kind!r} is not known{nearest(kind, KINDS)}")
    frame = frame_of(model_type)
    special = [*SPECIAL[frame].values(), *(SENTINELS if frame == "t5" else ())]
    tokenizer = _characters(texts, special, frame) if kind == "characters" else None
    if tokenizer is None:
        tokenizer, trainer = _untrained(kind, size, special, SPECIAL[frame]["unk"])
        tokenizer.train_from_iterator(texts, trainer)
    if frame in FRAME:
        one, two = FRAME[frame]
        ids = [(token, tokenizer.token_to_id(token)) for token in SPECIAL[frame].values()]
        used = [(token, number) for token, number in ids if token in two]
        tokenizer.post_processor = TemplateProcessing(single=one, pair=two, special_tokens=used)
    return tokenizer


def _characters(texts: Iterable[str], special: list[str], frame: str) -> Tokenizer:
    known = sorted(set().union(*map(set, texts)))
    vocabulary = {token: number for number, token in enumerate([*special, *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[frame]["unk"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _untrained(
    kind: str, size: int, special: list[str], unknown: str
) -> tuple[Tokenizer, trainers.Trainer]:
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        return tokenizer, trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=alphabet
        )
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special)
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(CHINESE), "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=size, special_tokens=special, unk_token=unknown
    )


def save(tokenizer: Tokenizer, folder: Path, model_type: str) -> dict[str, Any]:
    """Writes a tokenizer as `transformers` reads it.

    Returns:
        What config.json says of it: the vocabulary's size, and ids of special tokens.
    """
    special = {f"{part}_token": token for part, token in SPECIAL[frame_of(model_type)].items()}
    types = ["token_type_ids"] if model_type in TYPED else []
    fast = transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", *types, "attention_mask"],
        clean_up_tokenization_spaces=False,
        **special,
    )
    fast.save_pretrained(folder)
    ids = {"pad_token_id": fast.pad_token_id, "bos_token_id": fast.bos_token_id}
    ids |= {"eos_token_id": fast.eos_token_id}
    # What else has no default, or that of published models.
    if model_type == "modernbert":
        ids |= {"cls_token_id": fast.cls_token_id, "sep_token_id": fast.sep_token_id}
    if frame_of(model_type) == "t5":
        ids["decoder_start_token_id"] = fast.pad_token_id
    if model_type == "marian":
        ids["forced_eos_token_id"] = fast.eos_token_id
    return {"vocab_size": len(fast), **ids}
