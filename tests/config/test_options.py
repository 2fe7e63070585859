"""Every key of every configuration refuses what it cannot be, by its name."""

import math
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from ftjax import methods, tasks
from ftjax.config import check, default_config, known_options, override
from ftjax.data import preparation
from ftjax.errors import UserError
from ftjax.options import Option, options

SECTIONS = [("full", task) for task in tasks.TASKS]
SECTIONS += [(method, "classification") for method in methods.METHODS if method != "full"]


def bad_values(kind: Any) -> list[Any]:
    """Three values at least that an annotation does not allow."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return [*bad_values(inner[0]), *outside(inner[1], inner[0])]
    if origin is Literal:
        return ["nonsense", 7, ("a", "b")]
    if origin is tuple:
        items = [(bad,) for bad in bad_values(inner[0])[:3]]
        return [*items, (object(),), (("a",),)] if inner[0] is not Any else items
    if inner:  # a union: what none of them allows
        every = [bad for each in inner for bad in bad_values(each)]
        return [bad for bad in every if not any(allowed(each, bad) for each in inner)]
    return {
        bool: ["perhaps", 2, ()],
        int: ["many", 1.5, True],
        float: [math.nan, math.inf, "much", True],
        str: [("a", "b"), {"a": 1}, [1]],
    }.get(origin or kind, [7, 1.5, ("a", 7)])


def outside(interval: str, kind: type) -> list[Any]:
    """Numbers beyond the ends of an interval, and ends that are not in it."""
    if interval == "regex":
        return ["quer(y", "*", "["]
    if interval == "encoding":
        return ["utf-9", "", "base64"]
    low, high = map(float, interval[1:-1].split(","))
    numbers = [low - (interval[0] == "["), high + (interval[-1] == "]")]
    return [kind(number) for number in numbers if math.isfinite(number)]


def allowed(kind: Any, value: Any) -> bool:
    try:
        Option(kind, None, "").read("key", value)
    except UserError:
        return False
    return True


@pytest.mark.parametrize(("method", "task"), SECTIONS)
def test_bad_values_are_refused_by_their_key(method, task):
    config = default_config(method, task)
    known = known_options(config)
    assert len(known) > 60
    for key in known:
        for bad in bad_values(known[key].kind):
            with pytest.raises(UserError, match=rf"^{key}\b"):
                override(config, key, bad)
    check(config)  # nothing of that has been taken


@pytest.mark.parametrize("name", preparation.STEPS)
def test_bad_options_of_steps_are_refused_by_name(name):
    for key, option in options(preparation.find(name)).items():
        for bad in bad_values(option.kind):
            with pytest.raises(UserError, match=rf"^data.prepare: {name}: {key}\b"):
                preparation.create({"step": name, key: bad})


@pytest.mark.parametrize(
    ("kind", "given", "held"),
    [
        (tuple[int, ...], "1,2", (1, 2)),
        (tuple[int, ...], 3, (3,)),
        (tuple[str, ...], "a, b,", ("a", "b")),
        (tuple[str, ...], "", ()),
        (str | tuple[str, ...], "all-linear", "all-linear"),
        (str | tuple[str, ...], "a,b", ("a", "b")),
        (tuple[tuple[str, int], ...], {"a": 1}, (("a", 1),)),
        (tuple[tuple[str, str], ...], [["a", "b"]], (("a", "b"),)),
        (Literal["none", "full"], None, "none"),
        (str, 7, "7"),
        (float, 1, 1.0),
    ],
)
def test_values_as_command_lines_and_files_have_them(kind, given, held):
    assert Option(kind, None, "").read("key", given) == held


def test_every_key_says_what_it_means():
    for method, task in SECTIONS:
        for key, option in known_options(default_config(method, task)).items():
            assert option.meaning, key
