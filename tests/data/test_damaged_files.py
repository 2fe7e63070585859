"""Files of columns that were damaged: a message with the file, and never more."""

import random
from contextlib import suppress

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from ftjax.data.sources import load
from ftjax.errors import UserError
from ftjax.tasks.classification import Classification
from tests.conftest import data_settings

TABLE = pyarrow.table(
    {"text": [f"film {n}" for n in range(300)], "label": [n % 2 for n in range(300)]}
)
FORMS = ["stream.arrow", "file.arrow", "zstd.arrow", "none.parquet", "snappy.parquet"]


def write(path):
    form, _, suffix = path.name.partition(".")
    if suffix == "parquet":
        pyarrow.parquet.write_table(TABLE, path, compression=form, row_group_size=100)
        return path.read_bytes()
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd" if form == "zstd" else None)
    make = pyarrow.ipc.new_stream if form == "stream" else pyarrow.ipc.new_file
    with make(str(path), TABLE.schema, options=options) as writer:
        writer.write_table(TABLE, max_chunksize=100)
    return path.read_bytes()


def read(path):
    return load(data_settings(path=str(path)), Classification.schema)["train"].column("text")


@pytest.mark.parametrize("form", ["stream.arrow", "file.arrow"])
def test_a_flipped_bit_of_arrow_is_no_address(tmp_path, form):
    """Where a text ends, by 2 GB."""
    path = tmp_path / form
    whole = write(path)
    assert read(path) == TABLE["text"].to_pylist()
    ends = np.cumsum([0, *map(len, TABLE["text"].to_pylist()[:100])]).astype("<i4").tobytes()
    damaged = bytearray(whole)
    damaged[whole.index(ends) + 4 * 50 + 3] ^= 0x40
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=rf"{form} is not a readable Arrow file"):
        read(path)


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_are_read_or_named(tmp_path, form):
    path, draw = tmp_path / form, random.Random(0)
    whole, refused = write(path), 0
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 1, 3])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged[: draw.choice([None, None, draw.randrange(len(damaged))])])
        try:
            read(path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 20


def varint(value):
    """As Thrift's compact form writes numbers."""
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_pages_of_parquet_take_no_more_than_they_hold(tmp_path, version, compression):
    """Any number in the header of a page made large: refused before what it asks for is held."""
    path = tmp_path / "a.parquet"
    options = {"compression": compression, "data_page_version": version}
    pyarrow.parquet.write_table(TABLE, path, **options)
    content, group = path.read_bytes(), pyarrow.parquet.read_metadata(path).row_group(0)
    begins = [
        start
        for column in map(group.column, range(2))
        for start in (column.dictionary_page_offset, column.data_page_offset)
    ]
    usual = pyarrow.default_memory_pool()
    pool = pyarrow.proxy_memory_pool(usual)
    pyarrow.set_memory_pool(pool)
    try:
        assert read(path) == TABLE["text"].to_pylist()
        for place in (place for start in begins for place in range(start, start + 24)):
            end = place + 1
            while content[end - 1] & 128:
                end += 1
            path.write_bytes(content[:place] + varint(1 << 25) + content[end:])
            with suppress(UserError):
                read(path)
    finally:
        pyarrow.set_memory_pool(usual)
    assert pool.max_memory() < 1 << 26
