"""The learning rate by method and model size, against the comparisons' own figures."""

import math
import re
from pathlib import Path

import pytest

from ftjax import methods
from ftjax.config import check, default_config
from ftjax.errors import UserError
from ftjax.methods.rates import OPTIMIZERS, RATES, SIZES, rates_of
from ftjax.training.learning_rate import peak_rate, rate_notes
from tests.conftest import build

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def best_rates() -> dict[str, list[float]]:
    """Method → the rates that were kept on each task, from the tables of the comparisons."""
    best: dict[str, list[float]] = {}
    for task in ("sst2", "mrpc", "trec"):
        text = (EXPERIMENTS / f"compare_{task}/report.md").read_text()
        for row in (line.split("|")[1:-1] for line in text.splitlines() if "±" in line):
            if len(row) > 4 and row[4].strip():
                best.setdefault(row[0].strip(), []).append(float(row[4]))
    return best


def test_rates_are_those_that_did_best_in_the_comparisons():
    """The geometric mean over tasks, with MiniLM, within half a step of the rates that were tried.

    Every method that trains has a row.
    """
    best = best_rates()
    assert len(best) == 37 and len(best["lora"]) == 3
    for name, rates in best.items():
        mean = math.exp(sum(map(math.log, rates)) / len(rates))
        assert 0.6 <= RATES[name].at(22_700_000) / mean <= 1.7, name
    trained = {name for name in methods.METHODS if name not in ("prompting", "combination")}
    assert trained <= set(RATES)
    assert {name for name, rates in RATES.items() if rates.measured} == set(best)


@pytest.mark.parametrize("name", RATES)
def test_larger_models_take_no_higher_rates(name):
    sizes = sorted((1, *SIZES, 10**8, 10**9, 10**12))
    rates = [RATES[name].at(size) for size in sizes]
    assert rates == sorted(rates, reverse=True)
    for size, rate in zip(SIZES, RATES[name].by_size, strict=True):
        assert RATES[name].at(size) == pytest.approx(rate, rel=0.05)


def test_between_sizes_by_the_logarithm():
    """Half-way between 110 million and 7 billion, LoRA's rate is the geometric mean of both."""
    middle = int((SIZES[1] * SIZES[2]) ** 0.5)
    assert RATES["lora"].at(middle) == pytest.approx((5e-4 * 2e-4) ** 0.5, rel=0.05)


def test_methods_over_others_take_theirs():
    assert rates_of({"name": "qlora", "over": {"name": "lora"}})[0] == "qlora"
    assert rates_of({"name": "qlora", "over": {"name": "ia3"}}) == ("ia3", RATES["ia3"])
    parts = {"name": "combination", "parts": ("ia3", {"name": "lora", "rank": 2})}
    assert rates_of(parts)[0] == "lora"  # the lower
    assert rates_of({"name": "full"}, new=True)[0] == "new"
    assert rates_of({"name": "mine"})[1].by_size[0] == 1e-3


@pytest.mark.parametrize(
    ("optimizer", "given", "rate", "note"),
    [
        ("adamw", "auto", 5e-3, r"learning_rate=auto: 0.005, for lora and \d\d,\d+ parameters"),
        ("lion", "auto", 1e-3, "learning_rate=auto: 0.001"),
        ("adamw", 5e-5, 5e-5, "warning: .*5e-05 is 1/100 of the 0.005 that suits lora on"),
        ("adamw", 0.1, 0.1, "warning: .*0.1 is 20 times the 0.005"),
        ("adamw", 1e30, 1e30, r"1e\+30 is 2.0e\+32 times the 0.005"),
        ("adamw", 1e-3, 1e-3, None),
        ("sgd", 10.0, 10.0, None),
    ],
)
def test_what_is_said_of_a_rate(tiny, optimizer, given, rate, note):
    config = default_config("lora")
    config.optimizer.name, config.optimizer.learning_rate = optimizer, given
    model = build(tiny, {"name": "lora"})
    assert peak_rate(check(config), model) == pytest.approx(rate)
    notes = list(rate_notes(config, model))
    assert len(notes) == (note is not None) and all(re.search(note, text) for text in notes)


def test_a_rate_names_the_source_of_the_nearer_column(monkeypatch):
    """A small model with a larger head is still of the size that was measured here."""
    config = default_config("full")
    for size, source in ((22_900_000, "measured here"), (109_000_000, "published: Devlin")):
        monkeypatch.setattr(
            "ftjax.training.learning_rate.model_size", lambda tuned, size=size: size
        )
        assert source in next(iter(rate_notes(config, None)))


def test_an_optimizer_without_rates_wants_one():
    config = default_config("lora")
    config.optimizer.name = "sgd"
    assert "sgd" not in OPTIMIZERS
    with pytest.raises(UserError, match="optimizer.learning_rate=auto is not for .*=sgd: give one"):
        check(config)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_preferences_are_learned_ten_times_slower(tiny, method):
    config = default_config(method, "preference")
    usual = RATES[method].at(1)
    assert peak_rate(config, build(tiny, {"name": method})) == pytest.approx(usual / 10)
