"""Rows sent to the devices of an axis, to each as many as are for it."""

from functools import partial

import jax
import jax.numpy as jnp

Array = jax.Array


def send_rows(x: Array, sizes: Array, room: int, axis: str) -> Array:
    """What the devices of an axis send to this one, the first device's first; in `jax.shard_map`.

    Every row is sent once. XLA has no such exchange on CPUs, where all rows are gathered.

    Args:
        x: (rows, features), those for the first device first.
        sizes: (senders, receivers), how many rows are sent; the same on all devices of the axis.
        room: rows that may come at most.

    Returns:
        (room, features); zero past the last row that came.
    """
    starts, places = jnp.cumsum(sizes, 1) - sizes, jnp.cumsum(sizes, 0) - sizes
    parts = partial(_exchanged, room=room, axis=axis), partial(_gathered, room=room, axis=axis)
    return jax.lax.platform_dependent(x, sizes, starts, places, default=parts[0], cpu=parts[1])


def _exchanged(x: Array, sizes: Array, starts: Array, places: Array, room: int, axis: str) -> Array:
    me = jax.lax.axis_index(axis)
    empty = jnp.pad(x[:0], ((0, room), (0, 0)))  # zeros that vary as x does
    sent = starts[me], sizes[me], places[me]
    return jax.lax.ragged_all_to_all(x, empty, *sent, sizes[:, me], axis_name=axis)


def _gathered(x: Array, sizes: Array, starts: Array, places: Array, room: int, axis: str) -> Array:
    me, rows = jax.lax.axis_index(axis), jnp.arange(room)
    ends = jnp.cumsum(sizes[:, me])
    sender = jnp.searchsorted(ends, rows, side="right", method="compare_all")
    sender = jnp.minimum(sender, len(ends) - 1)
    row = starts[sender, me] + rows - places[sender, me]
    came = jax.lax.all_gather(x, axis)[sender, row]
    return jnp.where((rows < ends[-1])[:, None], came, 0)
