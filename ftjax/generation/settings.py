"""What is asked of a generation."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from ftjax.errors import UserError, require
from ftjax.formats.folder import config_file, read_config, read_json
from ftjax.formats.gguf.file import is_gguf
from ftjax.formats.gguf.tokenizer import end_tokens
from ftjax.formats.guard import named
from ftjax.formats.jsons import check
from ftjax.options import Above0, Natural, NotNegative, Seed


@dataclass(frozen=True)
class Settings:
    """How tokens are chosen; names as in Hugging Face's generation_config.json, with `temperature`
    0 instead of `do_sample` false.

    Attributes:
        max_new_tokens: at most so many a prompt.
        min_new_tokens: none of `end` before so many.
        temperature: 0 takes the most probable token; otherwise logits are divided by it and a
            token is sampled.
        top_k: sample among the most probable; 0 for all.
        top_p: sample among the fewest whose probabilities reach it (Holtzman et al. 2020).
        min_p: sample among those with at least this share of the highest probability.
        repetition_penalty: divides positive logits of tokens that were there already, and
            multiplies negative ones (Keskar et al. 2019); of an encoder-decoder, in the output.
        no_repeat_ngram_size: no run of so many tokens comes twice (Paulus et al. 2018), counted
            where `repetition_penalty` counts; 0 allows all.
        num_beams: hypotheses kept by beam search; 1 for none.
        length_penalty: beams are ranked by log-probability / length ** length_penalty.
        early_stopping: of beam search: True stops when `num_beams` are finished; False when the
            running ones, as long as they are now, are no better; "never" only when they could
            not become better.
        num_return_sequences: for each prompt.
        prompt_lookup_num_tokens: tokens that are guessed from what was written before, and read at
            once (`ftjax.generation.speculation`); 0 for none. What is written is the same.
        num_assistant_tokens: the same of a draft model, where there is one.
        seed: of sampling; what a prompt is continued with depends on it and on the prompt's
            number, not on the rest of the batch.
        end: tokens that end a text.
        pad: what follows it.
        start: what a decoder reads before the first token; None: what the model's config.json says.
        forced_first, forced_last: tokens that must come first, and last at `max_new_tokens`.
        banned: tokens that never come.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    prompt_lookup_num_tokens: int = 0
    num_assistant_tokens: int = 0
    seed: int = 0
    end: tuple[int, ...] = ()
    pad: int = 0
    start: int | None = None
    forced_first: int | None = None
    forced_last: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams", "num_return_sequences"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1")
        guessed = "prompt_lookup_num_tokens", "num_assistant_tokens"
        others = "temperature", "top_k", "min_new_tokens", "no_repeat_ngram_size"
        for name in (*others, *guessed):
            require(getattr(self, name) >= 0, f"{name} must not be negative")
        require(0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}")
        require(0 <= self.min_p <= 1, f"min_p must be in [0, 1], got {self.min_p}")
        require(self.repetition_penalty > 0, "repetition_penalty must be positive")
        both = self.prompt_lookup_num_tokens > 0 and self.num_assistant_tokens > 0
        require(not both, f"{guessed[0]} and {guessed[1]} do not go together: set one to 0")
        known = (True, False, "never")
        require(self.early_stopping in known, f"early_stopping must be one of {known}")
        if self.is_beam_search:
            require(self.temperature == 0, "beam search does not sample: set temperature to 0")
            require(self.ahead == 0, f"{guessed[0]} and {guessed[1]} do not go with beam search")
            require(
                self.num_return_sequences <= self.num_beams,
                "num_return_sequences exceeds num_beams",
            )
        elif self.temperature == 0:
            require(
                self.num_return_sequences == 1,
                "num_return_sequences needs beam search, or a temperature above 0",
            )

    @property
    def is_beam_search(self) -> bool:
        return self.num_beams > 1

    @property
    def ahead(self) -> int:
        """Tokens that are guessed before the model reads them."""
        return self.prompt_lookup_num_tokens + self.num_assistant_tokens


Token = Annotated[int, "[-1, 1000000000]"]  # -1 for none, in older files
# Of files of others: room is made for them.
Tokens = Annotated[int, "[0, 1000000]"]
Several = Annotated[int, "[1, 1000]"]
# Of generation_config.json: what is read, and what changes outputs and is not implemented.
SAME = [field.name for field in fields(Settings)]
REFUSED = {
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "diversity_penalty": 0.0,
    "num_beam_groups": 1,
    "typical_p": 1.0,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
}


@dataclass(frozen=True)
class Defaults:
    """What keys of generation_config.json may be, and of config.json, with examples."""

    do_sample: bool | None = False
    max_new_tokens: Tokens | None = 128
    min_new_tokens: Tokens | None = 0
    temperature: NotNegative | None = 1.0
    top_k: Natural | None = 50
    top_p: float | None = 1.0
    min_p: float | None = 0.0
    repetition_penalty: Above0 | None = 1.0
    no_repeat_ngram_size: Annotated[int, "[0, 1000]"] | None = 0
    num_beams: Several | None = 1
    length_penalty: float | None = 1.0
    early_stopping: bool | Literal["never"] | None = False
    num_return_sequences: Several | None = 1
    seed: Seed | None = 0
    eos_token_id: Token | list[Token] | None = 2
    pad_token_id: Token | list[Token] | None = 0
    forced_bos_token_id: Token | None = 0
    forced_eos_token_id: Token | list[Token] | None = 2
    suppress_tokens: list[Token] | None = (1, 2)
    bad_words_ids: list[list[Token]] | None = ((1,), (2,))


READ = {field.name for field in fields(Defaults)} | REFUSED.keys()


def from_hf(hf: Mapping[str, Any], **changes: Any) -> Settings:
    """Reads generation_config.json's mapping (or config.json's), under changes.

    Raises:
        UserError: it asks for something that is not implemented.
    """
    for name, usual in REFUSED.items():
        if name not in changes and hf.get(name) not in (None, usual):
            raise UserError(f"generation_config.json: {name}={hf[name]!r} is not implemented")
    values = {name: hf[name] for name in SAME if name in READ and hf.get(name) is not None}
    if not hf.get("do_sample"):
        values |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    else:
        values = {"temperature": 1.0, "top_k": 50, **values}
    bad = hf.get("bad_words_ids") or []
    if any(len(words) != 1 for words in bad):
        raise UserError("generation_config.json: bad_words_ids of several tokens: not implemented")
    values |= {
        "end": _several(hf.get("eos_token_id")),
        "pad": next(iter(_several(hf.get("pad_token_id"))), 0),
        "forced_first": next(iter(_several(hf.get("forced_bos_token_id"))), None),
        "forced_last": _several(hf.get("forced_eos_token_id")),
        "banned": _several([*(hf.get("suppress_tokens") or ()), *(words[0] for words in bad)]),
    }
    return Settings(**{**values, **changes})


def of_folder(folder: Path, **changes: Any) -> Settings:
    """How a folder's model chooses tokens by default, under changes."""
    file = config_file(folder)
    defaults = _generation_keys(read_config(folder))
    if is_gguf(folder):
        defaults["eos_token_id"] = end_tokens(folder)
    check(file, defaults, Defaults)
    if (folder / "generation_config.json").exists():
        file = folder / "generation_config.json"
        stored = _generation_keys(read_json(file))
        check(file, stored, Defaults)
        defaults |= stored
    with named(file):
        return from_hf(defaults, **changes)


def _generation_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in READ}


def _several(value: Any) -> tuple[int, ...]:
    """Tokens, without those that are none: of arrays -1 is the last place."""
    tokens = value if isinstance(value, list | tuple) else (value,)
    return tuple(token for token in tokens if token is not None and token >= 0)
