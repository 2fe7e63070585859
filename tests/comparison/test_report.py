"""The numbers and the pages of a comparison."""

import math

import pytest
from scipy.stats import binomtest, t

from ftjax.comparison import plots, study
from ftjax.comparison.report import markdown_table, write_report
from ftjax.comparison.row import summarize
from ftjax.comparison.statistics import wilson


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (3, 10), (10, 10), (871, 1000)])
def test_interval_equals_scipy(hits, count):
    wanted = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits / count, count) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def result(method, seed, accuracy, **more):
    return {
        "method": method,
        "model": "m",
        "task": "classification",
        "data": "json:<x>",
        "seed": seed,
        "trainable_params": 10,
        "total_params": 1000,
        "train_seconds": 2.0 + seed,
        "tokens_per_second": 100.0,
        "peak_memory_bytes": 2**20 * (seed + 1),
        "learning_rate": 1e-3,
        "best_metric": "accuracy",
        "metrics": {
            "validation": {"accuracy": 0.1, "examples": 9},
            "test": {"accuracy": accuracy, "examples": 100},
        },
        **more,
    }


def test_metrics_that_are_no_shares_have_intervals_over_seeds():
    scores = (0.8, 0.9, 0.7)
    runs = [result("full", seed, 0.5, best_metric="f1") for seed in range(3)]
    for run, score in zip(runs, scores, strict=True):
        run["metrics"]["test"]["f1"] = score
    (row,) = summarize(runs)
    wanted = t.interval(0.95, 2, loc=0.8, scale=0.1 / 3**0.5)
    assert (row.low, row.high) == pytest.approx(wanted) and row.score == pytest.approx(0.8)
    assert "test f1" in markdown_table([row])
    assert "95% interval of the mean over seeds" in markdown_table([row])
    assert row.to_json()["interval_of"] == "seeds"
    (alone,) = summarize(runs[:1])
    assert alone.low == alone.high == 0.8 and alone.cells()[3:6] == ("0.800", "one", "none")


def test_an_interval_of_examples_says_so_beside_the_seeds(tmp_path):
    """Seeds that differ by far more than the examples' share of chance."""
    scores = (0.6, 0.75, 0.9)
    runs = [result("full", seed, score) for seed, score in enumerate(scores)]
    for run in runs:
        run["metrics"]["test"]["examples"] = 2000
    rows = summarize(runs)
    wanted = binomtest(1500, 2000).proportion_ci(0.95, method="wilson")
    interval = f"[{wanted.low:.3f}, {wanted.high:.3f}]"
    assert interval == "[0.731, 0.768]"
    assert rows[0].cells()[3:6] == ("0.750 ± 0.150", "0.600 to 0.900", interval)
    write_report(tmp_path, rows, {})
    for name in ("report.md", "report.html"):
        page = (tmp_path / name).read_text()
        assert "95% interval of test examples" in page and "0.600 to 0.900" in page
        assert "of the 2,000 test examples alone" in page
        assert "nothing of what other seeds would give" in page
    assert rows[0].to_json()["interval_of"] == "examples"


def test_what_intervals_are_of():
    """Words are no rows; of texts those that were written; a test split may lack the metric."""
    words = result("full", 0, 0.5, task="token_classification")
    (row,) = summarize([words])
    assert not row.of_examples and row.low == row.high == 0.5
    written = result("full", 0, 0.5, task="instruction", best_metric="exact_match")
    written["metrics"]["test"] |= {"exact_match": 0.25, "written": 20}
    (row,) = summarize([written])
    wanted = binomtest(5, 20).proportion_ci(0.95, method="wilson")
    assert (row.low, row.high) == pytest.approx((wanted.low, wanted.high))
    one_label = result("full", 0, 0.5, best_metric="auroc")
    one_label["metrics"]["validation"]["auroc"] = 0.9
    (row,) = summarize([one_label])
    assert (row.split, row.score) == ("validation", 0.9)


def test_folds_are_compared_on_what_they_hold_out(tmp_path):
    """Of all rows, though there is a test split."""
    scores, counts = (0.8, 0.9, 0.7), (9, 8, 8)
    runs = [result("full", 0, 0.1, fold=fold) for fold in range(3)]
    for run, score, count in zip(runs, scores, counts, strict=True):
        run["metrics"]["validation"] = {"accuracy": score, "examples": count}
    (row,) = summarize(runs)
    assert row.split == "validation" and row.score == pytest.approx(0.8)
    assert (row.low, row.high) == pytest.approx(wilson(0.8, 25))
    write_report(tmp_path, [row], {})
    page = (tmp_path / "report.md").read_text()
    assert "1 seed(s), 25 validation examples" in page and "rows to train on are in 3 parts" in page


def test_methods_are_ranked_by_what_is_better(monkeypatch):
    """The worst is drawn lowest; of learning rates the best is kept, and one without a number not."""
    runs = [result(name, 0, 0.5, task="causal_lm", best_metric="perplexity") for name in "abc"]
    for run, value in zip(runs, (20.0, 10.0, math.nan), strict=True):
        for split in ("validation", "test"):
            run["metrics"][split]["perplexity"] = value
    rows, drawn = summarize(runs), []
    monkeypatch.setattr(plots, "_png", lambda figure: drawn.append(figure) or b"")
    plots._scores(rows)
    labels = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert labels == ["c", "a", "b"]
    tried = {rate: run for rate, run in zip((1e-3, 1e-4, 1e-5), runs, strict=True)}
    assert study.best_rate(tried) == 1e-4


def test_report(tmp_path):
    results = [
        result("full", 0, 0.8),
        result("full", 1, 0.9),
        result("none", 0, 0.5, template="<b>"),
    ]
    rows = summarize(results)
    assert [row.method for row in rows] == ["full", "none"]
    assert rows[0].score == pytest.approx(0.85) and rows[0].seconds == 2.5
    assert rows[0].deviation == pytest.approx(0.0707, abs=1e-4)
    assert rows[0].memory == 2 * 2**20
    table = markdown_table(rows)
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")]
    assert cells[4:7] == ["0.850 ± 0.071", "0.800 to 0.900", "[0.767, 0.907]"]
    assert cells[3] == "1.00%"
    assert len({len(line) for line in table.splitlines()}) == 1
    curves = {
        "full": [{"step": 1, "loss": 1.0}, {"step": 2, "validation/accuracy": 0.5}],
        "none": [],
    }
    for run, constant in zip(results, (0.5, 0.6, 0.5), strict=True):
        run["metrics"]["test"]["baseline"] = {"accuracy": constant}
    write_report(tmp_path, rows, curves, {"full": {1e-3: 0.8, 1e-4: 0.71}})
    for name in ("report.md", "report.html"):
        page = (tmp_path / name).read_text()
        assert "always the same has accuracy 0.550." in page
        assert "full: 0.001: 0.800, 0.0001: 0.710" in page
    assert "<code>m</code>" in page
    assert page.count("data:image/png;base64,") == 2 and 'src="http' not in page
    assert "&lt;b&gt;" in page and "<b>" not in page  # what data holds is escaped
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert table in (tmp_path / "report.md").read_text()
