"""What a task's loss returns."""

from typing import NamedTuple

import jax


class Loss(NamedTuple):
    """Σ of weighted losses and Σ of weights, so that parts of a batch add up."""

    total: jax.Array
    weight: jax.Array
