"""Rows to token ids, cached on disk by content."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from ftjax import cache
from ftjax.data.lazy_split import GROUP
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer, tokenizer_bytes

Columns = Mapping[str, list]
CHUNK = 1000  # rows that are tokenized at once: what a tokenizer says of a token takes much memory
IDS, DECODER, ROW, CUT = "input_ids", "decoder_ids", "row", "cut"


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths, end to end.

    Attributes:
        values: all of them.
        offsets: (sequences + 1,) where each starts.
    """

    values: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> np.ndarray:
        return self.values[self.offsets[number] : self.offsets[number + 1]]


def ragged(sequences: list) -> Ragged:
    """Sequences as one array of int32."""
    ends = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
    values = np.concatenate([np.zeros(0, np.int32), *sequences]).astype(np.int32)
    return Ragged(values, ends)


@dataclass(frozen=True)
class Examples:
    """What is trained on or predicted, as a few flat arrays. A row may give several, or none.

    Attributes:
        ids: token ids; an example has `group` sequences of them, some perhaps empty.
        tokens: name → an element a token, as "token_type_ids".
        arrays: name → (examples, ...): labels, or cached features in place of `ids`. Of these
            and of tokens, what begins with _ is for the host and in no batch.
        decoder: token ids of a second sequence, which is written.
        rows: (examples,) index of the row in its split; None where each row gives one.
        group: sequences of an example, as of multiple choice.
        truncated: examples that were longer than `data.max_length`.
    """

    ids: Ragged
    tokens: Mapping[str, np.ndarray] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    decoder: Ragged | None = None
    rows: np.ndarray | None = None
    group: int = 1
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.ids) // self.group

    @property
    def lengths(self) -> np.ndarray:
        """Real tokens of each example's longest sequence."""
        return self.ids.lengths.reshape(-1, self.group).max(1)

    @property
    def sizes(self) -> np.ndarray:
        """Real tokens of each example."""
        written = 0 if self.decoder is None else self.decoder.lengths
        return self.ids.lengths.reshape(-1, self.group).sum(1) + written

    @property
    def row_numbers(self) -> np.ndarray:
        """(examples,) index of the row in its split."""
        return np.arange(len(self)) if self.rows is None else self.rows

    def content(self) -> Iterator[Any]:
        """All that they are made of, texts and arrays, in an order."""
        yield f"{self.group}"
        yield from (self.ids.values, self.ids.lengths, self.row_numbers)
        if self.decoder is not None:
            yield from (self.decoder.values, self.decoder.lengths)
        for arrays in (self.tokens, self.arrays):
            for name in sorted(arrays):
                yield from (name, arrays[name])


class RowError(ValueError):
    """A row that cannot be encoded.

    Attributes:
        number: among the columns' rows.
    """

    def __init__(self, number: int, reason: Exception) -> None:
        super().__init__(str(reason))
        self.number = number


@contextmanager
def of_row(number: int) -> Iterator[None]:
    """Makes of a ValueError that is not a UserError one of a row."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise RowError(number, error) from error


def encode(split: Split, task: Any, folder: Path, max_length: int) -> Examples:
    """Tokenizes a split, or reads the tokens that an earlier run kept.

    Args:
        split: the rows.
        task: see `ftjax.tasks.base.Task.encode`.
        folder: of the model, with its tokenizer; read only where no tokens are kept.
        max_length: in tokens, special ones included.
    """
    name = f"{_key(folder, split, task, max_length)}.arrow"
    data = cache.read("tokens", name)
    if data is not None:
        return _examples(pyarrow.ipc.open_file(pyarrow.py_buffer(data)).read_all())
    table = _tokens(split, _tokenizer(folder, task, max_length, split.file))

    def fill(file: Any) -> None:
        with pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    cache.write("tokens", name, fill)
    return _examples(table)


def unreadable(split: Split, task: Any, folder: Path, max_length: int) -> dict[int, str]:
    """The rows that a task cannot encode, as a chat that no template can write, and why each."""
    try:
        encode(split, task, folder, max_length)
    except UserError as error:
        if not isinstance(error.__cause__, RowError):
            raise
    else:
        return {}
    tokenizer, why = load_tokenizer(folder), {}
    for place in range(len(split.rows)):
        try:
            task.encode(tokenizer, split.rows[place : place + 1], max_length)
        except RowError as error:
            why[place] = f"{split.file}: row {split.rows[place][ROW]}: {error}"
    return why


def encoder(task: Any, folder: Path, max_length: int) -> Callable[[Split], Examples]:
    """As `encode`, but nothing is kept: for windows of a stream."""
    loaded: list[Any] = []
    one_at_a_time = threading.Lock()  # a tokenizer holds how texts are cut while it cuts them

    def encode(split: Split) -> Examples:
        with one_at_a_time:
            tokenize = _tokenizer(folder, task, max_length, split.file, loaded)
            return _examples(_tokens(split, tokenize))

    return encode


def _tokens(split: Split, tokenize: Callable[..., dict[str, list]]) -> pyarrow.Table:
    """The examples of a split, in columns."""
    chunks: dict[str, list[pyarrow.Array]] = {}
    for start in range(0, len(split.rows), CHUNK):
        columns = split.rows[start : start + CHUNK]
        numbers = range(start, min(start + CHUNK, len(split.rows)))
        encoded = {name: _narrow(column) for name, column in tokenize(columns, numbers).items()}
        for name, column in encoded.items():
            chunks.setdefault(name, []).append(column)
    return pyarrow.table({name: _joined(chunks.pop(name)) for name in list(chunks)})


def _joined(chunks: list[pyarrow.Array]) -> pyarrow.Array:
    """Parts of a column as one array; those without values are of the others' type."""
    tables = [pyarrow.table({"": chunk}) for chunk in chunks]
    chunks.clear()
    column = _whole(pyarrow.concat_tables(tables, promote_options="default").column(0))
    return column if isinstance(column, pyarrow.Array) else pyarrow.concat_arrays(column.chunks)


def _whole(column: pyarrow.ChunkedArray) -> pyarrow.Array:
    """A column as one array; `combine_chunks` would copy one that is."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _narrow(column: list) -> pyarrow.Array:
    """A column of examples, whose integers within lists take 32 bits."""
    array = pyarrow.array(column)
    for depth in (pyarrow.list_, lambda inner: pyarrow.list_(pyarrow.list_(inner))):
        if array.type == depth(pyarrow.int64()):
            return array.cast(depth(pyarrow.int32()))
    return array


def _key(folder: Path, split: Split, task: Any, max_length: int) -> str:
    digest = hashlib.sha256(f"8 {max_length} {task.encoding}".encode())
    for part in tokenizer_bytes(folder):
        digest.update(part)
    for column in (name for name in split.rows.column_names if name not in (ROW, GROUP)):
        digest.update(column.encode() + b"\1")
        for value in split.values(column):
            text = value if isinstance(value, str) else repr(value)
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:32]


def _tokenizer(
    folder: Path, task: Any, max_length: int, file: str, loaded: list[Any] | None = None
) -> Callable[..., dict[str, list]]:
    """Columns and the numbers of their rows → columns of examples, "row" among them.

    Args:
        folder: of the model.
        task: see `encode`.
        max_length: see `encode`.
        file: for messages.
        loaded: where the tokenizer is kept for others.
    """
    loaded = [] if loaded is None else loaded

    def tokenize(columns: Columns, numbers: Any) -> dict[str, list]:
        if not loaded:
            loaded.append(load_tokenizer(folder))
        try:
            encoded = task.encode(loaded[0], columns, max_length)
        except RowError as error:
            raise UserError(f"{file}: row {columns[ROW][error.number]}: {error}") from error
        within = encoded.pop(ROW, range(len(encoded[IDS])))
        return {**encoded, ROW: [numbers[i] for i in within]}

    return tokenize


def _examples(table: Any) -> Examples:
    """Columns of lists are of tokens, nested ones of groups of sequences, others of examples."""
    if not table.num_rows:
        return Examples(ragged([]))
    columns = {name: _whole(table.column(name)) for name in table.column_names}
    nested = pyarrow.types.is_list(columns[IDS].type.value_type)
    group = int(np.diff(columns[IDS].offsets).max(initial=1)) if nested else 1
    tokens, arrays = {}, {}
    for name in columns.keys() - {IDS, DECODER, ROW, CUT}:
        if pyarrow.types.is_list(columns[name].type):
            tokens[name] = _sequences(columns[name], group).values
        else:
            arrays[name] = columns[name].to_numpy(zero_copy_only=False)
    rows = columns[ROW].to_numpy()
    return Examples(
        ids=_sequences(columns[IDS], group),
        tokens=tokens,
        arrays=arrays,
        decoder=_sequences(columns[DECODER], 1) if DECODER in columns else None,
        rows=None if np.array_equal(rows, np.arange(len(rows))) else rows,
        group=group,
        truncated=int(columns[CUT].to_numpy(zero_copy_only=False).sum()),
    )


def _sequences(column: Any, group: int) -> Ragged:
    """A column of lists, or of lists of lists; of the latter, `group` sequences an example."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    inner = column.values
    if not pyarrow.types.is_list(inner.type):
        return Ragged(inner.to_numpy().astype(np.int32, copy=False), offsets)
    bounds = inner.offsets.to_numpy().astype(np.int64)
    number = np.minimum(offsets[:-1, None] + np.arange(group + 1), offsets[1:, None])
    starts = bounds[number[:, :group]].ravel()  # past an example's own, where it ends
    return Ragged(
        inner.values.to_numpy().astype(np.int32, copy=False), np.append(starts, bounds[-1])
    )
