"""Progress where nobody watches: lines that a log can hold."""

import time

import ipykernel.kernelapp  # noqa: F401 - a process that starts kernels is none

from ftjax import bars


def test_logs_have_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(bars, "EVERY", 0.0)
    line = bars.bar(total=8, initial=2, unit="step", desc="run")
    line.set_postfix_str("loss 0.5")
    line.update(3)
    line.update(3)
    line.write("step 8: better")
    line.close()
    out, err = capsys.readouterr()
    assert out == "step 8: better\n" and "\r" not in err
    first, last = err.splitlines()
    assert first.startswith("run: step 5 of 8 (62%), loss 0.5, ")
    assert last == "run: step 8 of 8 (100%), loss 0.5"


def test_lines_are_rare_and_the_last_is_said(capsys):
    line = bars.bar(total=100, initial=0, unit="step", desc="run")
    for _ in range(100):
        line.update(1)
    line.close()
    assert capsys.readouterr().err == "run: step 100 of 100 (100%)\n"
    line = bars.bar(total=100, initial=100, unit="step", desc="run")
    line.close()  # nothing was left to do
    assert not capsys.readouterr().err


def test_what_takes_long_says_for_how_long(monkeypatch, capsys):
    monkeypatch.setattr(bars, "EVERY", 0.02)
    with bars.elapsed("compiling"):
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "compiling" and lines[1] == "compiling: 0 s" and len(lines) > 2
