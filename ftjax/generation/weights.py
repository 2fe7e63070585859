"""Weights of a model that writes, in fewer bits than it computes in."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from ftjax import methods
from ftjax.errors import UserError, nearest
from ftjax.parallel.mesh import fitted
from ftjax.parallel.packed import PAIR, Packed
from ftjax.paths import Flat
from ftjax.quantization import Int8, Int8Table, Quantized
from ftjax.tuned import Tuned, partition_of

WEIGHTS = ("float32", "bfloat16", "int8")


def plain(tuned: Tuned, params: Flat) -> tuple[Tuned, Flat]:
    """The model without its method, and merged parameters.

    Raises:
        UserError: the method cannot be merged.
    """
    method, shapes = methods.create({"name": "prompting"}), tuned.base.shapes
    partition = partition_of(shapes, method, tuned.base, method.trains)
    axes = {path: tuned.axes[path] for path in shapes}
    alone = replace(tuned, method=method, partition=partition, shapes=shapes, axes=axes)
    return alone, tuned.merged(params)


def narrowed(tuned: Tuned, params: Flat, weights: str, rows: int = 1) -> tuple[Tuned, Flat]:
    """A merged model whose projections and tables of words are held in fewer bits.

    int8 has a scale an output of a projection, and a word of a table (`Int8`, `Int8Table`); what
    is computed from them stays in the compute dtype. A CPU that multiplies a row or two at a time
    has them arranged (`Packed`). Norms, biases, experts and their routers stay as they are.

    Args:
        tuned: a model that generates, under any method that can be merged.
        params: flat parameters, in place.
        weights: one of `WEIGHTS`; float32 for what is loaded as it is.
        rows: tokens that a step reads at once; others are read too, more slowly.

    Raises:
        UserError: there are no such weights; the method cannot be merged.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights={weights!r} is not known{nearest(weights, WEIGHTS)}")
    if weights == "float32":
        return tuned, params
    tuned, params = plain(tuned, params)
    base = tuned.base
    kernels = base.projections().keys() | base.reading_off().keys()
    kernels = {f"{path}/kernel" for path in kernels - base.experts() - base.routers()}
    tables = {f"{path}/embedding" for path in base.tables}

    def narrow(path: str, array: jax.Array) -> jax.Array | Quantized:
        if path not in kernels | tables:
            return array
        return _held(array, weights, path in tables, rows)

    return tuned, {path: narrow(path, params[path]) for path in sorted(params)}


def _held(array: jax.Array, weights: str, is_table: bool, rows: int) -> jax.Array | Quantized:
    """Its parts lie on the devices that the array lay on, as it did."""
    device, *others = array.devices()
    if device.platform == "cpu" and not others and rows <= PAIR:
        convert = partial(Packed.of, weights=weights, is_table=is_table)
    elif weights == "int8":
        convert = Int8Table.of if is_table else Int8.of
    else:
        return array.astype(jnp.bfloat16)
    if not isinstance(array.sharding, NamedSharding):
        return jax.jit(convert)(array)
    parts = jax.eval_shape(convert, array)
    placed = jax.tree.map(lambda part: fitted(array.sharding, array.ndim, part.shape), parts)
    return jax.jit(convert, out_shardings=placed)(array)
