"""A parameter of a module: the model's own, or one that a method adds."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError


def leaf(
    module: nn.Module,
    name: str,
    init: Callable[..., jax.Array],
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
) -> jax.Array:
    """A float32 parameter of a module.

    One that the module is given has its shape compared; `nn.Module.param` would trace `init` for
    that, each time that a model is traced.

    Args:
        init: of a key, the shape and the dtype, where the module is given none.
        axes: logical axes, one a dimension; "rank" and None are on every device whole.

    Raises:
        ScopeParamShapeError: the module is given another shape.
    """
    if module.is_initializing() or not module.has_variable("params", name):
        return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    value = existing_leaf(module, name)
    if value.shape != shape:
        raise ScopeParamShapeError(name, "/".join(module.path), value.shape, shape)
    return value


def existing_leaf(module: nn.Module, name: str) -> jax.Array:
    """A parameter that the module was given before."""
    return nn.unbox(module.get_variable("params", name))
