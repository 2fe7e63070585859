"""ReFT's tensors as AdapterHub stores them.

Orthonormal rows R (r, d) are stored as torch's orthogonal parametrization has them: "original"
(r, d) and "base" (d, d), with R = (base · Q)ᵀ, Q (d, r) the product of Householder reflections
whose vectors are below the diagonal of originalᵀ, times the signs on that diagonal. There is
always a unit of parameters for first tokens and one for last, unless they share it.
"""

import re
from collections.abc import Mapping

import numpy as np

from ftjax.errors import require
from ftjax.methods.example_tokens import ENDS
from ftjax.methods.reft import Reft, orthonormal

Tensors = dict[str, np.ndarray]
PLAIN = "projection.weight"
ORIGINAL = "projection.parametrizations.weight.original"
BASE = "projection.parametrizations.weight.0.base"
UNIT = r"\.units\.(\d)\."


def written(tensors: Mapping[str, np.ndarray], method: Reft) -> Tensors:
    """With orthonormal projections parametrized, and both units; one without tokens is a copy."""
    stored: Tensors = {}
    for name, array in tensors.items():
        if method.kind == "loreft" and name.endswith(PLAIN):
            place = name.removesuffix(PLAIN)
            stored[place + ORIGINAL], stored[place + BASE] = parametrized(array)
        else:
            stored[name] = array
    if method.tied or len(method.units) == len(ENDS):
        return stored
    return {
        re.sub(UNIT, f".units.{number}.", name): array
        for number in range(len(ENDS))
        for name, array in stored.items()
    }


def read(tensors: Mapping[str, np.ndarray], method: Reft) -> Tensors:
    """With projections as they are, and only the units that have tokens."""
    used = {str(ENDS[end] - 1) for end in method.units}
    plain: Tensors = {}
    for name, array in tensors.items():
        unit = re.search(UNIT, name)
        if unit and unit[1] not in used:
            continue
        place = name.removesuffix(ORIGINAL)
        if place != name and place + BASE in tensors:
            wide = array.shape[-1:]
            square = array.ndim == 2 and tensors[place + BASE].shape == wide * 2
            require(square, f"{place + BASE!r} has shape {tensors[place + BASE].shape}")
            plain[place + PLAIN] = projection(array, tensors[place + BASE])
        elif not name.endswith(BASE):
            plain[name] = array
    return plain


def parametrized(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R (r, d) as "original", which makes Q the first unit vectors, and "base", Rᵀ first."""
    q, t = np.linalg.qr(np.asarray(orthonormal(rows.T), np.float64), mode="complete")
    base = q * np.append(np.sign(np.diag(t)), np.ones(len(q) - len(rows)))
    original = -np.eye(*rows.shape)
    return original.astype(np.float32), base.astype(np.float32)


def projection(original: np.ndarray, base: np.ndarray) -> np.ndarray:
    """R (r, d)."""
    x = np.asarray(original, np.float64).T
    vectors = np.tril(x, -1)
    scales = 2 / (1 + np.square(vectors).sum(0))
    vectors, q = vectors + np.eye(*x.shape), np.eye(*x.shape)
    for vector, scale in zip(vectors.T[::-1], scales[::-1], strict=True):
        q = q - scale * np.outer(vector, vector @ q)
    return (base @ (q * np.trunc(np.diag(x)))).T.astype(np.float32)
