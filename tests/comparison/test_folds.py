"""Cross-validation by the command's function: runs of one configuration on parts of its rows."""

import json

import pytest

from ftjax.comparison.study import compare
from ftjax.errors import UserError
from tests.conftest import make_rows, write_jsonl


def test_each_row_is_validated_on_once(config_file, tmp_path, forked_runs):
    write_jsonl(tmp_path / "rows.jsonl", make_rows(45, 0))
    changes = {"data.path": str(tmp_path / "rows.jsonl"), "train.steps": 1, "data.prepare": ()}
    study = compare(config_file, ["head"], tmp_path / "study", folds=2, **changes)
    (row,) = study.rows
    scores = []
    for fold in range(2):
        folder = tmp_path / "study" / "head" / "seed_0" / f"fold_{fold}"
        result = json.loads((folder / "result.json").read_text())
        assert result["fold"] == fold
        scores.append(result["metrics"]["validation"])
    assert [each["examples"] for each in scores] == [22, 23]
    assert row.split == "validation" and row.score == sum(x["accuracy"] for x in scores) / 2
    assert "45 validation examples" in (tmp_path / "study" / "report.md").read_text()


@pytest.mark.parametrize("name", ["seeds", "folds", "jobs"])
def test_no_study_is_beyond_what_anyone_runs(config_file, tmp_path, name):
    """A number typed wrongly would fill the memory with runs to come."""
    counts = {"seeds": 1, "folds": 0, "jobs": 1, name: 10**11}
    with pytest.raises(UserError, match=f"^--{name} {10**11} must be at most"):
        compare(config_file, ["head"], tmp_path / "study", **counts)
