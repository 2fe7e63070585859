"""Speed of generation beside transformers (torch, CPU), in turns on one machine.

    python scripts/benchmark_generation.py [--model smollm2] [--tokens 128] [--rounds 3]

Greedy, float32, prompts of 16 tokens, without an end: decode tokens/s after the first token, in
processes of their own that take turns; medians over rounds. A step reads every weight once (the
table of words too, as it is tied): bytes of them a second are set beside the bandwidth that
reading a large array reaches. Needs the `test` extras, and for smollm2 its package.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BATCHES, PROMPT = (1, 8), 16


def prompts(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1000, 30000, (rows, PROMPT))


def ours(model: str, tokens: int) -> dict[int, float]:
    """Decode tokens/s by batch size."""
    from functools import partial

    import jax

    from ftjax import methods, pretrained
    from ftjax.build import build_tuned
    from ftjax.formats.folder import locate, read_config
    from ftjax.generation import decode
    from ftjax.generation.settings import Settings
    from ftjax.parallel.mesh import make_mesh

    folder = locate(model)
    frozen = methods.create({"name": "prompting"})
    built = build_tuned(read_config(folder), frozen, {}, {"head": "causal_lm"})
    params, _ = pretrained.load(folder, built, make_mesh(), jax.random.key(0))
    settings = Settings(max_new_tokens=tokens)
    start = jax.jit(partial(decode.start, built, settings))
    go_on = jax.jit(partial(decode.go_on, built, settings), donate_argnums=1)
    rates = {}
    for rows in BATCHES:
        ids = prompts(rows)
        batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "numbers": np.arange(rows)}
        for _ in range(2):  # the first time compiles
            state = jax.block_until_ready(start(params, batch))
            begin = time.perf_counter()
            jax.block_until_ready(go_on(params, state, np.int32(tokens)))
            seconds = time.perf_counter() - begin
        rates[rows] = rows * (tokens - 1) / seconds
    return rates


def theirs(model: str, tokens: int) -> dict[int, float]:
    """The same by transformers' generate."""
    import torch
    from transformers import AutoModelForCausalLM

    from ftjax.formats.folder import locate

    path = locate(model)
    source = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **source).eval()
    rates = {}
    for rows in BATCHES:
        ids = torch.tensor(prompts(rows))

        def seconds(count: int, ids: torch.Tensor = ids) -> float:
            begin = time.perf_counter()
            peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
            return time.perf_counter() - begin

        seconds(2)
        first = seconds(1)
        rates[rows] = rows * (tokens - 1) / (seconds(tokens) - first)
    return rates


def bandwidth() -> float:
    """Bytes a second of reading arrays larger than the caches, by all cores: the best of ten."""
    cores = os.cpu_count() or 1
    arrays = [np.ones(2**26, np.float32) for _ in range(cores)]
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(10):
            begin = time.perf_counter()
            list(pool.map(lambda array: np.dot(array, array), arrays))
            best = max(best, cores * arrays[0].nbytes / (time.perf_counter() - begin))
    return best


def weights(model: str) -> int:
    """Bytes of the float32 weights that a step reads."""
    from ftjax.formats.folder import locate, open_weights

    found = open_weights(locate(model))
    return sum(np.prod(found[name].shape) * 4 for name in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "theirs"))
    arguments = parser.parse_args()
    if arguments.side:
        side = ours if arguments.side == "ours" else theirs
        print(json.dumps(side(arguments.model, arguments.tokens)))
        return
    rates: dict[str, list[dict]] = {"ours": [], "theirs": []}
    for _ in range(arguments.rounds):
        for side, found in rates.items():
            command = [sys.executable, __file__, "--side", side, "--model", arguments.model]
            command += ["--tokens", str(arguments.tokens)]
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(done.stderr)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    size, peak = weights(arguments.model), bandwidth()
    print(
        f"{arguments.model}: {size / 1e6:.0f} MB of weights; reading reaches {peak / 1e9:.1f} GB/s"
    )
    print("| batch | ftjax tokens/s | transformers | ratio | ms a step | GB/s of weights | share |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for rows in BATCHES:
        mine, peer = (
            statistics.median(found[str(rows)] for found in rates[side]) for side in rates
        )
        rate = size * mine / rows
        print(
            f"| {rows} | {mine:.1f} | {peer:.1f} | {mine / peer:.2f} | {1e3 * rows / mine:.1f} "
            f"| {rate / 1e9:.1f} | {rate / peak:.0%} |"
        )


if __name__ == "__main__":
    main()
