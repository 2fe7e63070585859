"""Rows of each kind of file, from files that were written otherwise, and what is said of bad ones."""

import copy
import csv
import json
import subprocess
import sys

import datasets
import pandas
import pyarrow
import pytest

from ftjax.data.readers import READERS
from ftjax.data.sources import load
from ftjax.errors import UserError
from ftjax.tasks.causal_lm import CausalLM
from ftjax.tasks.classification import Classification
from ftjax.tasks.span_qa import SpanQA
from ftjax.tasks.token_classification import TokenClassification
from tests.conftest import data_settings, write_jsonl

TEXT, LABELLED = CausalLM.schema, Classification.schema
TAGS, ANSWERS = TokenClassification.schema, SpanQA.schema
LINES = "\n\nfirst line\n  second\n\n\nnew  \n \nlast, with é\n"


def rows(kind, file, **changes):
    """Numbers and rows, unchecked."""
    return list(READERS[kind].rows(file, data_settings(**changes)))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_texts_by_line_paragraph_and_file(tmp_path, end):
    file = tmp_path / "train.txt"
    file.write_bytes(b"\xef\xbb\xbf" + LINES.replace("\n", end).encode())
    assert rows("text", file) == [
        (3, {"text": "first line"}),
        (4, {"text": "  second"}),
        (7, {"text": "new  "}),
        (9, {"text": "last, with é"}),
    ]
    found = rows("text", file, text_rows="paragraph")
    assert [number for number, _ in found] == [1, 7, 9]
    assert "".join(row["text"] for _, row in found) == LINES  # nothing is lost
    assert found[1][1]["text"] == "new  \n \n"
    assert rows("text", file, text_rows="file") == [(1, {"text": LINES})]


def test_lines_that_are_no_text_are_named(tmp_path):
    file = tmp_path / "train.txt"
    file.write_bytes(b"good\n\xff\xfe\nfine\n")
    settings = data_settings("causal_lm", source="text", path=str(file))
    with pytest.raises(
        UserError, match=r"train\.txt: row 2 has bytes that are not UTF-8 \(byte 5\)"
    ):
        load(settings, TEXT)
    split = load({**settings, "on_error": "skip"}, TEXT)["train"]
    assert split.column("text") == ["good", "fine"] and split.column("row") == [1, 3]
    assert len(split.skipped) == 1 and "row 2" in split.skipped[0]


TWO = "# text = John lives\nJohn\tB-per\nlives\tO\n\n\n#\tO\n# O\n\nin\tO\nNew York\tB-place"
FOUR = (
    "-DOCSTART- -X- -X- O\n\nJohn NNP B-NP B-per\nSmith NNP I-NP I-per\n# NN I-NP O\n\n"
    "-DOCSTART- -X- -X- O\n\nlives VBZ B-VP O\n"
)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_sentences_of_conll(tmp_path, end):
    file = tmp_path / "train.conll"
    file.write_bytes(b"\xef\xbb\xbf" + TWO.replace("\n", end).encode())
    assert rows("conll", file) == [
        (2, {"tokens": ["John", "lives"], "tags": ["B-per", "O"]}),
        (6, {"tokens": ["#", "#"], "tags": ["O", "O"]}),
        (9, {"tokens": ["in", "New York"], "tags": ["O", "B-place"]}),
    ]
    file.write_bytes(FOUR.replace("\n", end).encode())
    assert rows("conll", file) == [
        (3, {"tokens": ["John", "Smith", "#"], "tags": ["B-per", "I-per", "O"]}),
        (9, {"tokens": ["lives"], "tags": ["O"]}),
    ]


def test_bad_sentences_are_named(tmp_path):
    file = tmp_path / "train.bio"
    file.write_text("a O\n\nb O\nalone\n\nc I-x\n\nd B-x\ne I-x\n")
    settings = data_settings("token_classification", source="conll", path=str(file))
    with pytest.raises(UserError, match=r"train\.bio: row 4 has no tag after 'alone'"):
        load(settings, TAGS)
    split = load({**settings, "on_error": "skip"}, TAGS)["train"]
    assert split.column("tokens") == [["a"], ["d", "e"]] and split.column("row") == [1, 8]
    assert len(split.skipped) == 2 and "row 6: tag 1, 'I-x', does not go on" in split.skipped[1]


SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "good film",
                    "qas": [
                        {"id": "a", "question": "is it", "answers": [{"text": "good", "answer_start": 0}, {"text": "good film", "answer_start": 0}]},
                        {"id": "b", "question": "was it", "answers": [{"text": "film", "answer_start": 5}]},
                    ],
                },
                {"context": "bad", "qas": [{"id": "c", "question": "so", "is_impossible": True, "answers": []}]},
            ],
        },
        {"title": "u", "paragraphs": [{"context": "dull", "qas": [{"id": "d", "question": "no"}]}]},
    ],
}  # fmt: skip


def test_questions_of_squad(tmp_path):
    """Versions 1.1 and 2.0, and a test set without answers."""
    file = tmp_path / "train.json"
    file.write_text("\ufeff" + json.dumps(SQUAD), encoding="utf-8")
    split = load(data_settings("span_qa", source="squad", path=str(file)), ANSWERS)["train"]
    assert split.column("id") == ["a", "b", "c", "d"] and split.column("row") == [1, 2, 3, 4]
    assert split.column("context") == ["good film", "good film", "bad", "dull"]
    assert split.column("answers")[0] == {"text": ["good", "good film"], "answer_start": [0, 0]}
    assert split.column("answers")[2:] == [{"text": [], "answer_start": []}] * 2
    for text, message in (
        ('{"data": [{"paragraphs": [{}]}]}', "train.json is not of SQuAD's form: KeyError"),
        ("{", "train.json: not valid JSON"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            rows("squad", file)


def test_a_question_out_of_form_is_a_bad_row_of_squad(tmp_path):
    file, given = tmp_path / "train.json", copy.deepcopy(SQUAD)
    questions = given["data"][0]["paragraphs"][0]["qas"]
    questions[0]["answers"] = [{"text": "good"}]
    questions.insert(1, "is it good?")
    file.write_text(json.dumps(given), encoding="utf-8")
    options = {"source": "squad", "path": str(file)}
    with pytest.raises(UserError, match=r"train\.json: row 1 is no question .*answer_start"):
        load(data_settings("span_qa", **options), ANSWERS)
    split = load(data_settings("span_qa", on_error="skip", **options), ANSWERS)["train"]
    assert split.column("id") == ["b", "c", "d"] and split.column("row") == [3, 4, 5]


@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow_files(tmp_path, form):
    file, given = (
        tmp_path / "train.arrow",
        [{"text": f"film {i}", "label": i % 2} for i in range(7)],
    )
    table = pyarrow.Table.from_pylist(given)
    make = pyarrow.ipc.new_stream if form == "stream" else pyarrow.ipc.new_file
    with make(str(file), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    assert rows("arrow", file) == list(enumerate(given, 1))
    file.write_bytes(b"no arrow at all")
    with pytest.raises(UserError, match=r"train\.arrow is not a readable Arrow file"):
        rows("arrow", file)


def test_folders_of_datasets(tmp_path):
    """What `save_to_disk` wrote, of one split or of several."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    one = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "dev": one}).save_to_disk(tmp_path / "two")
    for name, splits in (("one", {"train"}), ("two", {"train", "validation"})):
        found = load(data_settings(source="hub", path=str(tmp_path / name)), LABELLED)
        assert set(found) == splits
        for split in found.values():
            assert split.column("label") == ["yes", "no"] and split.label_names == ("no", "yes")


def write_csv(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return data_settings(source="csv", path=str(path))


def test_csv_of_other_writers(tmp_path):
    """A mark before the header, CRLF, quoted line ends, another delimiter."""
    text = 'text,label\r\n"one\r\ntwo, ""three""",a\r\nfour,b\r\n'
    split = load(write_csv(tmp_path / "train.csv", text, "utf-8-sig"), LABELLED)["train"]
    assert split.column("text") == ['one\r\ntwo, "three"', "four"]
    semicolons = write_csv(tmp_path / "other.csv", "text;label\none, two;a\nthree;b\n")
    message = r"other\.csv: row 1: the header 'text;label' is one field; .*data.delimiter=';'"
    with pytest.raises(UserError, match=message):
        load(semicolons, LABELLED)
    split = load({**semicolons, "delimiter": ";"}, LABELLED)["train"]
    assert split.column("text") == ["one, two", "three"]


def test_ragged_rows_of_csv(tmp_path):
    settings = write_csv(tmp_path / "train.csv", "text,label\na,x\nb\nc,y,z\nd,y\n")
    with pytest.raises(UserError, match=r"train\.csv: row 3 has fewer fields than the header"):
        load(settings, LABELLED)
    split = load({**settings, "on_error": "skip"}, LABELLED)["train"]
    assert split.column("text") == ["a", "d"]
    assert "row 4 has more fields than the header" in split.skipped[1]


MAKE = """
import json, sys
from pathlib import Path
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

folder, f = Path(sys.argv[1]), tfds.features
labels, tags = f.ClassLabel(names=["no", "yes"]), f.ClassLabel(names=["O", "B-a"])
features = f.FeaturesDict({"text": f.Text(), "label": labels, "tokens": f.Sequence(f.Text()), "tags": f.Sequence(tags)})
folder.mkdir(parents=True)
features.save_config(str(folder))
serializer = ExampleSerializer(features.get_serialized_info())
rows = [
    {"text": "good \u00e9", "label": 1, "tokens": ["a", "b"], "tags": [0, 1]},
    {"text": "bad", "label": 0, "tokens": ["c"], "tags": [1]},
]
splits = []
for split in ("train", "test"):
    writer = ArrayRecordWriter(str(folder / f"words-{split}.array_record-00000-of-00001"), "group_size:1")
    for row in rows:
        writer.write(serializer.serialize_example(features.encode_example(row)))
    writer.close()
    splits.append({"name": split, "numBytes": "9", "shardLengths": ["2"], "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"})
info = {"name": "words", "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
(folder / "dataset_info.json").write_text(json.dumps(info))
assert "tensorflow" not in sys.modules
"""


def test_tfds_without_tensorflow(tmp_path):
    folder = tmp_path / "words" / "1.0.0"
    subprocess.run([sys.executable, "-c", MAKE, folder], check=True)
    settings = data_settings(source="tfds", path=str(folder))
    found = load(settings, LABELLED)
    assert set(found) == {"train", "test"} and found["train"].label_names == ("no", "yes")
    assert found["train"].column("text") == ["good é", "bad"]
    assert found["test"].column("label") == ["yes", "no"]
    settings = data_settings("token_classification", source="tfds", path=str(folder))
    split = load(settings, TAGS)["train"]
    assert split.column("tokens") == [["a", "b"], ["c"]]
    assert split.column("tags") == [["O", "B-a"], ["B-a"]]
    with pytest.raises(UserError, match="cannot be read by tfds"):
        load(data_settings(source="tfds", path=str(tmp_path / "absent")), LABELLED)
    assert "tensorflow" not in sys.modules


GOOD = {"text": "a", "label": "x"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None, "label": "x"}, "row 2: field 'text' is null"),
        ({"text": "a", "label": None}, "row 2: field 'label' is null"),
        (
            {"text": "a", "label": 1},
            "row 2: field 'label' is 1, an integer, where rows before have text",
        ),
        ({"text": "a", "label": ""}, "row 2: field 'label' must be a string or an integer"),
        ({"text": ["a"], "label": "x"}, "row 2: field 'text' must be text, not list"),
        ([1], "row 2 is not an object with fields"),
        ({"text": "a \ud83d", "label": "x"}, "row 2: field 'text' has half of a character"),
        ({"text": "a", "label": "\ude00"}, "row 2: field 'label' has half of a character"),
    ],
)
def test_bad_rows_are_skipped_and_named(tmp_path, row, message):
    file = write_jsonl(tmp_path / "train.jsonl", [GOOD, row, {"text": "b", "label": "y"}])
    settings = data_settings(path=str(file))
    with pytest.raises(UserError, match=message):
        load(settings, LABELLED)
    split = load({**settings, "on_error": "skip"}, LABELLED)["train"]
    assert split.column("text") == ["a", "b"] and split.column("row") == [1, 3]
    assert len(split.skipped) == 1 and message in split.skipped[0]


def test_a_number_of_too_many_digits_is_a_bad_row(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text('{"text": "a", "label": %s}\n{"text": "b", "label": 1}\n' % ("1" * 5000))
    with pytest.raises(UserError, match="row 1 is not valid JSON: Exceeds the limit"):
        load(data_settings(path=str(file)), LABELLED)
    found = load(data_settings(path=str(file), on_error="skip"), LABELLED)["train"]
    assert found.column("text") == ["b"]


def test_splits_without_a_good_row_are_named(tmp_path):
    file = write_jsonl(tmp_path / "train.jsonl", [{"text": ""}, {"text": None}])
    with pytest.raises(UserError, match=r"has no rows: 2 were bad, the first: .*row 1"):
        load(data_settings("causal_lm", path=str(file), on_error="skip"), TEXT)
    (tmp_path / "valid.jsonl").write_text("\n")
    write_jsonl(file, [{"text": "a"}])
    with pytest.raises(UserError, match=r"valid\.jsonl has no rows"):
        load(data_settings("causal_lm", path=str(tmp_path)), TEXT)


def test_optional_fields_are_of_all_rows(tmp_path):
    """Those that the first row has: a row without one is bad, and so is one with another."""
    given = [{"text": "a", "text_pair": "b", "label": "x"}, {"text": "a", "label": "x"}]
    file = write_jsonl(tmp_path / "train.jsonl", given)
    with pytest.raises(UserError, match="row 2 has no field 'text_pair'"):
        load(data_settings(path=str(file)), LABELLED)
    for absent in (given[1], given[1] | {"text_pair": None}):
        write_jsonl(file, [absent, given[0]])
        with pytest.raises(UserError, match="row 2 has a field 'text_pair', which rows before"):
            load(data_settings(path=str(file)), LABELLED)
    write_jsonl(file, [given[1] | {"text_pair": None}] * 2)
    with_none = load(data_settings(path=str(file)), LABELLED)["train"]
    assert with_none.rows.column_names == ["text", "label", "row"]


def test_a_line_of_csv_that_is_no_text_is_one_bad_row(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(b"text,label\na,x\n\xff,y\nb,y\n\xfe,x\n")
    settings = data_settings(source="csv", path=str(path))
    with pytest.raises(UserError, match=r"train\.csv: row 3 has bytes that are not UTF-8"):
        load(settings, LABELLED)
    split = load({**settings, "on_error": "skip"}, LABELLED)["train"]
    assert split.column("text") == ["a", "b"] and split.column("row") == [2, 4]
    assert [message.split(" has ")[0] for message in split.skipped] == [
        f"{path}: row 3",
        f"{path}: row 5",
    ]


TABLE = pandas.DataFrame(
    {"text": ['"Good" film', "it was, so", 'a "dull" one'], "label": list("aba")}
)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("index", [False, True])
def test_tables_as_pandas_writes_them(tmp_path, end, encoding, index):
    """Whatever ends lines, with a byte order mark or without, with an index that has no name."""
    file = tmp_path / "train.csv"
    TABLE.to_csv(file, index=index, lineterminator=end, encoding=encoding)
    split = load(data_settings(source="csv", path=str(file)), LABELLED)["train"]
    assert split.column("text") == TABLE.text.tolist()
    assert split.column("label") == TABLE.label.tolist()


def test_quotation_marks_between_tabs_are_text(tmp_path):
    """As csv's reader without quoting has them; a file that quotes all of its fields says so."""
    file = tmp_path / "train.tsv"
    lines = ['"I like it', 'so "dull"', '"Good" film', '"fine"', "it's \"a"]
    file.write_text("text\tlabel\n" + "".join(f"{line}\ta\n" for line in lines))
    split = load(data_settings(source="csv", path=str(file)), LABELLED)["train"]
    assert split.column("text") == lines
    for quoting, index in ((csv.QUOTE_ALL, "auto"), (csv.QUOTE_MINIMAL, "double")):
        TABLE.to_csv(file, sep="\t", index=False, quoting=quoting)
        split = load(data_settings(source="csv", path=str(file), quoting=index), LABELLED)["train"]
        assert split.column("text") == TABLE.text.tolist()


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ('text\tlabel\n"a ""b"""\tc\n', {}, "row 2 has quotation marks .* data.quoting=double"),
        ('text\tlabel\n"a\n', {}, "row 2 has fewer fields .*set data.quoting=double"),
        ("text\ttext\tlabel\na\tb\tc\n", {}, "row 1: 2 columns are called 'text'"),
        ('text,label\na,b\n"c,d\ne,f\n', {"delimiter": ","}, "row 3 has a quot.*quoting=none"),
        ('text,label\n"c" d,e\n', {"delimiter": ","}, "row 2 cannot be read .*quoting=none"),
        ("text,label\n", {"quoting": "some"}, "data.quoting='some' must be one of auto"),
        ("text,label\na,b\n".encode("utf-32-le"), {}, "is text of none of UTF-8, UTF-16 and GB"),
        ("text,label\n", {"delimiter": "||"}, r"data.delimiter='\|\|' must be one character"),
    ],
)
def test_tables_that_say_two_things_are_refused(tmp_path, content, changes, message):
    file = tmp_path / "train.tsv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        load(data_settings(source="csv", path=str(file), **changes), LABELLED)


def test_json_that_is_too_deep(tmp_path):
    (tmp_path / "train.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"train\.json: not valid JSON: maximum recursion depth"):
        load(data_settings(path=str(tmp_path)), LABELLED)


def test_rows_after_one_that_cannot_be_read(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text('text,label\n"a" b,c\nd,e\n')
    split = load(data_settings(source="csv", path=str(file), on_error="skip"), LABELLED)["train"]
    assert split.column("text") == ["d"] and split.column("row") == [3] and len(split.skipped) == 1
