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
        turned: stored transposed.
        shape: as stored, where a vector is stored as a matrix.
        fused: what is done where several of our projections are one of theirs, as in GPT-2:
            "split", theirs is ours one after the other; "copy", all have the same; "rank" and
            "diagonal", low-rank factors that are stacked along the rank.
        fill: in "split", for those of the projections that are not adapted; None where nothing
            leaves them as they are.
    """

    suffix: str
    turned: bool = False
    shape: tuple[int, ...] = ()
    fused: str = "copy"
    fill: float | None = 0.0

    def store(self, array: np.ndarray) -> np.ndarray:
        """A layer's parameter as PEFT has it."""
        array = array.T if self.turned else array
        return np.ascontiguousarray(array.reshape(self.shape or array.shape))

    def restore(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `store`."""
        return (array.T if self.turned else array).reshape(shape)


@dataclass(frozen=True)
class Form:
    """How PEFT stores a method.

    Attributes:
        kind: `peft_type`.
        leaves: our name of a parameter → how it is stored.
        fields: our hyperparameter → theirs.
        constants: what else the configuration says, of what tells methods of one kind apart.
        free: hyperparameters that do not change what the adapter computes.
    """

    kind: str
    leaves: Mapping[str, Leaf]
    fields: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    free: tuple[str, ...] = ("dropout",)


LORA_LEAVES = {
    "lora_a": Leaf("lora_A.weight", turned=True, fused="rank"),
    "lora_b": Leaf("lora_B.weight", turned=True, fused="diagonal"),
}
LORA_FIELDS = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}

LORA_PLAIN = {"use_rslora": False, "use_dora": False}


def _lora(leaves: Mapping[str, Leaf] = LORA_LEAVES, **constants: Any) -> Form:
    return Form("LORA", leaves, LORA_FIELDS, {**LORA_PLAIN, **constants})


# Of forms that fit a folder the first is read: LoRA-FA and LoRA+ differ from LoRA in training alone.
FORMS: Mapping[str, Form] = {
    "pissa": _lora(init_lora_weights="pissa"),
    "olora": _lora(init_lora_weights="olora"),
    "lora": _lora(),
    "lora_plus": _lora(),
    "lora_fa": _lora(),
    "rslora": _lora(use_rslora=True),
    "dora": _lora(
        {**LORA_LEAVES, "lora_m": Leaf("lora_magnitude_vector", fused="split", fill=None)},
        use_dora=True,
    ),
}
