"""Every key of every configuration refuses what it cannot be, by its name."""

import dataclasses
import math
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pytest

from ftjax import methods, tasks
from ftjax.config import (
    check,
    default_config,
    known_options,
    load_config,
    override,
    parse_override,
)
from ftjax.config.unused_keys import unused_keys
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
    """Numbers beyond the ends of an interval, and ends that are not in it; names of nothing."""
    if not isinstance(interval, str):
        return ["nonsense"]
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
        (int, 1e3, 1000),
        (int, np.int64(3), 3),
        (float, np.float32(0.5), 0.5),
        (bool, np.True_, True),
        (tuple[float, ...], np.array([1, 2]), (1.0, 2.0)),
    ],
)
def test_values_as_command_lines_and_files_have_them(kind, given, held):
    read = Option(kind, None, "").read("key", given)
    assert read == held and type(read) is type(held)


def test_what_is_nothing_is_no_text_and_long_values_are_cut():
    for kind in (str, tuple[str, ...], str | tuple[str, ...]):
        with pytest.raises(UserError, match="^key=None"):
            Option(kind, "", "").read("key", None)
    assert parse_override("--config.data.group=none") == ("data.group", "none")
    with pytest.raises(UserError) as error:
        override(default_config(), "seed", ["x"] * 10_000)
    assert len(str(error.value)) < 400


def test_every_key_says_what_it_means():
    for method, task in SECTIONS:
        for key, option in known_options(default_config(method, task)).items():
            assert option.meaning, key
    for step in preparation.STEPS:
        assert all(option.meaning for option in options(preparation.find(step)).values()), step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.profile_steps": (5,)}, r"train.profile_steps=\(5,\) must be two steps"),
        ({"train.profile_steps": (5, 2)}, r"train.profile_steps=\(5, 2\) must be two steps"),
        ({"optimizer.warmup": 1.5}, "optimizer.warmup=1.5 must be whole steps"),
        (
            {"optimizer.warmup": 9, "train.steps": 8},
            "optimizer.warmup=9 is more than train.steps=8",
        ),
        ({"data.splits.test": 2.5}, "data.splits.test=2.5 must be whole rows"),
        ({"data.splits.validation": 0.5, "data.splits.test": 0.5}, "leaves no rows to train on"),
        ({"train.epochs": 0}, "train.epochs and train.steps are both 0"),
        ({"train.batch_size": 10, "train.accumulation": 3}, "train.accumulation=3 does not divide"),
        ({"train.average": 0.9, "train.swa_start": 0.5}, "train.average and train.swa_start"),
        ({"model.from_step": 3}, "model.from_step=3 is a step of model.from_run"),
        ({"optimizer.name": "sgd"}, "optimizer.learning_rate=auto is not for optimizer.name=sgd"),
    ],
)
def test_keys_that_do_not_go_together_are_named(changes, message):
    config = default_config()
    for key, value in changes.items():
        override(config, key, value)
    with pytest.raises(UserError, match=message):
        check(config)


@pytest.mark.parametrize("section", ["method", "task"])
@pytest.mark.parametrize("name", [5, None, ["lora"], {"name": "lora"}])
def test_a_name_that_is_none_is_refused_by_its_key(section, name):
    """As of a configuration that was built without types."""
    config = default_config()
    with config.ignore_type():
        config[section].name = name
    with pytest.raises(UserError, match=rf"\b{section}\b"):
        check(config)


def test_no_number_is_beyond_what_devices_count_with():
    for key, option in known_options(default_config("lora")).items():
        if type(option.default) is int:
            with pytest.raises(UserError, match=rf"^{key}="):
                override(default_config("lora"), key, 2**31)


def test_keys_that_another_leaves_unread_are_said():
    config = default_config()
    assert list(unused_keys(config)) == []
    config.optimizer.momentum, config.data.window = 0.9, 64
    assert [line.partition(" ")[0] for line in unused_keys(config)] == [
        "optimizer.momentum=0.9",
        "data.window=64",
    ]
    config.optimizer.name, config.data.streaming = "sgd", True
    assert list(unused_keys(config)) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("config.seed = -1", "^seed=-1 must be in"),
        ("config.optimizer.learning_rate = float('nan')", "^optimizer.learning_rate=nan must be"),
        (
            "config.mesh.replicate = ('[',)",
            r"^mesh.replicate=\('\[',\) is not a regular expression",
        ),
        ("config.train.profile_steps = ('a', 'b')", "^train.profile_steps=.*wrong type"),
        ("config.data.prepare = (7,)", "^data.prepare="),
        ("config.train.epochs = 1.5", "line 3: TypeError: .*epochs"),
        ("config.train.epoch = 1", "line 3: AttributeError: .*epoch"),
        ("config.train = 5", "line 3: TypeError: .*train"),
        ("config.model.segments = {1: 2}", "^unknown config key 'model.segments.1'"),
        ("return 1 / 0", "line 3: ZeroDivisionError: division by zero"),
        ("return nothing", "line 3: NameError: name 'nothing' is not defined"),
        ("return", "returns None, no configuration"),
        ("return {}", "returns {}, no configuration"),
        ("(", "line 3: SyntaxError"),
    ],
)
def test_bad_pages_are_refused_by_the_key_or_the_line(tmp_path, body, message):
    """As overrides are, whatever a page holds or raises."""
    file = tmp_path / "page.py"
    file.write_text(
        "from ftjax.config import default_config\n"
        f"def get_config(config=default_config()):\n    {body}\n    return config\n"
    )
    with pytest.raises(UserError, match=message):
        check(load_config(str(file)))


def test_pages_may_set_what_options_hold(tmp_path):
    """Also another of the types that an option has, which overrides can, and other sequences."""
    file = tmp_path / "page.py"
    file.write_text(
        "from ftjax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config('lora')\n"
        "    config.optimizer.learning_rate = 1\n"
        "    config.model.segments = (4, 2)\n"
        "    config.method.targets = 'all-linear'\n"
        "    config.task.class_weights = [1, 2]\n"
        "    return config\n"
    )
    config = check(load_config(str(file)))
    assert config.optimizer.learning_rate == 1.0 and config.model.segments == (4, 2)
    assert config.method.targets == "all-linear" and config.task.class_weights == (1.0, 2.0)


@pytest.mark.parametrize("text", ["(" * 5000, "9" * 5000, "1e999", "\0", "[" * 9 + "]" * 9])
def test_values_that_are_nothing_are_refused_by_their_key(text):
    with pytest.raises(UserError, match=r"^seed='?"):
        override(default_config(), *parse_override(f"--config.seed={text}"))


@pytest.mark.parametrize("name", methods.METHODS)
def test_what_a_method_sets_anew_is_bounded_as_before(name):
    """With a default of its own an option does not become any text or number."""
    cls = methods.find(name)
    for before in filter(dataclasses.is_dataclass, cls.__mro__[1:]):
        for key, option in options(before).items():
            assert get_origin(options(cls)[key].kind) == get_origin(option.kind), key
