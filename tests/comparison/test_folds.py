"""Cross-validation by the command's function: runs of one configuration on parts of its rows."""

import json

from ftjax.comparison.study import compare
from tests.conftest import make_rows, write_jsonl


def test_each_row_is_validated_on_once(config_file, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", make_rows(45, 0))
    flags = [f"--config.data.path={tmp_path / 'rows.jsonl'}", "--config.train.steps=1"]
    flags += ["--config.data.prepare=()"]
    (row,) = compare(str(config_file), ["head"], 1, tmp_path / "study", flags, jobs=2, folds=2)
    found = []
    for fold in range(2):
        folder = tmp_path / "study" / "head" / "seed_0" / f"fold_{fold}"
        result = json.loads((folder / "result.json").read_text())
        assert result["fold"] == fold
        found.append(result["metrics"]["validation"])
    assert [each["examples"] for each in found] == [22, 23]
    assert row.split == "validation" and row.score == sum(x["accuracy"] for x in found) / 2
    assert "45 validation examples" in (tmp_path / "study" / "report.md").read_text()
