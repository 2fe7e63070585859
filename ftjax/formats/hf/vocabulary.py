"""A tokenizer that has more words than its model's table: noticed, and the table made larger."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.errors import UserError, require
from ftjax.formats.folder import load_tokenizer
from ftjax.formats.gguf import file as gguf
from ftjax.formats.guard import reading
from ftjax.formats.jsons import read_json

ROWS = 8192  # that are averaged at a time
MOST = 2**31
SPARE = 2**20  # of words, besides as many again, that a table is made larger by


def words_of(folder: Path) -> int:
    """One more than the largest id that a model's tokenizer gives; 0 where it has none.

    Read from its files where it can be: to load one takes seconds.
    """
    if gguf.is_gguf(folder):
        return len(gguf.read(folder).tokens())
    path = folder / "tokenizer.json"
    if not path.exists():
        try:
            return 1 + max(load_tokenizer(folder).get_vocab().values(), default=-1)
        except UserError:  # whoever needs one will say so
            return 0
    with reading(path, "is no tokenizer that can be read"):
        stored = read_json(path)
        words = (stored.get("model") or {}).get("vocab") or {}
        ids = list(words.values()) if isinstance(words, dict) else list(range(len(words)))
        ids += [token["id"] for token in stored.get("added_tokens") or ()]
        largest = _largest(ids)
    for name, key in (("tokenizer_config.json", "added_tokens_decoder"), ("added_tokens.json", "")):
        if (folder / name).exists():
            with reading(folder / name, "has tokens that cannot be read"):
                added = read_json(folder / name)
                numbers = added.get(key) or {} if key else added.values()
                largest = max(largest, _largest(map(int, numbers)))
    return 1 + largest


def _largest(ids: Iterable[int]) -> int:
    """-1 for none; raises ValueError where one is no number of a token."""
    ids = list(ids)
    require(all(type(i) is int and 0 <= i < MOST for i in ids), "has tokens that are no numbers")
    return max(ids, default=-1)


def with_words(folder: Path, hf_config: Mapping[str, Any], resize: bool = False) -> dict[str, Any]:
    """config.json with a place for each word that the tokenizer may give.

    Args:
        folder: of the model.
        hf_config: its config.json.
        resize: make the vocabulary larger where it is too small.

    Raises:
        UserError: it is too small, and is not to be resized.
    """
    count, size = words_of(folder), hf_config.get("vocab_size", hf_config.get("n_token"))
    if not isinstance(size, int) or count <= size:
        return dict(hf_config)
    if count > 2 * size + SPARE:
        raise UserError(f"{folder}: its tokenizer gives ids up to {count - 1}, of {size} words")
    if not resize:
        raise UserError(
            f"{folder}: its tokenizer gives ids up to {count - 1}, but the model has a vocabulary "
            f"of {size} (vocab_size in config.json), so ids up to {size - 1}; train with "
            "model.resize_vocabulary=True to add rows, which start as the mean of the others"
        )
    return sized(hf_config, count)


def sized(hf_config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """config.json with another number of words."""
    names = {"vocab_size", "decoder_vocab_size", "n_token"} & hf_config.keys()
    return {**hf_config, **dict.fromkeys(names, count)}


@dataclass(frozen=True)
class Resized:
    """A stored tensor with more words along an axis, each the mean of those that are there.

    `transformers` draws them so closely around the mean that the two can hardly be told apart,
    and starts the biases of tied words at 0.

    Attributes:
        tensor: with a shape, that slices index.
        axis: of words.
        size: how many there are to be.
        zero: new ones are 0 instead.
    """

    tensor: Any
    axis: int
    size: int
    zero: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.tensor.shape)
        shape[self.axis] = self.size
        return tuple(shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        whole = (slice(None),) * len(self.shape)
        slices = index if isinstance(index, tuple) else (index,)
        slices = whole if slices == (...,) else (*slices, *whole[len(slices) :])
        start, stop, _ = slices[self.axis].indices(self.size)
        count = self.tensor.shape[self.axis]
        before, after = slices[: self.axis], slices[self.axis + 1 :]
        parts = []
        if start < count:
            parts.append(self.tensor[(*before, slice(start, min(stop, count)), *after)])
        if stop > count:
            mean = self.mean[(*before, slice(None), *after)]
            parts.append(np.repeat(mean, stop - max(start, count), self.axis))
        return np.concatenate([part.astype(parts[0].dtype) for part in parts], self.axis)

    @cached_property
    def mean(self) -> np.ndarray:
        """The mean over words, float32, with an axis of one in their place."""
        count = self.tensor.shape[self.axis]
        shape = (*self.shape[: self.axis], 1, *self.shape[self.axis + 1 :])
        total = np.zeros(shape, np.float64)
        for i in range(0, 0 if self.zero else count, ROWS):
            part = (*(slice(None),) * self.axis, slice(i, min(i + ROWS, count)))
            total += np.asarray(self.tensor[part], np.float64).sum(self.axis, keepdims=True)
        return (total / count).astype(np.float32)


def widened(
    tensor: Any, path: str, axes: Sequence[str | None], shape: Sequence[int], zero: bool
) -> Any:
    """A parameter's stored tensor with as many words as the parameter has.

    Args:
        tensor: with a shape, that slices index.
        path: of the parameter.
        axes, shape: the parameter's.
        zero: see `Resized`.
    """
    if "vocab" not in axes:
        return tensor
    axis = axes.index("vocab")
    size = shape[axis]
    axis = len(axes) - 1 - axis if path.endswith("/kernel") else axis
    return Resized(tensor, axis, size, zero) if tensor.shape[axis] < size else tensor
