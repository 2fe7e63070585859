"""What must hold for every method on every kind of model: a new one is tested by registering it.

The invariants themselves are in `ftjax.testing`, for methods of other packages too.
"""

from typing import Any

import numpy as np
import pytest

from ftjax import methods
from ftjax.errors import UserError
from ftjax.testing import BASES, INVARIANTS, Trial, build
from ftjax.testing.trial import two_moments
from tests.covering import covering, product
from tests.methods.bases import ALIKE, WITHIN

TRAINING = [name for name in methods.METHODS if methods.find(name).trains]
# Where a method does not fit a kind of model, and what it then says.
REFUSED = {("bitfit", "llama"): "bias", ("bitfit", "t5"): "bias"}
PAIRS = [(n, base) for n in TRAINING for base in BASES if (n, base) not in REFUSED]
FAULTS = [  # that were found in one kind of model
    *(("lora", "llama"), ("qlora", "llama"), ("reft", "llama"), ("galore", "llama")),
    *(("houlsby", "t5"), ("prefix_tuning", "t5"), ("p_tuning", "t5"), ("adalora", "t5")),
    *(("lisa", "t5"), ("unipelt", "t5"), ("layerwise_lr_decay", "t5"), ("top_k", "bert")),
]
FEW = covering(PAIRS, FAULTS)
FIRST = [next(pair for pair in FEW if pair[0] == name) for name in TRAINING]
PACKED = [pair for pair in PAIRS if pair[1] != "t5"]  # it has no positions to start anew
OWN = [pair for pair in PACKED if pair[0] not in ALIKE | WITHIN]  # by --all what sees a token alone
FEW_PACKED = covering(OWN, {*FEW} & {*OWN})
UNPACKED = {"unipelt": "cannot tell packed examples"}  # what such methods say of packed rows
# Of what adds an exact zero, beside which the rest is compiled otherwise; of sums of tiles.
ROUNDING = {"reft": 2e-6, "qlora": 1e-5}
# What fits small models.
SMALL: dict[str, dict[str, Any]] = {
    "galore": {"rank": 8},
    "compacter": {"reduction": 8},
    "compacter_pp": {"reduction": 8},
    "adapter_fusion": {"reduction": 4},  # all relus of a narrower one may be dead
    "reft": {"last": 1, "tied": True},  # llama's classifier reads the last token alone
}


def galore(path: str, shape: tuple[int, ...]) -> int:
    """Zhao et al. 2024, table 1: mr for the projection and 2nr for the moments."""
    rank, small, large = SMALL["galore"]["rank"], min(shape), max(shape)
    if path.endswith("/kernel") and not path.startswith(("classifier", "pooler")):
        return small * rank + 2 * large * rank
    return two_moments(path, shape)


def adalora(path: str, shape: tuple[int, ...]) -> int:
    """Zhang et al. 2023, eqs. 9-10: importance and its uncertainty besides, and what is kept."""
    kept = int(np.prod(shape)) if path.endswith("/lora_e") else 0
    return two_moments(path, shape) * (2 if "/lora_" in path else 1) + kept


# Numbers of optimizer state, of a leaf.
MOMENTS = {"galore": galore, "adalora": adalora}


def settings(name: str) -> dict[str, Any]:
    return {"name": name, **SMALL.get(name, {})}


# Invariants of which a method's own part is the same on each kind of model, of packed rows, or in
# all that compute alike.
ON_ONE, ON_PACKED = "bfloat16_models_have_float32_adapters", "packed_equals_apart"
ON_MESH = "scanned_remat_and_sharded_give_the_same_losses"
FEW_FIRST = [pair for pair in FIRST if pair[0] not in ALIKE]
# Of these the parameters lie as LoRA's, or as Houlsby's adapters'.
LIE_ALIKE = ALIKE | {"loha", "lokr", "pissa", "parallel", "pfeiffer"}
FEW_ON_MESH = [pair for pair in FEW if pair[0] not in LIE_ALIKE or pair in FAULTS]
CASES = [  # in the order of pairs, of each of which the programs serve all invariants
    (pair, invariant.__name__)
    for pair in PAIRS
    for invariant in INVARIANTS
    if (invariant.__name__ != ON_ONE or pair in FIRST)
    and (invariant.__name__ != ON_PACKED or pair in PACKED)
]
DEFAULT = {ON_ONE: FEW_FIRST, ON_PACKED: FEW_PACKED, ON_MESH: FEW_ON_MESH}
FEW_CASES = [(pair, name) for pair, name in CASES if pair in DEFAULT.get(name, FEW)]


@pytest.fixture(scope="module")
def trial_of():
    """The trial of a pair; the last alone is held."""
    trials: dict[tuple[str, str], Trial] = {}

    def of(pair: tuple[str, str]) -> Trial:
        if pair not in trials:
            trials.clear()
            name, base = pair
            trials[pair] = Trial(
                name,
                SMALL.get(name, {}),
                base,
                rounding=ROUNDING.get(name, 0.0),
                merged_rounding=1e-2 if name in ("adalora", "oft") else 1e-4,
                moments=MOMENTS.get(name, two_moments),
                unpacked=UNPACKED.get(name, ""),
            )
        return trials[pair]

    return of


@pytest.mark.parametrize(
    "case", product(CASES, FEW_CASES, each=False), ids=lambda case: f"{'-'.join(case[0])}-{case[1]}"
)
def test_invariants(trial_of, case):
    pair, name = case
    next(each for each in INVARIANTS if each.__name__ == name)(trial_of(pair))


BAD = {
    "rank": [0, -1, 10_000],
    "targets": [("nonsense",), "quer(y", ("query", "valeu")],
    "reduction": [0, 10_000],
    "k": [0, 99, -99],
    "length": [0, -1],
    "block": [0, 7],
    "dropout": [1.0],
    "init": ["nonsense"],
    "activation": ["nonsense"],
    "every": [0],
    "decay": [0.0, 1.5],
    "layers": [99],
}
BAD_CASES = [
    (name, key, value)
    for name in TRAINING
    for key in methods.hyperparameters(name)
    for value in BAD.get(key, [])
]


@pytest.mark.parametrize(("name", "key", "value"), BAD_CASES)
def test_7_bad_hyperparameters_are_named(name, key, value):
    with pytest.raises(UserError, match=rf"method\.{key}"):
        build("bert", {**settings(name), key: value}).at_step(0)


@pytest.mark.parametrize(("name", "base"), list(REFUSED))
def test_7_what_does_not_fit_a_model_is_said(name, base):
    with pytest.raises(UserError, match=REFUSED[name, base]):
        build(base, settings(name))
