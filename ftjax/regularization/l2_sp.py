"""L2-SP: weight decay towards the pretrained parameters (Li et al. 2018)."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.errors import require
from ftjax.paths import Flat

START = "start/"  # before the paths of pretrained values, among the frozen leaves


def starts(trainable: Flat, new: Collection[str], settings: Mapping[str, Any]) -> Flat:
    """The pretrained values of leaves that train, as further frozen leaves, which no module reads.

    No checkpoint has them: the base model is there again when a run goes on.

    Args:
        trainable: leaves before the first step.
        new: paths that the base model does not have.
        settings: the `regularization` section.

    Raises:
        UserError: a pull is asked for, and nothing that trains is pulled.
    """
    pulled = {"l2_sp": "pretrained", "l2_sp_new": "new"}
    known = {"pretrained": set(trainable) - set(new), "new": set(trainable) & set(new)}
    for key, kind in pulled.items():
        pulls = not settings[key] or bool(known[kind])
        require(pulls, f"regularization.{key}={settings[key]}: no {kind} parameter trains")
    if not any(settings[key] for key in pulled):
        return {}
    return {START + path: trainable[path] for path in trainable if path not in new}


def l2_sp(params: Flat, frozen: Flat, alpha: float, beta: float) -> jax.Array:
    """α/2 ‖w − w⁰‖² of pretrained leaves w, and β/2 ‖w‖² of those that are new (sec. 3.1, eq. 3).

    Args:
        params: leaves that train.
        frozen: has w⁰, see `starts`.
        alpha, beta: α, β.
    """

    def pull(path: str, leaf: jax.Array) -> jax.Array:
        start = frozen.get(START + path)
        weight, leaf = (beta, leaf) if start is None else (alpha, leaf - start)
        return 0.5 * weight * jnp.sum(jnp.square(leaf.astype(jnp.float32)))

    return sum(pull(path, leaf) for path, leaf in params.items())
