"""What PEFT calls our methods, their hyperparameters and their parameters: a row a method."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Leaf:
    """How PEFT stores a parameter of a method.

    Attributes:
        suffix: of its key, after the module's name.
        transposed: stored transposed.
        shape: as stored, where a vector is stored as a matrix.
        fused: what is done where several of our projections are one of theirs, as in GPT-2:
            "split", theirs is ours one after the other; "copy", all have the same; "rank" and
            "diagonal", low-rank factors that are stacked along the rank; "refused", what is shared
            by all modules begins anew in each of ours.
        fill: in "split", for those of the projections that are not adapted; None where nothing
            leaves them as they are.
        selected: the hyperparameter that selects the modules with this parameter.
    """

    suffix: str
    transposed: bool = False
    shape: tuple[int, ...] = ()
    fused: str = "copy"
    fill: float | None = 0.0
    selected: str = "targets"

    def store(self, array: np.ndarray) -> np.ndarray:
        """A layer's parameter as PEFT has it."""
        array = array.T if self.transposed else array
        return np.ascontiguousarray(array.reshape(self.shape or array.shape))

    def fits(self, key: str, shape: tuple[int, ...]) -> bool:
        """Whether a stored tensor is of this kind."""
        ones = (size != 1 or actual == 1 for size, actual in zip(self.shape, shape, strict=False))
        return key.endswith(f".{self.suffix}") and all(ones)

    def restore(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `store`."""
        return (array.T if self.transposed else array).reshape(shape)


@dataclass(frozen=True)
class Form:
    """How PEFT stores a method.

    Attributes:
        kind: `peft_type`.
        leaves: our name of a parameter → how it is stored.
        fields: our hyperparameter → theirs.
        constants: what else the configuration says, of what tells methods of one kind apart.
        free: hyperparameters that do not change what the adapter computes.
        table: the parameters are one table, see `ftjax.formats.peft.prompt_tables`.
        also: other kinds that are stored alike and read as the method.
    """

    kind: str
    leaves: Mapping[str, Leaf]
    fields: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    free: tuple[str, ...] = ("dropout",)
    table: bool = False
    also: tuple[str, ...] = ()

    @property
    def patterned(self) -> bool:
        """Whether modules may have ranks and α of their own."""
        return self.kind in ("LORA", "LOHA", "LOKR")


WORDS = "words:"  # before the names of leaves of the table of words, where they differ
LORA_LEAVES = {
    f"{WORDS}lora_a": Leaf("lora_embedding_A", transposed=True),
    f"{WORDS}lora_b": Leaf("lora_embedding_B", transposed=True),
    "lora_a": Leaf("lora_A.weight", transposed=True, fused="rank"),
    "lora_b": Leaf("lora_B.weight", transposed=True, fused="diagonal"),
}
LORA_FIELDS = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}

LORA_PLAIN = {"use_rslora": False, "use_dora": False}


def _lora(**constants: Any) -> Form:
    return Form("LORA", LORA_LEAVES, LORA_FIELDS, {**LORA_PLAIN, **constants})


VERA_LEAVES = {
    "vera_a": Leaf("vera_A", transposed=True),
    "vera_b": Leaf("vera_B", transposed=True),
    "lambda_b": Leaf("vera_lambda_b", fused="refused"),
    "lambda_d": Leaf("vera_lambda_d"),
}
VERA_FIELDS = {
    "rank": "r",
    "d_initial": "d_initial",
    "dropout": "vera_dropout",
    "seed": "projection_prng_key",
}
PRODUCT_FIELDS = {"rank": "r", "alpha": "alpha"}
LOHA_LEAVES = {
    f"hada_w{i}_{side}": Leaf(f"hada_w{i}_{side}", transposed=True, fused=fused)
    for i in (1, 2)
    for side, fused in (("a", "split"), ("b", "copy"))
}
LOKR_NAMES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
LOKR_FIELDS = {
    **PRODUCT_FIELDS,
    "factor": "decompose_factor",
    "decompose_both": "decompose_both",
}
IA3_LEAVES = {
    "ia3_out": Leaf("ia3_l", shape=(-1, 1), fused="split", fill=1.0),
    "ia3_in": Leaf("ia3_l", shape=(1, -1), selected="feedforward"),
}
NORM_LEAVES = {"scale": Leaf("ln_tuning_layers.weight"), "bias": Leaf("ln_tuning_layers.bias")}


def _table(kind: str, *also: str) -> Form:
    return Form(kind, {}, {"length": "num_virtual_tokens"}, table=True, also=also)


# Of forms that fit a folder the first is read: LoRA-FA and LoRA+ only train otherwise than LoRA.
FORMS: Mapping[str, Form] = {
    "pissa": _lora(init_lora_weights="pissa"),
    "olora": _lora(init_lora_weights="olora"),
    "lora": _lora(),
    "lora_plus": _lora(),
    "lora_fa": _lora(),
    "rslora": _lora(use_rslora=True),
    "dora": Form(
        "LORA",
        {**LORA_LEAVES, "lora_m": Leaf("lora_magnitude_vector", fused="split", fill=None)},
        {**LORA_FIELDS, "rank_stabilized": "use_rslora"},
        {"use_dora": True},
    ),
    "vera": Form(
        "VERA",
        VERA_LEAVES,
        VERA_FIELDS,
        {"save_projection": True},
        free=("dropout", "d_initial", "seed"),
    ),
    "loha": Form("LOHA", LOHA_LEAVES, PRODUCT_FIELDS),
    "lokr": Form("LOKR", {name: Leaf(name, transposed=True) for name in LOKR_NAMES}, LOKR_FIELDS),
    "oft": Form(
        "OFT",
        {"oft_r": Leaf("oft_R.weight")},
        {
            "block": "oft_block_size",
            "neumann": "use_cayley_neumann",
            "terms": "num_cayley_neumann_terms",
        },
        {"r": 0},
    ),
    "ia3": Form("IA3", IA3_LEAVES),
    "layer_norm": Form("LN_TUNING", NORM_LEAVES),
    "prompt_tuning": _table("PROMPT_TUNING", "P_TUNING"),
    "p_tuning": _table("PROMPT_TUNING"),
    "prefix_tuning": _table("PREFIX_TUNING"),
    "adalora": Form(
        "ADALORA",
        {
            "lora_a": Leaf("lora_A", transposed=True),
            "lora_b": Leaf("lora_B", transposed=True),
            "lora_e": Leaf("lora_E", shape=(-1, 1)),
        },
        {**LORA_FIELDS, "rank": "init_r", "target_rank": "target_r"},
        {"total_step": 1},  # it must be there, and says nothing of the adapter
    ),
}
