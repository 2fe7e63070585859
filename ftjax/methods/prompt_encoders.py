"""What soft prompts are computed by: layers initialized as torch's, of parameters by name."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.methods.initializers import uniform

Array = jax.Array
Get = Callable[..., Array]  # (name, init, shape, axes) → a parameter
GATES = 4  # of an LSTM: input, forget, candidate, output


def linear(get: Get, name: str, x: Array, size: int, axis: str | None = None) -> Array:
    """x W + b, with `axis` the logical axis of what comes out."""
    init = uniform(x.shape[-1])
    kernel = get(f"{name}_kernel", init, (x.shape[-1], size), (None, axis))
    return x @ kernel + get(f"{name}_bias", init, (size,), (axis,))


def lstm(get: Get, name: str, x: Array, size: int, back: bool) -> Array:
    """(k, size), an LSTM's states along x (k, features), with torch's two biases."""
    init = uniform(size)

    def parameter(kind: str, *shape: int) -> Array:
        return get(f"{name}_{kind}", init, (*shape, GATES * size), (None,) * (len(shape) + 1))

    inputs = x @ parameter("input_kernel", x.shape[-1]) + parameter("input_bias")
    kernel, bias = parameter("hidden_kernel", size), parameter("hidden_bias")

    def step(state: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], Array]:
        hidden, cell = state
        write, keep, new, read = jnp.split(x + hidden @ kernel + bias, GATES)
        cell = nn.sigmoid(keep) * cell + nn.sigmoid(write) * jnp.tanh(new)
        hidden = nn.sigmoid(read) * jnp.tanh(cell)
        return (hidden, cell), hidden

    start = (jnp.zeros(size), jnp.zeros(size))
    return jax.lax.scan(step, start, inputs, reverse=back)[1]
