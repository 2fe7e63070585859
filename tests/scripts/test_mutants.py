"""Changes of code that the tests must notice: each is one change, and is Python."""

import ast

import pytest

from scripts import mutants


@pytest.mark.parametrize("file", list(mutants.TARGETS))
def test_each_change_is_one_and_is_python(file):
    text = (mutants.ROOT / "ftjax" / file).read_text()
    before, changes = ast.dump(ast.parse(text)), mutants.mutants(file)
    assert changes and len(set(changes)) == len(changes)
    for change in changes:
        changed = change.applied(text)
        assert ast.dump(ast.parse(changed)) != before, change
        assert text[change.start : change.end] == change.before
        differing = [
            n for n, (a, b) in enumerate(zip(text.split(), changed.split(), strict=False)) if a != b
        ]
        assert differing or len(text) != len(changed)
    for test in mutants.TARGETS[file]:
        assert (mutants.ROOT / "tests" / test).exists(), test


def test_which_changes_there_are(monkeypatch, tmp_path):
    source = '''def f(a: int = 1, *, b: "x | y" = True) -> int:
    """Adds 1."""
    require(a < 2, "a is not below 2")
    if not a and b or a == -3:
        raise ValueError(1 + 1)
    return a + (b * 2.0)
'''
    (tmp_path / "ftjax").mkdir()
    (tmp_path / "ftjax" / "f.py").write_text(source)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    said = {(m.line, m.before.strip(), m.after.strip()) for m in mutants.mutants("f.py")}
    assert said == {
        (1, "1", "2"), (1, "True", "False"), (4, "or", "and"), (4, "and", "or"), (4, "not", ""),
        (4, "==", "!="), (4, "-", ""), (4, "3", "6"), (6, "+ (", "- ("), (6, "*", "/"),
        (6, "2.0", "4.0"),
    }  # fmt: skip
