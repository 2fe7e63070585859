"""config.json with odd values: a model is built of it, or the key is refused, soon."""

import random

import pytest

from ftjax import methods, models
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.models.layers import Options
from tests.formats.bounds import bounded
from tests.formats.mutants import changed
from tests.models.cases import CASES

MUTANTS = 300  # of a kind of model
BUILT, MORE = 2, 5  # how many of them are traced, which takes long; more by --all
GROUPS = ["bert", "distilbert", "albert", "deberta-v3", "xlnet", "modernbert", "gpt2", "gpt_neo"]
GROUPS += ["llama", "mixtral", "phi3", "qwen3", "gemma3", "t5", "bart", "marian"]
ODD = [1, 2, 3, 5, 7, 0, -1, 33, 1000, 10**6, 10**9, 0.3, 1e-9, 1e30, 1e200, "gelu", "relu", "x"]
ODD += [True, False, None, [], [1], ["full_attention"], {}, "full_attention"]


def odd(base: dict, keys: list[str], rng: random.Random) -> dict:
    """A configuration with one or two of the keys that are read set to what is seldom there."""
    found = dict(base)
    for key in rng.sample(keys, rng.choice((1, 1, 2))):
        value = rng.choice(ODD)
        if type(base.get(key)) in (int, float) and rng.random() < 0.4:
            value = type(base[key])(base[key] * rng.choice((-1, 0, 0.5, 2, 1.5, 3, 10**6)))
        found[key] = value
    return found


def mutants(name: str, seed: int, count: int):
    base = {key: value for key, value in CASES[name]().to_dict().items() if value is not None}
    keys = sorted(models.family(base).KEYS[base["model_type"]].read)
    rng = random.Random(seed)
    for number in range(count):
        found = changed(base, rng) if number % 2 else odd(base, keys, rng)
        if isinstance(found, dict):
            yield {"model_type": base["model_type"], **found}


@pytest.mark.parametrize("name", GROUPS)
def test_a_model_is_built_or_its_configuration_refused(name, pytestconfig):
    lora, built, refused = methods.create({"name": "lora", "targets": "all-linear"}), 0, 0
    limit = MORE if pytestconfig.getoption("--all") else BUILT
    with bounded():
        for config in mutants(name, 0, MUTANTS):
            try:
                models.configure(config, Options())
                if built < limit:
                    build_tuned(config, lora)
                    built += 1
            except UserError:
                refused += 1
    assert built == limit and refused > MUTANTS // 10


BAD = {
    "layers without end": (
        "gpt_neo",
        {"attention_types": [[["global"] * 10**4, 3]], "attention_layers": None},
        "attention_types name 30000 layers of 3",
    ),
    "heads of no whole size": ("gpt2", {"n_head": 5}, "n_head=5 does not divide n_embd=32"),
    "a decoder's": ("bart", {"decoder_attention_heads": 5}, "decoder_attention_heads=5 does not"),
    "more experts than there are": ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok=9"),
    "no distances past the exact": (
        "t5",
        {"relative_attention_max_distance": 4},
        "relative_attention_max_distance=4 must be above half of .*buckets=8",
    ),
    "nor here": ("deberta-v3", {"position_buckets": 1}, "position_buckets=1 must be 2 or more"),
    "or so": ("deberta-v3", {"max_relative_positions": 2}, "below max_relative_positions - 1 = 1"),
    "sines without end": ("marian", {"max_position_embeddings": 10**8}, "is a table of more than"),
    "a distribution without width": (
        "modernbert",
        {"initializer_cutoff_factor": 1e-9},
        r"initializer_cutoff_factor=1e-09 must be in \[0.01, 1000\]",
    ),
    "nor end": ("modernbert", {"initializer_cutoff_factor": 1e200}, "initializer_cutoff_factor"),
    "groups": (
        "albert",
        {"inner_group_num": 10**4},
        r"inner_group_num=10000 must be in \[1, 100\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_no_model_can_be_is_named(case):
    name, change, message = BAD[case]
    config = {**CASES[name]().to_dict(), **change}
    with bounded(), pytest.raises(UserError, match=message):
        models.configure(config, Options())


@pytest.mark.parametrize(
    ("name", "key"), [("bert", "num_hidden_layers"), ("t5", "num_decoder_layers")]
)
def test_deep_models_are_scanned(name, key):
    config = {**CASES[name]().to_dict(), key: 10**4}
    with bounded():
        assert build_tuned(config, methods.create({"name": "full"})).shapes


@pytest.mark.parametrize(("name", "positions"), [("roberta", 1), ("albert", 3), ("gpt2", 3)])
def test_too_few_positions_are_named(name, positions):
    config = CASES[name]().to_dict()
    key = "n_positions" if name == "gpt2" else "max_position_embeddings"
    with pytest.raises(UserError, match=r"has \d positions by its config.json, and needs 8"):
        build_tuned({**config, key: positions}, methods.create({"name": "full"}))
