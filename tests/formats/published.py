"""Tokenizers in the form in which each family publishes its own, of small vocabularies."""

import io
import json
from functools import cache
from pathlib import Path

import sentencepiece
from tokenizers import ByteLevelBPETokenizer

from tests.conftest import WORDS

TEXTS = [
    "the film was very good, and the music lovely",
    "a dull plot or an awful actor: it is not one story but two",
    "so poor a scene (too bad!), Résumé 42 of 1,000",
    "The  movie was great.",
]
CONTROL = ("[CLS]", "[SEP]", "[MASK]")
T5_IDS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
LLAMA_IDS = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
PAIRS = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 360}
PAIRS |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
LLAMA = {**LLAMA_IDS, **PAIRS}
GEMMA_IDS = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
GEMMA_PIECES = {"bos_piece": "<bos>", "eos_piece": "<eos>", "add_dummy_prefix": False}
GEMMA = {**GEMMA_IDS, **GEMMA_PIECES, **PAIRS}
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# Case → file of SentencePiece's, how it was trained, tokenizer_config.json.
PIECES = {
    "albert": (
        "spiece.model",
        {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": CONTROL},
        {},
    ),
    "deberta-v3": (
        "spm.model",
        {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "bos_piece": "[CLS]",
         "eos_piece": "[SEP]", "pad_piece": "[PAD]", "unk_piece": "[UNK]"},
        {"do_lower_case": False, "vocab_type": "spm"},
    ),
    "xlnet": (
        "spiece.model",
        {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1,
         "control_symbols": ["<cls>", "<sep>", "<pad>", "<mask>", "<eod>"],
         "user_defined_symbols": ["<eop>"]},
        {},
    ),
    "xlm-roberta": ("sentencepiece.bpe.model", LLAMA_IDS, {}),
    "mbart": ("sentencepiece.bpe.model", LLAMA_IDS, {"src_lang": "en_XX", "tgt_lang": "ro_RO"}),
    "t5": ("spiece.model", T5_IDS, {"extra_ids": 100}),
    "mt5": ("spiece.model", T5_IDS, {"extra_ids": 0, "tokenizer_class": "T5Tokenizer"}),
    "llama": (
        "tokenizer.model",
        LLAMA,
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
         "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False,
         "chat_template": CHAT},
    ),
    "gemma": (
        "tokenizer.model",
        GEMMA,
        {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False,
         "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
    ),
}  # fmt: skip
PIECES |= {"deberta-v2": PIECES["deberta-v3"], "t5-v1.1": PIECES["t5"]}
PIECES |= dict.fromkeys(("mistral", "mixtral", "phi3"), PIECES["llama"])
PIECES |= dict.fromkeys(("gemma2", "gemma3"), PIECES["gemma"])
BYTES = ("roberta", "bart", "gpt2", "gpt_neo", "qwen2", "qwen3")
WORD_PIECES = ("bert", "distilbert", "electra")


@cache
def trained(**settings) -> bytes:
    """A SentencePiece model of the texts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=5,
        **{
            "vocab_size": 90,
            **{k: [*v] if isinstance(v, tuple) else v for k, v in settings.items()},
        },
    )
    return model.getvalue()


def hashable(settings: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


def write(case: str, folder: Path) -> Path:
    """Writes a family's tokenizer beside a config.json, which is made where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        from tests.models.cases import CASES

        (folder / "config.json").write_text(CASES[case]().to_json_string())
    settings = folder / "tokenizer_config.json"
    if case in PIECES:
        file, how, config = PIECES[case]
        (folder / file).write_bytes(trained(**hashable(how)))
        settings.write_text(json.dumps(config))
    elif case in WORD_PIECES:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *",.:!()", "##s", "re"]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        settings.write_text(json.dumps({"do_lower_case": True, "model_max_length": 512}))
    elif case == "marian":
        _marian(folder)
    elif case == "modernbert":
        _whole(folder)
    else:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        special = special if case in ("roberta", "bart") else ["<|endoftext|>"]
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(
            TEXTS, vocab_size=300, special_tokens=special, show_progress=False
        )
        tokenizer.save_model(str(folder))
        if "qwen" in case:
            config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>",
                      "pad_token": "<|endoftext|>", "chat_template": CHAT}  # fmt: skip
            settings.write_text(json.dumps(config))
    if case == "qwen3":
        (folder / "chat_template.jinja").write_text(CHAT)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools " + CHAT)
    return folder


def _marian(folder: Path) -> None:
    pieces: dict[str, int] = {"</s>": 0, "<unk>": 1}
    for side, size in (("source", 90), ("target", 70)):
        model = trained(vocab_size=size)
        (folder / f"{side}.spm").write_bytes(model)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        for number in range(processor.get_piece_size()):
            pieces.setdefault(processor.id_to_piece(number), len(pieces))
    pieces["<pad>"] = len(pieces)
    (folder / "vocab.json").write_text(json.dumps(pieces))
    languages = {"source_lang": "en", "target_lang": "de", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(languages))


def _whole(folder: Path) -> None:
    """Published in one file alone."""
    from tests.conftest import write_tokenizer

    write_tokenizer(folder)
