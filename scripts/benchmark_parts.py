"""Parts of models, methods and generation beside the plain way to the same: ms, on this machine.

    python scripts/benchmark_parts.py [--only galore,experts] [--rounds 5]

Each pair is compiled, its difference is printed, and it is run in turns; the best of each over
rounds, since other work on the machine only slows.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.generation.choice import truncated
from ftjax.generation.settings import Settings
from ftjax.methods import galore, loha
from ftjax.models import configure, deberta
from ftjax.models.grouped_matmul import grouped_matmul
from ftjax.models.language_head import read_off
from ftjax.models.layers import Options
from ftjax.models.masks import View
from ftjax.parallel.product import rows
from ftjax.quantization import BLOCK, DYNAMIC, GROUP, NF4, Nf4

Array = jax.Array
Pair = tuple[str, Callable, Callable, tuple]  # what, the plain way, ours, arguments
RANDOM = np.random.default_rng(0)


def normal(*shape: int, dtype: jnp.dtype = jnp.float32) -> Array:
    return jnp.asarray(RANDOM.normal(size=shape), dtype)


def with_gradients(function: Callable) -> Callable:
    """Of the sum of squares by the first two arguments, besides."""
    return jax.value_and_grad(lambda *args: (function(*args) ** 2).mean(), (0, 1))


def deberta_layer() -> Iterator[Pair]:
    hf = {"model_type": "deberta-v2", "hidden_size": 768, "num_attention_heads": 12}
    hf |= {"relative_attention": True, "position_buckets": 256, "max_relative_positions": 512}
    hf |= {"pos_att_type": "p2c|c2p", "share_att_key": True, "intermediate_size": 3072}
    config = configure(hf, Options())
    attention = deberta.Attention(config)
    for length in (32, 128):
        x, table = normal(8, length, 768), normal(2 * config.span, 768)
        table_rows = deberta.rows_of(config, length)
        first, last = table_rows[0], table_rows[-1]
        params = attention.init(jax.random.key(0), x, x, View(), None, table[first : last + 1])

        def cut(x: Array, table: Array, params=params, first=first, last=last) -> Array:
            return attention.apply(params, x, x, View(), None, table[first : last + 1])

        def whole(x: Array, table: Array, params=params, first=first) -> Array:
            moved = jnp.roll(table, -first, 0)  # all are multiplied, and looked up as they lie
            return attention.apply(params, x, x, View(), None, moved)

        yield f"deberta-v3-base attention, 8 x {length}", whole, cut, (x, table)


def loha_update() -> Iterator[Pair]:
    def whole(x: Array, leaves: dict) -> Array:
        return x @ loha.difference(**leaves)

    def factored(x: Array, leaves: dict) -> Array:
        left, right = loha.hadamard_factors(**leaves)
        return (x @ left) @ right

    for rank in (8, 32):
        leaves = {f"hada_w{i}_a": normal(rank, 768) for i in (1, 2)}
        leaves |= {f"hada_w{i}_b": normal(768, rank) for i in (1, 2)}
        ways = factored, whole
        ours = ways[loha.whole_is_cheaper(1024, 768, rank, 768)]
        arguments = normal(1024, 768), leaves
        name = f"loha rank {rank}, forward and backward, 1024 rows of 768"
        yield name, with_gradients(factored), with_gradients(ours), arguments


def galore_directions() -> Iterator[Pair]:
    def decomposed(grad: Array) -> Array:
        vectors = jnp.linalg.svd(grad, full_matrices=False)[0][:, :128]
        return vectors @ (vectors.T @ grad)

    def ours(grad: Array) -> Array:
        vectors = galore.leading(grad, 128)
        return vectors @ (vectors.T @ grad)

    flat = normal(768, 3072)
    decay = jnp.logspace(0, -4, 768)[:, None] * flat
    yield "galore directions, 768 x 3072, even spectrum", decomposed, ours, (flat,)
    yield "galore directions, 768 x 3072, spectrum to 1e-4", decomposed, ours, (decay,)


def experts() -> Iterator[Pair]:
    for count in (1024, 16):
        x, kernel = normal(count, 256), normal(8, 256, 512)
        sizes = jnp.asarray(np.bincount(RANDOM.integers(0, 8, count), minlength=8), jnp.int32)
        plain, ours = (
            with_gradients(lambda x, kernel, sizes, f=f: f(x, kernel, sizes))
            for f in (jax.lax.ragged_dot, grouped_matmul)
        )
        name = f"8 experts, {count} rows, forward and backward"
        yield name, plain, ours, (x, kernel, sizes)


def narrow_products() -> Iterator[Pair]:
    kernel, table = normal(2048, 8192, dtype=jnp.bfloat16), normal(49152, 576, dtype=jnp.bfloat16)
    for count in (1, 8):
        x, y = (normal(count, size, dtype=jnp.bfloat16) for size in (2048, 576))
        yield f"bfloat16 product, {count} rows", jnp.matmul, rows, (x, kernel)
        plain = lambda x, table: x.astype(jnp.float32) @ table.T.astype(jnp.float32)  # noqa: E731
        yield f"bfloat16 logits, {count} rows", plain, read_off, (y, table)


def nf4_decoding() -> Iterator[Pair]:
    def gathered(stored: Nf4) -> Array:
        blocks, out = stored.scales.shape
        largest = jnp.repeat(stored.groups, GROUP)[: blocks * out].reshape(out, blocks).T
        absmax = jnp.asarray(DYNAMIC)[stored.scales] * largest + stored.mean
        codes = stored.codes.reshape(blocks, BLOCK // 2, out)
        codes = jnp.concatenate([codes >> 4, codes & 15], 1)
        return (jnp.asarray(NF4)[codes] * absmax[:, None]).reshape(-1, out)

    stored = jax.jit(Nf4.of)(normal(2048, 2048))
    yield "nf4 to float32, 2048 x 2048", gathered, Nf4.dequantized, (stored,)


def top_p() -> Iterator[Pair]:
    def by_sorting(logits: Array) -> Array:
        values, tokens = jax.lax.top_k(logits, logits.shape[-1])
        probability = jax.nn.softmax(values)
        before = jnp.cumsum(probability, -1) - probability
        kept = jnp.where(before < 0.9, values, -jnp.inf)
        return jnp.zeros_like(logits).at[jnp.arange(len(logits))[:, None], tokens].set(kept)

    settings = Settings(temperature=1.0, top_p=0.9)
    for count in (1, 8):
        logits = 3 * normal(count, 128256)
        name = f"top_p of {count} x 128,256"
        yield name, by_sorting, lambda logits: truncated(settings, logits), (logits,)


PARTS = {
    "deberta": deberta_layer,
    "loha": loha_update,
    "galore": galore_directions,
    "experts": experts,
    "bfloat16": narrow_products,
    "nf4": nf4_decoding,
    "top_p": top_p,
}


def seconds(program: Callable, arguments: tuple) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - begin


def difference(found: tuple, wanted: tuple) -> float:
    """The largest, relative to the largest value; infinities are the same but for a token that
    rounding puts on either side of a limit."""
    worst = 0.0
    for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        x, y = (np.asarray(z, np.float64) for z in (x, y))
        finite = np.isfinite(x) & np.isfinite(y)
        assert (np.isfinite(x) != np.isfinite(y)).sum() <= len(y)
        worst = max(worst, np.abs(x[finite] - y[finite]).max() / np.abs(y[finite]).max())
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| | plain ms | ours ms | ratio | difference |\n|---|---:|---:|---:|---:|")
    for part in options.only.split(","):
        for name, plain, ours, arguments in PARTS[part]():
            programs = [jax.jit(function) for function in (plain, ours)]
            wanted, found = (program(*arguments) for program in programs)
            times = [[seconds(p, arguments) for p in programs] for _ in range(options.rounds)]
            before, after = (1e3 * min(column) for column in zip(*times, strict=True))
            error = difference(found, wanted)
            print(
                f"| {name} | {before:.1f} | {after:.1f} | {before / after:.1f} | {error:.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
