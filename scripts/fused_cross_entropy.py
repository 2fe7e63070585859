"""Is a fused output projection and cross-entropy worth its kernel on GPUs? Compiled, not run.

    python scripts/fused_cross_entropy.py --topology h100:1 [--output FILE.json] [--time]

`ftjax.models.language_head.score` computes logits a chunk of positions at a time, and gradients
with them, so that no logits are computed twice. Beside it stands here what Wijmans et al. (2024,
arXiv:2411.09009, "Cut your losses") propose: kernels in Triton in which logits are never in the
memory, and which compute them anew for each gradient. Memory, products and traffic are read off
both programs; `--time` times them where there is a GPU.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ftjax.forecast.hlo import summarize
from ftjax.forecast.topologies import devices_of
from ftjax.models.language_head import score
from ftjax.parallel.platform import PLATFORM

Array = jax.Array
TOKENS, WORDS, FEATURES = 128, 128, 64  # of a block
ROWS, LENGTH, HIDDEN, VOCABULARY = 8, 4096, 4096, 128256  # those of Llama 3.1 8B on a GPU


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def fused(x: Array, kernel: Array, targets: Array, weights: Array, interpret: bool) -> Array:
    """Σ weight · cross-entropy of softmax(x W).

    Args:
        x: (tokens, features).
        kernel: (features, vocabulary).
        targets, weights: (tokens,).
        interpret: without a GPU.
    """
    return _forward(x, kernel, targets, weights, interpret)[0]


def _forward(x: Array, kernel: Array, targets: Array, weights: Array, interpret: bool) -> Any:
    """The loss, and what gradients need: the logarithm of each token's sum."""
    words = kernel.shape[1]

    def program(x_ref, kernel_ref, targets_ref, sums_ref, logits_ref):
        def block(j, carry):
            largest, total, logit = carry
            z = _logits(x_ref, kernel_ref, 0, j)
            new = jnp.maximum(largest, z.max(1))
            total = total * jnp.exp(largest - new) + jnp.exp(z - new[:, None]).sum(1)
            is_target = _is_target(targets_ref[...], j)
            return new, total, logit + jnp.where(is_target, z, 0.0).sum(1)

        count = x_ref.shape[0]
        start = jnp.full(count, -1e30, jnp.float32), jnp.zeros(count), jnp.zeros(count)
        largest, total, logit = jax.lax.fori_loop(0, words // WORDS, block, start)
        sums_ref[...] = largest + jnp.log(total)
        logits_ref[...] = logit

    shape = jax.ShapeDtypeStruct(targets.shape, jnp.float32)
    one = pl.BlockSpec((TOKENS,), lambda i: (i,))
    sums, logits = _call(
        program,
        (len(x) // TOKENS,),
        [pl.BlockSpec((TOKENS, x.shape[1]), lambda i: (i, 0)), _whole(kernel), one],
        ([one, one], [shape, shape]),
        "cross_entropy",
        interpret,
    )(x, kernel, targets)
    return (weights * (sums - logits)).sum(), (x, kernel, targets, weights, sums)


def _backward(interpret: bool, residuals: Any, cotangent: Array) -> tuple:
    x, kernel, targets, weights, sums = residuals
    inputs = x, kernel, targets, weights * cotangent, sums
    tokens, words = len(x) // TOKENS, kernel.shape[1] // WORDS
    many = [pl.BlockSpec((TOKENS,), lambda i: (i,))] * 3
    rows = pl.BlockSpec((TOKENS, x.shape[1]), lambda i: (i, 0))
    dx = _call(
        _of_x,
        (tokens,),
        [rows, _whole(kernel), *many],
        (rows, jax.ShapeDtypeStruct(x.shape, jnp.float32)),
        "cross_entropy_dx",
        interpret,
    )(*inputs)
    columns = pl.BlockSpec((kernel.shape[0], WORDS), lambda j: (0, j))
    dkernel = _call(
        _of_kernel,
        (words,),
        [_whole(x), columns, *map(_whole, inputs[2:])],
        (columns, jax.ShapeDtypeStruct(kernel.shape, jnp.float32)),
        "cross_entropy_dkernel",
        interpret,
    )(*inputs)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype), None, None


fused.defvjp(_forward, _backward)


def _of_x(x_ref, kernel_ref, targets_ref, weights_ref, sums_ref, dx_ref) -> None:
    """dx of a block of tokens, a block of words after another."""

    def block(j, _):
        z = _logits(x_ref, kernel_ref, 0, j)
        is_target = _is_target(targets_ref[...], j)
        dz = _slope(z, is_target, weights_ref[...], sums_ref[...]).astype(x_ref.dtype)

        def add(k, _):
            features, words = pl.ds(k * FEATURES, FEATURES), pl.ds(j * WORDS, WORDS)
            part = plgpu.dot(dz, kernel_ref[features, words], trans_b=True)
            before = jnp.where(j > 0, dx_ref[:, features], 0.0)
            dx_ref[:, features] = before + part
            return _

        return jax.lax.fori_loop(0, x_ref.shape[1] // FEATURES, add, _)

    jax.lax.fori_loop(0, kernel_ref.shape[1] // WORDS, block, 0)


def _of_kernel(x_ref, kernel_ref, targets_ref, weights_ref, sums_ref, dkernel_ref) -> None:
    """dW of a block of words, a block of tokens after another."""
    j = pl.program_id(0)

    def block(i, _):
        tokens = pl.ds(i * TOKENS, TOKENS)
        z = _logits(x_ref, kernel_ref, i, 0)
        is_target = _is_target(targets_ref[tokens], j)
        dz = _slope(z, is_target, weights_ref[tokens], sums_ref[tokens]).astype(x_ref.dtype)

        def add(k, _):
            features = pl.ds(k * FEATURES, FEATURES)
            part = plgpu.dot(x_ref[tokens, features], dz, trans_a=True)
            before = jnp.where(i > 0, dkernel_ref[features, :], 0.0)
            dkernel_ref[features, :] = before + part
            return _

        return jax.lax.fori_loop(0, x_ref.shape[1] // FEATURES, add, _)

    jax.lax.fori_loop(0, x_ref.shape[0] // TOKENS, block, 0)


def _logits(x_ref, kernel_ref, i, j) -> Array:
    """Those of a block of tokens and a block of words."""

    def add(k, z):
        features = pl.ds(k * FEATURES, FEATURES)
        rows, words = pl.ds(i * TOKENS, TOKENS), pl.ds(j * WORDS, WORDS)
        return z + plgpu.dot(x_ref[rows, features], kernel_ref[features, words])

    start = jnp.zeros((TOKENS, WORDS), jnp.float32)
    return jax.lax.fori_loop(0, x_ref.shape[1] // FEATURES, add, start)


def _is_target(targets: Array, j: Array | int) -> Array:
    return targets[:, None] == j * WORDS + jnp.arange(WORDS)[None]


def _slope(z: Array, is_target: Array, weights: Array, sums: Array) -> Array:
    """Of the loss by logits: (softmax − one-hot) · weight."""
    return (jnp.exp(z - sums[:, None]) - is_target.astype(jnp.float32)) * weights[:, None]


def _whole(x: Any) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda i: (0,) * len(x.shape))


def _call(
    program: Callable, grid: tuple, specs: Any, out: tuple, name: str, interpret: bool
) -> Any:
    return pl.pallas_call(
        program,
        grid=grid,
        in_specs=specs,
        out_specs=out[0],
        out_shape=out[1],
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=2),
        interpret=interpret,
        name=name,
    )


def of_chunks(x: Array, kernel: Array, targets: Array, weights: Array) -> Array:
    """The loss as `ftjax` computes it on GPUs."""
    with PLATFORM("gpu"):
        return score(x, kernel, targets, weights).loss


def of_small_chunks(x: Array, kernel: Array, targets: Array, weights: Array) -> Array:
    """The same as elsewhere, of a quarter of the tokens at a time."""
    return score(x, kernel, targets, weights).loss


def of_kernels(x: Array, kernel: Array, targets: Array, weights: Array) -> Array:
    """The same by the kernels above."""
    flat = (y.reshape(-1, *y.shape[2:]) for y in (x, targets, weights))
    x, targets, weights = flat
    return fused(x, kernel, targets, weights, False)


LOSSES = {"chunks": of_chunks, "small chunks": of_small_chunks, "fused": of_kernels}


def kernel_flops(tokens: int, hidden: int, words: int, trained: bool) -> float:
    """FLOPs of the fused kernels: logits, again for each gradient, and the gradients."""
    return 2.0 * tokens * hidden * words * (1 + 2 + 2 * trained)


def measured(topology: str) -> dict[str, Any]:
    """Temporaries in bytes, FLOPs and bytes moved of either, by what trains."""
    chip, devices = devices_of(topology)
    sharding = jax.sharding.SingleDeviceSharding(devices[0])

    def of(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    tokens = ROWS, LENGTH
    shapes = (
        of((*tokens, HIDDEN), jnp.bfloat16),
        of((HIDDEN, VOCABULARY), jnp.bfloat16),
        of(tokens, jnp.int32),
        of(tokens, jnp.float32),
    )
    figures = {}
    for name, loss in LOSSES.items():
        for arguments, trains in (((0,), "x"), ((0, 1), "x and W")):
            step = jax.jit(jax.value_and_grad(loss, arguments))
            program = step.lower(*shapes).compile()
            work = summarize(program.as_text())
            flops = work.flops
            if name == "fused":
                flops += kernel_flops(ROWS * LENGTH, HIDDEN, VOCABULARY, len(arguments) > 1)
            figures[f"{name}, {trains}"] = {
                "temporaries": program.memory_analysis().temp_size_in_bytes,
                "flops": flops,
                "moved": work.moved,
                "least_seconds": max(flops / chip.flops, work.moved / chip.bandwidth),
            }
    return figures


def timed() -> dict[str, float]:
    """Seconds of either on this machine's GPU."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (ROWS, LENGTH, HIDDEN), jnp.bfloat16)
    kernel = 0.02 * jax.random.normal(keys[1], (HIDDEN, VOCABULARY), jnp.bfloat16)
    targets = jnp.zeros((ROWS, LENGTH), jnp.int32)
    inputs, seconds = (x, kernel, targets, jnp.ones((ROWS, LENGTH))), {}
    for name, loss in LOSSES.items():
        step = jax.jit(jax.value_and_grad(loss))
        jax.block_until_ready(step(*inputs))
        begin = time.perf_counter()
        jax.block_until_ready([step(*inputs) for _ in range(5)])
        seconds[name] = (time.perf_counter() - begin) / 5
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="h100:1")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--time", action="store_true", help="on this machine's GPU")
    arguments = parser.parse_args()
    figures = {"seconds": timed()} if arguments.time else measured(arguments.topology)
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
