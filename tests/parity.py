"""What tests of the families measure: `pytest --parity` writes the table of it, PARITY.md.

A test takes the fixture `parity` and records each of its checks. Records travel with the test's
report, so that they also arrive from the workers of pytest-xdist.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.models.cases import CASES

FILE = Path(__file__).with_name("PARITY.md")
VERIFIED = Path(__file__).parents[1] / "ftjax" / "models" / "verified.json"
LIBRARIES = ("jax", "flax", "transformers", "torch")
# Every check that a test may record: what its column holds.
CHECKS = {
    "logits": "float32 outputs against transformers'",
    "bfloat16": "outputs computed in bfloat16 against ours in float32, projections divided by 3 "
    "(of Mixtral with all experts, as rounding may change which are chosen)",
    "round trip": "outputs of the folder we write, whose tensors equal those it was read from, "
    "loaded by transformers, against transformers'",
    "gradients": "of a mean cross entropy against torch's, each stored tensor's relative to its "
    "largest, or to a hundredth of the largest of all",
    "scan/remat": "scanned layers and rematerialization against unrolled layers",
    "packed": "packed rows against each example alone",
    "mesh": "sharded over eight devices against one",
    "greedy": "tokens generated greedily against transformers'",
    "beams": "tokens of beam search (4) against transformers'",
}
Record = tuple[str, str, str, bool, float | str]  # case, head, check, failed, error


@dataclass(frozen=True)
class Parity:
    """Where a test records its checks."""

    properties: list

    def record(
        self, case: str, head: str, check: str, error: float | str, limit: float | None = None
    ) -> None:
        """Records a check's result in the row of a case and a head; of several, the worst stays.

        Args:
            case: a key of `tests.models.cases.CASES`.
            head: of its family, or "none".
            check: a key of `CHECKS`.
            error: what was measured, or a word where there is no figure. Record it after what
                asserts it, or give the limit.
            limit: the largest error that passes; above it the cell says so, and the test fails.
        """
        assert check in CHECKS, check
        failed = limit is not None and not error <= limit
        error = error if isinstance(error, str) else float(error)
        self.properties.append(("parity", (case, head, check, failed, error)))
        assert not failed, f"{case}, {head}: {check} differs by {error:.2e} (limit {limit:.0e})"


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Parity:
    """Records what a test measures, see `Parity.record`."""
    return Parity(request.node.user_properties)


def table(records: Iterable[Record]) -> str:
    """The text of PARITY.md."""
    cells: dict[tuple[str, str, str], list] = {}
    for *key, failed, error in records:
        cells.setdefault(tuple(key), []).append((failed, error))
    checks = [check for check in CHECKS if any(key[2] == check for key in cells)]
    rows = sorted({key[:2] for key in cells})
    lines = [
        "# Parity with transformers",
        "",
        "Written by `pytest --parity` from the results of its run. Figures are the largest",
        "difference, relative to the largest absolute value of what is compared; cells say where",
        "it was above the test's limit. Models are small and random: see `models/cases.py`.",
        f"Versions: {', '.join(f'{name} {version(name)}' for name in LIBRARIES)}.",
        "",
        *(f"- {check}: {CHECKS[check]}" for check in checks),
        "",
        f"| model | head | {' | '.join(checks)} |",
        "|---|---|" + "---|" * len(checks),
    ]
    for row in rows:
        found = (_cell(cells.get((*row, check), ())) for check in checks)
        lines.append(f"| {' | '.join((*row, *found))} |")
    return "\n".join(lines) + "\n"


def _cell(results: Iterable[tuple[bool, float | str]]) -> str:
    """The worst of a check's results."""
    failed, error = max(results, default=(False, ""))
    return (error if isinstance(error, str) else f"{error:.0e}") + " failed" * failed


def verified(records: Iterable[Record]) -> dict[str, dict[str, list[str]]]:
    """Model type → head → checks without a failure: what `ftjax list models` prints."""
    found: dict[str, dict[str, dict[str, bool]]] = {}
    for case, head, check, failed, _ in sorted(records, key=lambda record: record[:3]):
        checks = found.setdefault(CASES[case]().model_type, {}).setdefault(head, {})
        checks[check] = checks.get(check, True) and not failed
    return {
        kind: {head: [c for c in CHECKS if checks.get(c)] for head, checks in heads.items()}
        for kind, heads in found.items()
    }


class Collector:
    """Gathers the records of a run and writes them when it ends."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.records += [tuple(it) for name, it in report.user_properties if name == "parity"]

    def pytest_sessionfinish(self) -> None:
        FILE.write_text(table(self.records), encoding="utf-8")
        VERIFIED.write_text(json.dumps(verified(self.records), indent=1) + "\n", encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity", action="store_true", help="rewrite PARITY.md and verified.json")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--parity") and not hasattr(config, "workerinput"):  # not in a worker
        config.pluginmanager.register(Collector())
