"""What is kept on disk: checked when it is read, within a limit, and no run's end where it fails."""

import os
import re
import resource

import numpy as np
import pytest

from ftjax import cache
from ftjax.data.encode import encode
from ftjax.errors import UserError
from ftjax.tasks.classification import Classification
from tests.conftest import here, make_rows
from tests.tasks.small_models import split_of

TASK = Classification()
SPLIT = split_of(TASK, make_rows(40, 0))


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "short": lambda content: content[:30],
    "cut": lambda content: content[: len(content) // 2],
    "a bit of the tokens": lambda content: flipped(content, len(content) // 2),
    "a bit of the form": lambda content: flipped(content, 9),
    "a bit of the hash": lambda content: flipped(content, len(content) - 3),
    "zeros": lambda content: bytes(len(content)),
    "another file": lambda content: b"PK\3\4" * 1000,
    "longer": lambda content: content + b"\0",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path))
    return tmp_path / "tokens"


def test_damaged_files_are_made_again(folder, tiny):
    wanted = encode(SPLIT, TASK, tiny, 12)
    (file,) = folder.iterdir()
    sound = file.read_bytes()
    for name, damage in DAMAGES.items():
        file.write_bytes(damage(sound))
        found = encode(SPLIT, TASK, tiny, 12)
        np.testing.assert_array_equal(found.ids.values, wanted.ids.values, name)
        assert file.read_bytes() == sound, name
    assert list(folder.iterdir()) == [file]


def test_a_full_disk_costs_nothing_but_time(folder, tiny, capsys):
    """A limit on the size of files stands for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        found = encode(SPLIT, TASK, tiny, 12)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written to (File too large): nothing is kept" in capsys.readouterr().err
    assert not list(folder.iterdir())
    np.testing.assert_array_equal(found.ids.values, encode(SPLIT, TASK, tiny, 12).ids.values)
    assert len(list(folder.iterdir())) == 1


def test_what_was_used_last_stays_within_the_limit(folder, monkeypatch, capsys):
    for number, name in enumerate("abc"):
        assert cache.write("tokens", name, lambda file: file.write(bytes(1000)))
        os.utime(folder / name, (number, number))
    assert cache.sizes()["tokens"] == (3, 3 * (1000 + cache.SEAL))
    assert bytes(cache.read("tokens", "a")) == bytes(1000)  # now the last used
    monkeypatch.setenv("FTJAX_CACHE_LIMIT", "3.3KB")
    cache.write("tokens", "d", lambda file: file.write(bytes(1000)))
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c", "d"]
    monkeypatch.setenv("FTJAX_CACHE_LIMIT", "10")
    cache.write("tokens", "e", lambda file: file.write(bytes(1000)))
    assert [path.name for path in folder.iterdir()] == ["e"]  # the newest, whatever its size
    for bad in ("much", "-1GB", "GB"):
        monkeypatch.setenv("FTJAX_CACHE_LIMIT", bad)
        with pytest.raises(UserError, match="FTJAX_CACHE_LIMIT=.* must be a size"):
            cache.write("tokens", "f", lambda file: file.write(b""))
    monkeypatch.delenv("FTJAX_CACHE_LIMIT")
    (folder.parent / "xla").mkdir()
    (folder.parent / "xla" / "program").write_bytes(bytes(2_000_000))
    here("cache", "list")
    said = capsys.readouterr().out
    assert re.search(r"tokens +1 files +0.0 MB", said) and re.search(r"xla +1 files +2.0 MB", said)
    assert "may hold 50.0 GB" in said
    here("cache", "clear", "tokens")
    assert not folder.exists() and cache.sizes()["xla"].files == 1
    with pytest.raises(UserError, match="no folder 'token' .did you mean 'tokens'"):
        here("cache", "clear", "token")
    here("cache", "clear")
    assert not any(cache.sizes()[kind].files for kind in cache.FOLDERS)
