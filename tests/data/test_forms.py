"""What form and encoding a file is of, by its suffix and its content, and which splits it is."""

import gzip
import json

import datasets
import openpyxl
import pyarrow
import pytest

from ftjax.data.preparation.profile import label_counts
from ftjax.data.readers import form_of
from ftjax.data.sources import load, open_file, read_split
from ftjax.errors import UserError
from ftjax.tasks.causal_lm import CausalLM
from ftjax.tasks.classification import Classification
from ftjax.tasks.instruction import Instruction
from ftjax.tasks.multilabel import Multilabel
from ftjax.tasks.preference import Preference
from ftjax.tasks.token_classification import TokenClassification
from tests.conftest import data_settings, write_jsonl

LABELLED = Classification.schema
ROWS = [{"text": "good, so", "label": "a"}, {"text": "naïve 电影", "label": "b"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = 'text,label\n"good, so",a\nnaïve 电影,b\n'


def load_file(file, schema=LABELLED, task="classification", **changes):
    return load(data_settings(task, path=str(file), **changes), schema)["train"]


def rows_of(split):
    return [{key: row[key] for key in row if key != "row"} for row in split.rows]


@pytest.mark.parametrize("compress", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", TABLE),
        (
            "a.tsv",
            TABLE.replace('"', "").replace(",a", "\ta").replace(",b", "\tb").replace(",l", "\tl"),
        ),
        ("a.jsonl", LINES),
        ("a.json", json.dumps(ROWS, indent=1)),
        ("a.json", json.dumps({"version": "1", "data": ROWS, "more": [1]})),
        ("a.json", json.dumps({"version": {"data": [{}]}, "rows": ROWS}, indent=2)),
        ("a.json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("a.csv", LINES),  # its content says otherwise
        ("a.txt", LINES),
        ("a", LINES),
    ],
)
def test_the_form_follows_suffix_and_content(tmp_path, name, text, compress):
    file = tmp_path / f"{name}{compress}"
    codec = {".gz": "gzip", ".zst": "zstd"}.get(compress)
    with pyarrow.output_stream(str(file), compression=codec) as stream:
        stream.write(text.encode())
    for source in ("auto", "json"):
        assert rows_of(load_file(file, source=source)) == ROWS
    if not codec and name.endswith("sv"):  # in a folder, and where others say another form
        file.rename(tmp_path / f"train{file.suffix}")
        assert rows_of(load_file(tmp_path, source="text")) == ROWS


def test_what_suffixes_leave_open(tmp_path):
    texts = {
        "text": "Once upon\na time O\n",
        "conll": "a\tO\nb\tB-x\n\nc\tO\n",
        "squad": json.dumps({"data": [{"paragraphs": []}]}),
        "json": json.dumps({"data": [{"text": "a"}]}),
    }
    for form, text in texts.items():
        file = tmp_path / ("a.json" if form in ("squad", "json") else "a.txt")
        file.write_text(text)
        assert form_of(file) == form
    file = tmp_path / "a.txt"
    file.write_text(TABLE)
    assert form_of(file) == "text" and rows_of(load_file(file, source="csv")) == ROWS
    file.rename(tmp_path / "a.what")
    with pytest.raises(UserError, match=r"a\.what: the suffix says no form: .*data\.source"):
        load_file(tmp_path / "a.what")
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "b.csv")
    assert rows_of(load_file(tmp_path / "b.csv")) == ROWS


def test_damaged_compressed_files_are_named(tmp_path):
    whole = gzip.compress(LINES.encode() * 1000)
    for name, data in {"cut": whole[:-20], "flipped": whole[:40] + b"xyz" + whole[43:]}.items():
        file = tmp_path / f"{name}.jsonl.gz"
        file.write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}\.jsonl\.gz"):
            load_file(file)


CHINESE = "这部电影很好看，我们都喜欢。"


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        *(("utf-8", ""), ("utf-8-sig", ""), ("gb18030", "GB18030"), ("utf-16", "UTF-16")),
        *(("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32")),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl", "txt"])
def test_encodings_are_recognized_and_said(tmp_path, capsys, encoding, said, form):
    file = tmp_path / f"a.{form}"
    row = json.dumps({"text": CHINESE, "label": "好"}, ensure_ascii=False)
    text = {"csv": f"text,label\n{CHINESE},好\n", "jsonl": f"{row}\n", "txt": f"{CHINESE}\n"}[form]
    file.write_bytes(text.encode(encoding))
    schema = CausalLM.schema if form == "txt" else LABELLED
    assert load_file(file, schema).column("text") == [CHINESE]
    assert capsys.readouterr().out == (f"{file} is read as {said}\n" if said else "")


def test_other_encodings_are_asked_for(tmp_path, capsys):
    file = tmp_path / "a.csv"
    for encoding, text in {
        "cp1252": "très déjà vu, naïve façade",
        "cp1251": "привет, как дела",
    }.items():
        file.write_bytes(f'text,label\n"{text}",x\n'.encode(encoding))
        with pytest.raises(UserError, match=r"row 2 has bytes that are not UTF-8 .*data\.encoding"):
            load_file(file)
        assert load_file(file, encoding=encoding).column("text") == [text]
    assert "GB18030" not in capsys.readouterr().out
    lines = [f'{{"text": "{CHINESE}", "label": "x"}}\n'.encode()] * 5
    (tmp_path / "b.jsonl").write_bytes(b"".join([*lines, b'{"text": "\xff"}\n']))
    with pytest.raises(UserError, match="row 6 has bytes that are not UTF-8"):  # one bad row
        load_file(tmp_path / "b.jsonl")


def test_sheets_of_excel(tmp_path):
    book = openpyxl.Workbook()
    book.create_sheet("empty", 0)
    for line in ([None, None], ["text", "label"], ["good", 1], [None, None], ["bad", 0]):
        book["Sheet"].append(line)
    book.save(tmp_path / "a.xlsx")
    split = load_file(tmp_path / "a.xlsx")
    assert rows_of(split) == [{"text": "good", "label": "1"}, {"text": "bad", "label": "0"}]
    assert split.column("row") == [3, 5]
    data = (tmp_path / "a.xlsx").read_bytes()
    (tmp_path / "b.xlsx").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"b\.xlsx is not a readable Excel file"):
        load_file(tmp_path / "b.xlsx")


def test_commands_on_one_file_read_any_form(tmp_path):
    """`predict --input`: whatever the run's `data.source` is."""
    (tmp_path / "a.csv").write_text(TABLE)
    schema = LABELLED.to_predict()
    for source in ("json", "hub", "auto"):
        opened = open_file(tmp_path / "a.csv", data_settings(source=source))
        split = read_split([opened], schema, skip=False)
        assert split.column("text") == [row["text"] for row in ROWS]


def test_splits_by_other_names(tmp_path, capsys):
    for name in ("train_sft", "validation_matched", "validation_mismatched"):
        write_jsonl(tmp_path / f"{name}.jsonl", ROWS)
    named = {"train": "train_sft", "validation": "validation_matched.jsonl", "test": ""}
    with pytest.raises(UserError, match="has no train or test file .*train_sft.*data.split_names"):
        load(data_settings(path=str(tmp_path)), LABELLED)
    found = load(data_settings(path=str(tmp_path), split_names=named), LABELLED)
    assert set(found) == {"train", "validation"}
    assert "not used: validation_mismatched (data.split_names)" in capsys.readouterr().out
    wrong = {**named, "test": "validation_mismtched"}
    with pytest.raises(UserError, match=r"data.split_names.test=.*did you mean 'validation_mism"):
        load(data_settings(path=str(tmp_path), split_names=wrong), LABELLED)
    (tmp_path / "train_sft.csv").write_text(TABLE)
    with pytest.raises(UserError, match=r"has train_sft.csv and train_sft.jsonl: leave one"):
        load(data_settings(path=str(tmp_path), split_names=named), LABELLED)


def test_splits_of_the_hub_by_other_names(tmp_path, capsys):
    part = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train_sft": part, "test_sft": part, "test_gen": part}).save_to_disk(
        tmp_path
    )
    with pytest.raises(UserError, match="has the splits train_sft, .*: set data.split_names.train"):
        load(data_settings(path=str(tmp_path)), LABELLED)
    named = {"train": "train_sft", "validation": "", "test": "test_sft"}
    found = load(data_settings(path=str(tmp_path), split_names=named), LABELLED)
    assert {name: rows_of(split) for name, split in found.items()} == {"train": ROWS, "test": ROWS}
    assert "not used: test_gen (data.split_names)" in capsys.readouterr().out


def chats_of(file, **columns):
    settings = data_settings("instruction", path=str(file))
    split = load({**settings, "columns": {**settings["columns"], **columns}}, Instruction.schema)
    return [
        [(turn["role"], turn["content"]) for turn in row.get("messages") or ()]
        or [row["prompt"], row["completion"]]
        for row in split["train"].rows
    ]


def test_columns_are_what_they_are_said_to_be(tmp_path):
    """Mapped files of Dolly's and ShareGPT's forms; and those forms, recognized."""
    dolly = {"instruction": "ask", "context": "of", "response": "say", "category": "x"}
    file = write_jsonl(tmp_path / "a.jsonl", [dolly, {**dolly, "context": ""}])
    assert chats_of(file, prompt="instruction", completion="response") == [["ask", "say"]] * 2
    assert chats_of(file) == [
        [("user", "ask\n\nof"), ("assistant", "say")],
        [("user", "ask"), ("assistant", "say")],
    ]
    said = [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]
    answer = [("user", "ask"), ("assistant", "say")]
    for name in ("conversations", "dialog"):
        write_jsonl(file, [{name: said}])
        assert chats_of(file, messages=name) == [answer]
    write_jsonl(file, [{"conversations": said, "system": "be"}])
    assert chats_of(file, messages="conversations") == [[("system", "be"), *answer]]


def test_chats_of_several_forms_in_a_file(tmp_path):
    turns = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]
    shared = [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]
    rows = [{"messages": turns}, {"prompt": "ask", "completion": "say"}, {"conversations": shared}]
    rows += [{"instruction": "ask", "output": "say"}, {"prompt": "x", "completion": None}]
    file = write_jsonl(tmp_path / "a.jsonl", rows[:4])
    both = [("user", "ask"), ("assistant", "say")]
    assert chats_of(file) == [both, ["ask", "say"], both, both]
    write_jsonl(file, rows)
    with pytest.raises(UserError, match="row 5: the chat has no turn of the assistant"):
        chats_of(file)


def test_transcripts_of_hh_rlhf(tmp_path):
    said = "\n\nHuman: How are you?\n\nAssistant: Well.\n\nHuman: Why?\n\nAssistant: "
    file = write_jsonl(tmp_path / "a.jsonl", [{"chosen": f"{said}So.", "rejected": f"{said}No."}])
    row = load_file(file, Preference.schema, "preference").rows[0]
    for name, last in (("chosen", "So."), ("rejected", "No.")):
        turns = [(turn["role"], turn["content"]) for turn in row[name]]
        assert turns == [
            ("user", "How are you?"),
            ("assistant", "Well."),
            ("user", "Why?"),
            ("assistant", last),
        ]
    apart = load_file(
        write_jsonl(file, [{"prompt": said, "chosen": "So.", "rejected": "No."}]),
        Preference.schema,
        "preference",
    )
    assert [turn["content"] for turn in apart.rows[0]["prompt"]] == [
        "How are you?",
        "Well.",
        "Why?",
    ]
    bare = [{"prompt": "Human: or not", "chosen": "yes", "rejected": "no"}]
    row = load_file(write_jsonl(file, bare), Preference.schema, "preference").rows[0]
    assert row["prompt"][0]["content"] == "Human: or not"


def test_columns_that_are_not_there_are_named(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{**row, "txt_pair": "x"} for row in ROWS])
    settings = data_settings(path=str(file))
    named = {**settings, "columns": {**settings["columns"], "text_pair": "text_pai"}}
    with pytest.raises(UserError, match=r"no row has a field 'text_pai' .*did you mean 'txt_pair'"):
        load(named, LABELLED)
    named["columns"]["text_pair"] = "txt_pair"
    assert load(named, LABELLED)["train"].column("text_pair") == ["x", "x"]


DEEP = "within"  # stands for brackets within each other
TURN = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (
            Instruction,
            {"messages": [{**TURN, "role": ["user"]}]},
            r"role \['user'\] must be one of",
        ),
        (Instruction, {"messages": [{**TURN, "content": "\ud800"}]}, "half of a character"),
        (Instruction, {"messages": [{**TURN, "role": "\ud800"}]}, "role .*must be one of"),
        (Instruction, {"messages": [{**TURN, "more": DEEP}]}, "no turn of|brackets|not valid JSON"),
        (
            Instruction,
            {"messages": [TURN], "tools": [{"a": DEEP}]},
            "no turn of|brackets|not valid JSON",
        ),
        (Preference, {"prompt": "x", "chosen": DEEP, "rejected": "x"}, "turn 1|not valid JSON"),
        (TokenClassification, {"tokens": ["\ud800"], "tags": ["O"]}, "half of a character"),
        (TokenClassification, {"tokens": ["a"], "tags": DEEP}, "must hold words|not valid JSON"),
        (Classification, {"text": DEEP}, "must be text|not valid JSON"),
        (Classification, {"text": "a", "label": DEEP}, "must be a string|not valid JSON"),
        (Multilabel, {"text": "a", "label": DEEP}, "must be a string|not valid JSON"),
        (Multilabel, {"text": "a", "label": "[" * 2000 + "]" * 2000}, "must be a list"),
        (Multilabel, {"text": "a", "label": f"[{'1' * 5000}]"}, "field 'label'"),
    ],
)
def test_odd_json_is_a_bad_row(tmp_path, task, row, message):
    """Values of other types, of half a character, of too many digits and brackets."""
    file = tmp_path / "a.jsonl"
    for depth in (500, 900, 2000):
        text = json.dumps(row).replace(f'"{DEEP}"', "[" * depth + "]" * depth)
        file.write_text(f"{text}\n")
        settings = data_settings(NAMES[task], path=str(file))
        with pytest.raises(UserError, match=rf"a\.jsonl: row 1.*({message})"):
            load(settings, task.schema)


NAMES = {
    Instruction: "instruction",
    Preference: "preference",
    TokenClassification: "token_classification",
    Classification: "classification",
    Multilabel: "multilabel",
}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["²", "1"], ("1", "²")),
        (["--1", "1"], ("--1", "1")),
        ([1.0, 0.0], ("0", "1")),  # of a column with gaps
        (["1.0", "0.0"], ("0", "1")),  # the same as pandas writes it
        (["1.0", "1.5"], ("1.0", "1.5")),
        (["0", "00", "1"], ("0", "00", "1")),
        (["0", "1" * 5000], "'1' has no example"),
        ([0, 20_000_000_000], "'1' has no example"),
        (["1", None], "row 2: field 'label' is null"),
    ],
)
def test_odd_labels(tmp_path, labels, names):
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": label} for label in labels])
    settings, task = data_settings(path=str(file)), Classification()
    if isinstance(names, str):
        with pytest.raises(UserError, match=names):
            task.label_names(load(settings, task.schema)["train"])
        return
    split = load(settings, task.schema)["train"]
    assert task.label_names(split) == names
    assert list(label_counts(split.column("label"))) == list(names)


def test_classes_of_the_hub_without_a_row(tmp_path):
    """They are outputs that are never right: numbers of classes stay what they are."""
    label = datasets.ClassLabel(names=["no", "yes", "perhaps"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    part = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features)
    held = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [2, 0]}, features)
    datasets.DatasetDict({"train": part, "test": held}).save_to_disk(tmp_path)
    splits, task = load(data_settings(path=str(tmp_path)), LABELLED), Classification()
    names = task.label_names(splits["train"])
    assert names == ("no", "yes", "perhaps")
    assert task.labels_of(splits["test"], names).tolist() == [2, 0]
