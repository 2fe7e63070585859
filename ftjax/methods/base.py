"""What a method is: rules that select, an interceptor that adds, and a merge."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ftjax.errors import UserError
from ftjax.partition import FROZEN, Rules
from ftjax.paths import Base, Flat

Interceptor = Callable[..., Any]
FREEZE_REST = (r".*", FROZEN)


def head_rule(base: Base, *more: str) -> tuple[str, str]:
    """The rule that trains the task head, and the other top-level modules named.

    A head may have no parameters, as where words are read off by their embeddings.
    """
    names = "|".join(re.escape(name) for name in (*base.head, *more))
    return (rf"({names})/.*", "head") if names else (r"(?!)", FROZEN)


@dataclass(frozen=True)
class Method:
    """A fine-tuning method. Subclasses are frozen dataclasses of its hyperparameters."""

    trains: ClassVar[bool] = True  # prompting selects templates instead
    # Hyperparameters under which step 0 is not the base model; a method that adds nothing has none.
    non_identity: ClassVar[dict[str, Any]] = {}

    def rules(self, base: Base) -> Rules:
        """(pattern, group) pairs over all parameters, the method's included; first match wins."""
        raise NotImplementedError

    def interceptor(self, base: Base) -> Interceptor | None:
        """For `flax.linen.intercept_methods`: adds the method's parameters to the model.

        Raises:
            UserError: the hyperparameters do not fit the model.
        """
        return None

    def cuts(self, layers: int) -> tuple[int, ...]:
        """Layer numbers at which the stack's segments must be cut for `rules` to apply."""
        return ()

    def merge(self, params: Flat) -> Flat:
        """Parameters of the plain model that computes the same.

        Raises:
            UserError: the method changes the computation and cannot be merged.
        """
        raise UserError(
            f"{type(self).__name__.lower()} changes the computation and cannot be merged into "
            "the base model's weights"
        )
