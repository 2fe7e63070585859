"""Tokenizers load from the files that families publish, and are exported whole."""

import json
import shutil
import sys

import pytest
import sentencepiece
import transformers

from ftjax.data.encode import encode
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer, write_tokenizer
from ftjax.tasks.classification import Classification
from ftjax.tasks.masked_lm import MaskedLM
from ftjax.tasks.seq2seq import Seq2Seq
from tests.formats.published import PIECES, TEXTS, hashable, trained, write
from tests.models.cases import CASES
from tests.tasks.small_models import split_of

# Whose letters are in lower case or without accents, other than SentencePiece has them.
OTHERS = ("albert", "xlnet")


@pytest.mark.parametrize("case", [*CASES])
def test_what_is_exported_tokenizes_as_what_was_published(case, tmp_path):
    folder, out, theirs = write(case, tmp_path / "folder"), tmp_path / "out", tmp_path / "theirs"
    out.mkdir()
    shutil.copyfile(folder / "config.json", out / "config.json")
    # transformers' AutoTokenizer does not look at the class that folders of Mistral's name.
    named = PIECES[case][2].get("tokenizer_class") if case in PIECES else None
    auto = getattr(transformers, named or "AutoTokenizer")
    reference = auto.from_pretrained(folder)
    reference.save_pretrained(theirs)
    write_tokenizer(folder, out)
    ours, back = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(out)
    for text in (TEXTS, "", TEXTS[2]):
        wanted = reference(text)["input_ids"]
        assert ours(text)["input_ids"] == wanted == back(text)["input_ids"]
    assert back.special_tokens_map == reference.special_tokens_map
    assert back.chat_template == reference.chat_template
    names = {str(file.relative_to(theirs)) for file in theirs.rglob("*") if file.is_file()}
    published = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    written = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert names | published <= written
    if case in PIECES and case not in OTHERS:
        how = PIECES[case][1]
        pieces = sentencepiece.SentencePieceProcessor(model_proto=trained(**hashable(how)))
        for text in TEXTS:
            found = ours(text, add_special_tokens=False)["input_ids"]
            assert ours.convert_ids_to_tokens(found) == pieces.encode(text, out_type=str)


def test_a_llama_without_settings_is_a_llama(tmp_path):
    folder = write("mistral", tmp_path / "folder")
    (folder / "tokenizer_config.json").unlink()
    wanted = transformers.LlamaTokenizer.from_pretrained(folder)
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    found = load_tokenizer(folder)
    for text in TEXTS:
        assert found(text)["input_ids"] == wanted(text)["input_ids"]
        assert found.tokenize(text) == pieces.encode(text, out_type=str)


def test_marian_learns_to_translate_from_its_published_files(tmp_path):
    folder = write("marian", tmp_path / "marian")
    reference = transformers.MarianTokenizer.from_pretrained(folder)
    task, rows = Seq2Seq(), [{"source": text, "target": text.upper()} for text in TEXTS]
    examples = encode(split_of(task, rows), task, folder, 24)
    targets = reference(text_target=[row["target"] for row in rows])["input_ids"]
    wanted = reference(TEXTS, truncation=True, max_length=24)["input_ids"]
    assert [list(examples.ids[i]) for i in range(len(rows))] == wanted
    assert [list(examples.decoder[i]) for i in range(len(rows))] == targets
    longer = [len(ids) > 24 for ids in reference(TEXTS)["input_ids"]]
    assert examples.truncated == sum(longer) and 0 < sum(longer) < len(rows)
    with pytest.raises(UserError, match="does not say which word"):
        MaskedLM().encode(load_tokenizer(folder), {"text": TEXTS}, 24)


@pytest.mark.parametrize(("case", "file"), [("t5", "spiece.model"), ("marian", "source.spm")])
@pytest.mark.parametrize("absent", ["sentencepiece", "google.protobuf"])
def test_absent_packages_are_named(case, file, absent, tmp_path, monkeypatch):
    folder = write(case, tmp_path / case)
    monkeypatch.setitem(sys.modules, absent, None)  # as Python has what cannot be imported
    package = absent.removeprefix("google.")
    with pytest.raises(UserError, match=rf"{file} needs a package: pip install {package}$"):
        load_tokenizer(folder)


def test_tokens_are_kept_for_one_tokenizer(tmp_path):
    """Folders that differ in what their tokenizer reads alone do not share tokens."""
    task = Classification(pooling="cls")
    rows = [{"text": text, "label": str(i % 2)} for i, text in enumerate(TEXTS)]
    split = split_of(task, rows)

    def ids(folder):
        examples = encode(split, task, folder, 64)
        return [list(examples.ids[i]) for i in range(len(rows))]

    for case, (file, how) in {"t5": ("spiece.model", {}), "marian": ("source.spm", {})}.items():
        first = write(case, tmp_path / case)
        before = ids(first)
        other = shutil.copytree(first, tmp_path / f"{case}-other")
        how = {**(PIECES["t5"][1] if case == "t5" else {}), "model_type": "char"}
        (other / file).write_bytes(trained(**hashable(how)))
        assert ids(other) == load_tokenizer(other)(TEXTS)["input_ids"] != before
        assert ids(first) == before
    first = write("bert", tmp_path / "bert")
    before = ids(first)
    (first / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert ids(first) == load_tokenizer(first)(TEXTS)["input_ids"] != before
