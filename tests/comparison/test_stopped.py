"""A study whose run is stopped by a signal is stopped by it too, and says so by its exit code."""

import sys

import pytest

from ftjax.comparison.study import Study
from ftjax.errors import Stopped, UserError


@pytest.mark.parametrize(("code", "raised"), [(143, Stopped), (130, Stopped), (2, UserError)])
def test_a_run_ends_its_study(config_file, tmp_path, monkeypatch, code, raised):
    ends = tmp_path / "ends.sh"
    ends.write_text(f"#!/bin/sh\nexit {code}\n")
    ends.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(ends))
    with pytest.raises(raised) as error:
        Study(str(config_file), tmp_path, ()).run("lora", 0)
    assert getattr(error.value, "code", 2) == code
