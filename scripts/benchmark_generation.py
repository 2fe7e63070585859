"""Speed of generation beside transformers (torch, CPU), in turns on one machine.

    python scripts/benchmark_generation.py [--model smollm2] [--tokens 128] [--rounds 3] [--text F]

Greedy, prompts of 16 tokens, without an end: decode tokens/s after the first token, of weights
held in float32, bfloat16 and int8, and of transformers in float32 and bfloat16, in processes of
their own that take turns: the best of three times in each, medians over rounds. A step of float32
reads every weight once (the table of words too, as it is tied): bytes of them a second are set
beside the bandwidth that reading a large array reaches.

Then guessed tokens, of one prompt that repeats itself: looked up, and by a draft, the model itself
with int8 weights; whether their tokens are those of greedy. With a text besides: its perplexity, in
parts of 256 tokens, by each kind of weights, and how often the most probable token is float32's.
Needs the `test` extras, and for smollm2 its package.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

BATCHES, PROMPT = (1, 8), 16
WEIGHTS = ("float32", "bfloat16", "int8")
SIDES = (*WEIGHTS, "transformers float32", "transformers bfloat16")
PARTS, LENGTH, GUESSED = 16, 256, 4  # of a text, tokens each; tokens that are guessed
TIMES = 3


def prompts(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1000, 30000, (rows, PROMPT))


def loaded(model: str) -> tuple[Any, Any]:
    """The model, plain, and its float32 parameters."""
    import jax

    from ftjax import methods, pretrained
    from ftjax.build import build_tuned
    from ftjax.formats.folder import locate, read_config
    from ftjax.parallel.mesh import make_mesh

    folder = locate(model)
    frozen = methods.create({"name": "prompting"})
    tuned = build_tuned(read_config(folder), frozen, {}, {"head": "causal_lm"})
    return tuned, pretrained.load(folder, tuned, make_mesh(), jax.random.key(0))[0]


def timed(
    start: Callable, go_on: Callable, params: Any, ids: np.ndarray, tokens: int
) -> tuple[float, np.ndarray]:
    """Decode tokens/s, and the tokens (rows, tokens)."""
    import jax

    start, go_on = jax.jit(start), jax.jit(go_on, donate_argnums=1)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "numbers": np.arange(len(ids))}
    seconds = []
    for _ in range(1 + TIMES):  # the first time compiles
        state = jax.block_until_ready(start(params, batch))
        begin = time.perf_counter()
        state = jax.block_until_ready(go_on(params, state, np.int32(tokens)))
        seconds.append(time.perf_counter() - begin)
    return len(ids) * (tokens - 1) / min(seconds), np.asarray(state.tokens)


def ours(weights: str, model: str, tokens: int) -> dict[int, float]:
    """Decode tokens/s by batch size."""
    from ftjax.generation import decode
    from ftjax.generation.settings import Settings
    from ftjax.generation.weights import narrowed

    plain, settings, rates = loaded(model), Settings(max_new_tokens=tokens), {}
    for rows in BATCHES:
        tuned, params = narrowed(*plain, weights, rows)
        steps = partial(decode.start, tuned, settings), partial(decode.go_on, tuned, settings)
        rates[rows], _ = timed(*steps, params, prompts(rows), tokens)
    return rates


def guessing(model: str, tokens: int) -> dict[str, tuple[float, bool]]:
    """Decode tokens/s in float32 by how tokens are guessed, and whether they are greedy's."""
    from ftjax.generation import decode, speculation
    from ftjax.generation.settings import Settings
    from ftjax.generation.weights import narrowed

    tuned, params = loaded(model)
    draft, narrow = narrowed(tuned, params, "int8")
    ids = np.tile(prompts(1), 4)
    plain = Settings(max_new_tokens=tokens)
    steps = partial(decode.start, tuned, plain), partial(decode.go_on, tuned, plain)
    rate, greedy = timed(*steps, params, ids, tokens)
    found = {"none": (rate, True)}
    for name, model_of_draft, given in (
        ("looked up", None, {"prompt_lookup_num_tokens": GUESSED}),
        ("int8 draft", draft, {"num_assistant_tokens": GUESSED}),
    ):
        fixed = tuned, Settings(max_new_tokens=tokens, **given), model_of_draft
        both = speculation.Params(params, narrow if model_of_draft else None)
        steps = partial(speculation.start, *fixed), partial(speculation.go_on, *fixed)
        rate, written = timed(*steps, both, ids, tokens)
        found[name] = rate, bool((written == greedy).all())
    return found


def quality(model: str, text: Path) -> dict[str, tuple[float, float]]:
    """By weights: perplexity of a text's last parts, and how often the most probable next token
    is float32's."""
    import jax
    import jax.numpy as jnp

    from ftjax.formats.folder import load_tokenizer, locate
    from ftjax.generation.weights import narrowed

    tuned, params = loaded(model)
    ids = load_tokenizer(locate(model)).encode(text.read_text(encoding="utf-8"))
    parts = np.array(ids[-PARTS * LENGTH :]).reshape(PARTS, 1, LENGTH)
    found, expected = {}, None
    for weights in WEIGHTS:
        narrow, held = narrowed(tuned, params, weights)

        @jax.jit
        def scored(params: Any, ids: jax.Array, tuned: Any = narrow) -> tuple[jax.Array, jax.Array]:
            batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
            logits = tuned.apply(params, batch, None)[:, :-1].astype(jnp.float32)
            losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], -1)
            return losses.mean(), logits.argmax(-1)

        losses, best = zip(*(scored(held, part) for part in parts), strict=True)
        best = np.stack(best)
        expected = best if expected is None else expected
        found[weights] = float(np.exp(np.mean(losses))), float((best == expected).mean())
    return found


def theirs(dtype: str, model: str, tokens: int) -> dict[int, float]:
    """The same by transformers' generate."""
    import torch
    from transformers import AutoModelForCausalLM

    from ftjax.formats.folder import locate

    path = locate(model)
    source = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    peer = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), **source
    ).eval()
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
        first, whole = (min(seconds(count) for _ in range(TIMES)) for count in (1, tokens))
        rates[rows] = rows * (tokens - 1) / (whole - first)
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


def size_of(model: str) -> int:
    """Bytes of the float32 weights that a step reads."""
    from ftjax.formats.folder import locate, open_weights

    found = open_weights(locate(model))
    return sum(np.prod(found[name].shape) * 4 for name in found)


def in_process(arguments: argparse.Namespace, side: str) -> Any:
    """What a process of its own finds for a side."""
    command = [sys.executable, __file__, "--side", side, "--model", arguments.model]
    command += ["--tokens", str(arguments.tokens)]
    command += ["--text", str(arguments.text)] if arguments.text else []
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def find(side: str, model: str, tokens: int, text: Path | None) -> Any:
    if side == "guessing":
        return guessing(model, tokens)
    if side == "quality":
        return quality(model, text)
    if side in WEIGHTS:
        return ours(side, model, tokens)
    return theirs(side.split()[1], model, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--side", choices=(*SIDES, "guessing", "quality"))
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(find(arguments.side, arguments.model, arguments.tokens, arguments.text)))
        return
    rounds = [
        {side: in_process(arguments, side) for side in SIDES} for _ in range(arguments.rounds)
    ]
    size, peak = size_of(arguments.model), bandwidth()
    print(
        f"{arguments.model}: {size / 1e6:.0f} MB of weights; reading reaches {peak / 1e9:.1f} GB/s"
    )
    print(f"| batch | {' | '.join(f'{side} tokens/s' for side in SIDES)} | GB/s of float32 |")
    print(f"|---:|{'---:|' * (len(SIDES) + 1)}")
    for rows in BATCHES:
        rates = {
            side: statistics.median(found[side][str(rows)] for found in rounds) for side in SIDES
        }
        one = rates["float32"]
        cells = " | ".join(f"{rate:.1f} ({rate / one:.2f})" for rate in rates.values())
        print(f"| {rows} | {cells} | {size * one / rows / 1e9:.1f} |")
    print("| guessed | tokens/s | as greedy |\n|---|---:|---|")
    for name, (rate, is_greedy) in in_process(arguments, "guessing").items():
        print(f"| {name} | {rate:.1f} | {'yes' if is_greedy else 'no'} |")
    if arguments.text:
        print("| weights | perplexity | most probable token as float32 |\n|---|---:|---:|")
        for name, (perplexity, same) in in_process(arguments, "quality").items():
            print(f"| {name} | {perplexity:.3f} | {same:.2%} |")


if __name__ == "__main__":
    main()
