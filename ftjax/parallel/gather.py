"""What lies on many devices, brought to where files are written."""

from typing import Any

import jax
import numpy as np


def fetched(array: Any) -> np.ndarray:
    """An array on this host, whole, also where others hold parts of it: then all must ask."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(array, tiled=True))
    return np.asarray(array)
