"""The schema says of pages in YAML what reading them does."""

import json
from copy import deepcopy
from functools import cache
from random import Random

import pytest
import yaml
from jsonschema import Draft202012Validator

from ftjax.config import check, default_config, flat_keys, known_options, load_config
from ftjax.config.schema import schema
from ftjax.config.yaml import _Dumper, read_yaml, to_yaml
from ftjax.errors import UserError
from tests.config.test_options import SECTIONS, bad_values
from tests.config.test_yaml import SPECS


@cache
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(schema())
    return Draft202012Validator(schema())


def refused(tree) -> bool:
    return not validator().is_valid(tree)


def nested(config) -> dict:
    return json.loads(json.dumps(config.to_dict()))


@pytest.mark.parametrize("spec", SPECS)
def test_every_page_is_valid(spec, tmp_path):
    file = tmp_path / "page.yaml"
    file.write_text(to_yaml(check(load_config(spec))), encoding="utf-8")
    tree = read_yaml(file)
    assert [error.message for error in validator().iter_errors(tree)] == []


@pytest.mark.parametrize(("method", "task"), SECTIONS)
def test_what_options_refuse_it_does(method, task):
    config = default_config(method, task)
    assert not refused(nested(config))
    for key, option in known_options(config).items():
        *parents, last = key.split(".")
        for bad in bad_values(option.kind):
            if key.endswith(".name") or "regex" in repr(option.kind) or bad in ("utf-9", "base64"):
                continue
            try:
                bad = json.loads(json.dumps(bad, allow_nan=False))
            except (TypeError, ValueError):
                continue  # no value of JSON
            tree = node = nested(config)
            for name in parents:
                node = node[name]
            node[last] = bad
            assert refused(tree), (key, bad)


@pytest.mark.parametrize(
    "tree",
    [
        {"trian": {}},
        {"train": {"epoch": 3}},
        {"train": 5},
        {"method": {"name": "lra"}},
        {"method": {"name": "lora", "reduction": 4}},
        {"method": {"reductoin": 4}},
        {"method": {"name": "qlora", "over": {"name": "lora", "rnk": 4}}},
        {"task": {"name": "regression", "class_weights": [1]}},
        {"task": {"name": "regression"}, "data": {"columns": {"context": "x"}}},
        {"optimizer": {"name": "adamw", "strength": 1}},
        {"data": {"prepare": ["drop_duplicate"]}},
        {"data": {"prepare": [{"step": "filter_length", "minimun": 3}]}},
        {"data": {"prepare": [{"minimum": 3}]}},
        {"page": 5},
    ],
)
def test_what_is_no_key_is_refused(tree):
    assert refused(tree)


# Of messages about what a schema of each key by itself does not say.
TOGETHER = (
    "must be two steps",
    "must be whole",
    "does not divide",
    "is more than",
    "leaves no rows",
)
TOGETHER += ("regular expression", "are both 0", "must be a multiple", "must be positive: a stream")
TOGETHER += ("is a step of", "two averages", "is not for optimizer", "no splits are drawn")
VALUES = [
    None,
    True,
    0,
    -1,
    1.0,
    1.5,
    "",
    "none",
    "auto",
    "true",
    "1,2",
    [],
    [1],
    ["a"],
    [None],
    {},
]
VALUES += [{"a": 1}, [["a", 1]], 2**31, "lora"]


@pytest.mark.parametrize("spec", ["sst2:qlora", "squad:mam", "retrieval", "sst2:prompting"])
def test_of_pages_with_any_value_at_any_key_it_says_what_reading_does(spec, tmp_path, request):
    """Types, choices and keys of one kind; what keys are together, and names of one's own, apart."""
    random, file = Random(spec), tmp_path / "page.yaml"
    file.write_text(to_yaml(check(load_config(spec))), encoding="utf-8")
    page, seen = read_yaml(file), set()
    keys = [key for key in flat_keys(page) if not key.startswith("model.new")]
    keys += [key.rpartition(".")[0] for key in keys if "." in key]
    count = 40 if request.config.getoption("--all") else 24
    for key in random.sample(sorted({*keys} - {"task", "method"}), count):
        tree = node = deepcopy(dict(page))
        *parents, last = key.split(".")
        for name in parents:
            node = node[name]
        node[last + random.choice(["", "", "", "s"])] = value = random.choice(VALUES)
        file.write_text(yaml.dump(tree, Dumper=_Dumper), encoding="utf-8")
        try:
            taken = check(load_config(str(file))) is not None
        except UserError as error:
            taken = any(said in str(error) for said in TOGETHER)
        assert refused(tree) != taken, (key, value)
        seen.add(taken)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("model:\nmethod:\ndata: {columns: , splits: }", True),
        ("page:\nmodel: {new: }", True),
        ("train: {epochs: 1e3}\ndata: {group: true}", True),
        ("train: {epochs: 1.5}", False),
        ("model: {whole: 'key, value'}\nmesh: {near: 'fsdp,'}", True),
        ("model: {whole: '1,2'}", False),
        ("mesh: {near: 'fsdp,sequenc'}", False),
        ("model: {segments: '2,4'}\ntrain: {profile_steps: '10, 12'}", True),
        ("train: {profile_steps: '1e3, 2_000.0'}", True),
        ("train: {profile_steps: '1.5,2'}", False),
        ("train: {profile_steps: 'a,b'}", False),
        ("task: {name: classification, class_weights: '1.0,.5'}", True),
        ("optimizer: {learning_rate: .inf}", False),
        ("data: {columns: {txt: a}}", False),
        ("task: {labels: [a]}\ndata: {columns: {context: a}}", False),
        ("method: {rank: 4}", False),
        ("task: {scheme: BIO}", False),
        ("page: squad\ndata: {columns: {context: a}}", True),
        ("train.epochs: 3", False),
        ("model: {segments: 1.5}", False),
        ("data: {encoding: 5}", False),
        ("data: {path: }", False),
    ],
)
def test_it_and_reading_agree(text, taken, tmp_path):
    file = tmp_path / "page.yaml"
    file.write_text(text, encoding="utf-8")
    assert refused(read_yaml(file)) != taken
    if taken:
        check(load_config(str(file)))
    else:
        with pytest.raises(UserError):
            check(load_config(str(file)))


@pytest.mark.parametrize(
    "tree",
    [
        {"page": "sst2:lora", "method": {"rank": 4}},
        {"method": {"name": "own_package.scale:Scale", "strength": 4}},
        {"optimizer": {"name": "own_package.sign:Sign", "strength": 4}},
        {"data": {"prepare": ["drop_duplicates", {"step": "filter_length", "minimum": 3}]}},
        {"data": {"prepare": [{"step": "own_package.shout:Shout", "loud": True}]}},
        {"model": {"segments": "4,2", "new": {"model_type": "bert"}}},
        {"method": {"name": "lora", "targets": "query", "rank_pattern": {"query": 2}}},
    ],
)
def test_what_reading_takes_is_valid(tree):
    assert not refused(tree)


def test_every_description_is_the_sentence_of_the_key():
    """As of the comments of pages, and `--explain`: from the classes of options alone."""
    tree = validator().schema
    cases = tree["$defs"]["method"]["allOf"]
    rank = next(case["then"]["properties"] for case in cases if case["if"] == is_("lora"))["rank"]
    sections = {**tree["properties"], "method": {"properties": {"rank": rank}}}
    known = known_options(default_config("lora"))
    for key in ("seed", "data.batching", "data.splits.folds", "train.steps", "method.rank"):
        *parents, last = key.split(".")
        node = {"properties": sections}
        for name in parents:
            node = node["properties"][name]
        assert node["properties"][last]["description"] == known[key].meaning


def is_(name):
    return {"properties": {"name": {"const": name}}, "required": ["name"]}
