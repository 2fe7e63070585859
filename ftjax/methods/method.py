"""What a method is: rules that select, an interceptor that adds, and a merge."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import optax

from ftjax.base_model import Base
from ftjax.errors import UserError
from ftjax.methods.interception import Interceptor
from ftjax.options import conform
from ftjax.partition import FROZEN, Rules
from ftjax.paths import Flat

FREEZE_REST = (r".*", FROZEN)
Transform = optax.GradientTransformation


def head_rule(base: Base, *more: str) -> tuple[str, str]:
    """The rule that trains the task head, and the other top-level modules named.

    A head of words is no task's but the base model's own. A head may have no parameters, as where
    words are read off by their embeddings.
    """
    heads = () if base.of_words else base.head
    names = "|".join(re.escape(name) for name in (*heads, *more))
    return (rf"({names})/.*", "head") if names else (r"(?!)", FROZEN)


@dataclass(frozen=True)
class Method:
    """A fine-tuning method. Subclasses are frozen dataclasses of its hyperparameters.

    Most have `rules`, and `interceptor` and `merge` where they add parameters.
    """

    trains: ClassVar[bool] = True  # prompting selects templates instead
    identity: ClassVar[bool] = True  # step 0 is the base model; soft prompts have no such init
    # Hyperparameters under which step 0 is not the base model; a method that adds nothing has none.
    non_identity: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        conform(self, "method.")

    @property
    def columns(self) -> int:
        """How many positions the method takes before a row's tokens."""
        return 0

    @property
    def inserted(self) -> int:
        """How many virtual tokens every example grows by, each in a packed row too."""
        return 0

    def rules(self, base: Base) -> Rules:
        """(pattern, group) pairs over all parameters, the method's included; first match wins."""
        raise NotImplementedError

    def interceptor(self, base: Base) -> Interceptor | None:
        """For `flax.linen.intercept_methods`: adds the method's parameters to the model.

        Raises:
            UserError: the hyperparameters do not fit the model.
        """
        return None

    def disabled(self, base: Base) -> Interceptor | None:
        """What the base model itself needs, where the method stores it otherwise."""
        return None

    def cuts(self, layers: int) -> tuple[int, ...]:
        """Numbers of layers, of all stacks, at which segments must be cut for `rules` to apply."""
        return ()

    def stored(self, base: Base, path: str, array: jax.Array) -> Any:
        """How a parameter of the base model is stored: as it is, or quantized."""
        return array

    def initialize(self, base: Base, params: Flat, key: jax.Array) -> Flat:
        """Those of the method's parameters whose first value depends on the base's values."""
        return {}

    def at_step(self, step: int, base: Base) -> "Method":
        """The method that selects what trains at a step, of what `rules` selects in all."""
        return self

    def rate_of(self, base: Base, path: str) -> float:
        """What the learning rate of a parameter is multiplied by; the path is unrolled."""
        return 1.0

    def penalty(self, base: Base, params: Flat) -> jax.Array | None:
        """What is added to the mean loss, from the trainable parameters."""
        return None

    def optimizer(
        self, base: Base, group: str, core: Transform, rest: Transform, steps: int
    ) -> Transform:
        """The optimizer of a group of the partition, which sees `frozen` as an extra argument.

        Args:
            base: what the method knows of the model.
            group: of `rules`.
            core: keeps moments.
            rest: weight decay and learning rate.
            steps: of the whole run.
        """
        return optax.chain(core, rest)

    def report(self, base: Base, params: Flat) -> dict[str, Any]:
        """What `result.json` says of the trained parameters besides, by key."""
        return {}

    def merge(self, base: Base, params: Flat) -> Flat:
        """Parameters of the plain model that computes the same.

        Also of a part of them: a module's own, with those that are in no module.

        Raises:
            UserError: the method changes the computation and cannot be merged.
        """
        raise UserError(
            f"{type(self).__name__.lower()} changes the computation and cannot be merged into "
            "the base model's weights"
        )


def present(tree: Mapping[str, Any]) -> Flat:
    """The leaves that a group's optimizer sees, without the places of other groups' leaves."""
    return {path: x for path, x in tree.items() if not isinstance(x, optax.MaskedNode)}
