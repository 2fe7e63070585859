"""Products of factors, as method × model: a covering selection runs, and by `--all` every case."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="every case of every product of factors")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "product: a case that runs by --all alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all") or config.getoption("--parity"):
        return
    products = [item for item in items if item.get_closest_marker("product")]
    config.hook.pytest_deselected(items=products)
    items[:] = [item for item in items if not item.get_closest_marker("product")]


def covering(cases: Sequence[tuple], always: Collection[tuple] = ()) -> list[tuple]:
    """Few cases that have every value of every factor, spread evenly over those of the others.

    Args:
        cases: a value of each factor.
        always: cases that are among the few, as those that a fault was found in.
    """
    assert set(always) <= set(cases), set(always) - set(cases)
    few = [case for case in cases if case in always]
    uses = Counter(pair for case in few for pair in enumerate(case))

    def used(case: tuple) -> tuple[int, int]:
        counts = [uses[pair] for pair in enumerate(case)]
        return sum(count > 0 for count in counts), sum(counts)

    while lacking := [case for case in cases if not all(uses[pair] for pair in enumerate(case))]:
        few.append(min(lacking, key=used))
        uses.update(enumerate(few[-1]))
    return few


def product(cases: Sequence[tuple], few: Collection[tuple], each: bool = True) -> list[Any]:
    """Parameters of a test that runs few of its cases by default.

    Args:
        cases: all of them.
        few: those that run by default.
        each: a value is a parameter of its own; else a case is one.
    """
    return [
        pytest.param(*(case if each else (case,)), marks=() if case in few else pytest.mark.product)
        for case in cases
    ]
