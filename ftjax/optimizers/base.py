"""What every optimizer is."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optax

from ftjax.options import NotNegative, conform

Schedule = Callable[[Any], Any]  # step → learning rate
NO_DECAY = r".*(bias|scale)"  # as is usual: biases and norms are not decayed


def decayed(params: Mapping[str, Any]) -> dict[str, bool]:
    """Which of parameters weight decay is for."""
    return {path: not re.fullmatch(NO_DECAY, path) for path in params}


@dataclass(frozen=True)
class Optimizer:
    """How a group of parameters follows its gradients, in two parts, between which methods work.

    Subclasses are frozen dataclasses of options: keys of the `optimizer` section.

    Attributes:
        weight_decay: not on biases and norms.
    """

    weight_decay: NotNegative = 0.0

    def __post_init__(self) -> None:
        conform(self, "optimizer.")

    def core(self, rate: Schedule) -> optax.GradientTransformation:
        """What keeps moments: clipped gradients → directions."""
        raise NotImplementedError

    def rest(self, rate: Schedule) -> optax.GradientTransformation:
        """What follows: directions → updates, by weight decay and learning rate."""
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay, decayed),
            optax.scale_by_learning_rate(rate),
        )
