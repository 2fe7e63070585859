"""The report: its rows, and the page as a browser's parser reads it."""

from html.parser import HTMLParser

import numpy as np

from ftjax.data.preparation.page import page
from ftjax.data.preparation.pipeline import prepare
from tests.data.preparation.rows import split
from tests.data.preparation.test_preparation import settings

NASTY = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """Tags that are open, all that came, and the text between."""

    void = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.said = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.said.append(data)


def made():
    rows = [{"text": f"text number {i}", "label": "yes" if i % 4 else "no"} for i in range(40)]
    rows += [{"text": NASTY, "label": "<b>"}, {"text": NASTY, "label": "<b>"}]
    rows += [{"text": "schÃ¶n " + "long " * 200, "label": "no"}]
    held_out = {"train": 0.0, "validation": 8, "test": 0.0}
    asked = settings("repair", "drop_duplicates", "random_swap", splits=held_out)
    return prepare({"train": split(rows, file="a<b>.jsonl")}, asked)


def test_rows_of_the_report():
    found, report = made()
    by = {(row["step"], row["split"]): row for row in report}
    assert list(by) == [
        ("source", "train"), ("repair", "train"), ("drop_duplicates", "train"),
        ("split", "train"), ("split", "validation"), ("random_swap", "train"),
        ("prepared", "train"), ("prepared", "validation"),
    ]  # fmt: skip
    dropped = by["drop_duplicates", "train"]
    assert (dropped["rows_in"], dropped["rows_out"]) == (43, 42)
    assert dropped["examples"] == [
        {
            "row": 42,
            "text": NASTY,
            "reason": f"duplicate of a row of the split: row 41: {NASTY}",
        }
    ]
    assert by["repair", "train"]["changed"] == 1
    (change,) = by["repair", "train"]["changes"]
    assert change["before"].startswith("schÃ¶n long") and change["after"].startswith("schön")
    assert len(change["before"]) == 201 and change["before"].endswith("…")
    swapped = by["random_swap", "train"]
    assert swapped["rows_out"] - swapped["rows_in"] == swapped["added"] > 30
    assert len(swapped["changes"]) == 5
    assert by["source", "train"]["labels"] == {"<b>": 2, "no": 11, "yes": 30}
    lengths = by["prepared", "train"]["lengths"]
    real = [len(text) for text in found["train"].column("text")]
    assert lengths["median"] == int(np.median(real)) and lengths["max"] == max(real)
    edges = [*lengths["edges"], np.inf]
    assert lengths["counts"] == np.histogram(real, edges)[0].tolist()


def test_the_page_is_whole_and_escaped():
    _, report = made()
    found = Page(page(report))
    tags = {tag for tag, _ in found.seen}
    assert not found.open and not tags & {"script", "b>", "img", "link", "iframe"}
    assert all(not {"src", "href"} & set(attributes) for _, attributes in found.seen)
    said = "".join(found.said)
    assert NASTY in said and "a<b>.jsonl" in said
    assert {"svg", "rect", "table"} <= tags and said.count("drop_duplicates") == 2
    bars = [float(a["height"]) for tag, a in found.seen if tag == "rect" and "x" in a]
    row = next(row for row in report if row["step"] == "prepared")
    counts = np.array(row["lengths"]["counts"])
    np.testing.assert_allclose(bars[: len(counts)], 96 * counts / counts.max(), atol=0.06)
    assert Page(page([])).said  # and of nothing


def test_a_run_writes_it(config_file, tmp_path, monkeypatch):
    from ftjax.config import check, load_config
    from ftjax.runs.zero_shot import choose_template

    config = load_config(str(config_file), ["--config.method.name=prompting"])
    config.method.kind = "sentence"
    config.data.prepare = ("repair", "drop_duplicates")
    choose_template(check(config), tmp_path)
    text = (tmp_path / "data_report.html").read_text(encoding="utf-8")
    assert "drop_duplicates" in text and (tmp_path / "data_report.json").exists()
