"""Speed and memory on one GPU beside transformers and peft on the same card, in one command.

    python scripts/benchmark_gpu.py --workdir runs/gpu [--minutes 8.5]

Full fine-tuning and LoRA of a Llama of 1.24 billion parameters and of BERT-large, with random
weights, on packed rows of random tokens, in bfloat16 over float32 weights that train; nothing is
read from a network. Both sides start from the same files and see the same batches: their losses of
the first 20 steps are compared. Each run is a process of its own. The peer runs as it is and
compiled, with attention through scaled_dot_product_attention (or flash-attn's own packed rows,
where that is installed) and the fused AdamW; its best counts. Runs that the time does not suffice
for are left out, and named. `--toy` is the same at a size for CPUs. Needs the `test` extras.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
FIRST = 20  # steps whose losses are compared
BATCHES = 4  # which are taken in turn
RANK, ALPHA = 16, 16.0
RATES = {"full": 1e-5, "lora": 1e-4}
SIDES = ("ftjax", "transformers", "transformers, compiled")
MASKED = 0.15  # share of BERT's tokens that are to be found
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "attention_dropout": 0.0,
}
BERT = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
        config: config.json of the model.
        rows, length: of a batch.
        mean: tokens of an example, on average; it is drawn from half to one and a half of this.
        targets: modules that LoRA adapts.
        toy: at a size for CPUs.
    """

    name: str
    config: Mapping[str, Any]
    rows: int
    length: int
    mean: int
    targets: tuple[str, ...]
    toy: bool = False

    @property
    def task(self) -> str:
        return "causal_lm" if self.config["model_type"] == "llama" else "masked_lm"


def workloads(toy: bool) -> tuple[Workload, ...]:
    all_linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    if toy:
        llama = LLAMA | SMALL | {"head_dim": 16, "num_key_value_heads": 2}
        return (
            Workload("llama", llama, 2, 48, 16, all_linear, True),
            Workload("bert", BERT | SMALL, 2, 48, 16, ("query", "value"), True),
        )
    return (
        Workload("llama-1.24B", LLAMA, 8, 2048, 512, all_linear),
        Workload("bert-large", BERT, 32, 512, 128, ("query", "value")),
    )


def batch_of(workload: Workload, seed: int) -> dict[str, np.ndarray]:
    """Packed rows as the loader makes them: each full, but for what no further example fits in."""
    random = np.random.default_rng(seed)
    rows, length = workload.rows, workload.length
    places = 2 * length // workload.mean + 1
    arrays = {name: np.zeros((rows, length), np.int32) for name in ("segment_ids", "position_ids")}
    weights, starts = np.zeros((rows, places), np.float32), np.zeros((rows, places), np.int32)
    ids = random.integers(4, workload.config["vocab_size"], (rows, length), np.int32)
    for row in range(rows):
        begin = 0
        for place in range(places):
            size = int(random.integers(workload.mean // 2, workload.mean * 3 // 2))
            if begin + size > length:
                break
            arrays["segment_ids"][row, begin : begin + size] = place + 1
            arrays["position_ids"][row, begin : begin + size] = np.arange(size)
            weights[row, place], starts[row, place] = 1, begin
            begin += size
    ids[arrays["segment_ids"] == 0] = 0
    batch = {"input_ids": ids, **arrays, "weights": weights, "starts": starts}
    if workload.task == "masked_lm":
        chance = random.random((rows, length)) * (arrays["segment_ids"] > 0)
        count = int(MASKED * length)
        masked = np.zeros((rows, length), np.int32)
        np.put_along_axis(masked, np.argsort(-chance, 1)[:, :count], 1, 1)
        batch |= {"originals": ids, "masked": masked, "input_ids": np.where(masked, 3, ids)}
    return batch


def real_tokens(workload: Workload) -> float:
    """Tokens that are no padding, of a batch on average."""
    counts = [(batch_of(workload, i)["segment_ids"] > 0).sum() for i in range(BATCHES)]
    return float(np.mean(counts))


def config_of(workload: Workload, method: str, folder: Path) -> Any:
    """The configuration of our run."""
    from ftjax.config import check, default_config

    config = default_config(method, workload.task)
    config.model.path, config.model.dtype = str(folder / workload.name), "bfloat16"
    config.data.max_length, config.data.batching = workload.length, "pack"
    config.train.batch_size = config.train.eval_batch_size = workload.rows
    config.optimizer.learning_rate, config.optimizer.schedule = RATES[method], "constant"
    config.optimizer.warmup, config.optimizer.clip_norm = 0, 0.0
    if method == "lora":
        config.method.rank, config.method.alpha = RANK, ALPHA
        config.method.targets = workload.targets
        config.model.adapter = str(folder / f"{workload.name}-adapter")
    return check(config)


def needed_flops(workload: Workload, method: str, folder: Path) -> float:
    """FLOPs of a step that the method cannot do without: MFU's numerator on both sides.

    No gradient of a frozen weight is among them, nothing is computed twice, and tokens attend to
    those of their own example alone.
    """
    from ftjax.forecast.least_work import Least

    least = Least(config_of(workload, method, folder))()
    seen = whole = 0
    for seed in range(BATCHES):
        for row in batch_of(workload, seed)["segment_ids"]:
            sizes = np.unique(row[row > 0], return_counts=True)[1].astype(np.float64)
            causal = workload.task == "causal_lm"
            seen += (sizes * (sizes + 1) / 2 if causal else sizes**2).sum()
            whole += len(row) * (len(row) + 1) / 2 if causal else len(row) ** 2
    return least["dense"] + least["attention"] * seen / whole


def ours(workload: Workload, method: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Times our step."""
    import jax

    from ftjax.parallel.mesh import batch_sharding, logical_axes
    from ftjax.setup.model import place_model
    from ftjax.training.recipe import Recipe
    from ftjax.training.step import init_state, lower_step

    config, begin = config_of(workload, method, folder), time.perf_counter()
    run = place_model(config, ("0", "1"))
    recipe = Recipe(config, run.task, run.tuned, 10**6)
    phase = recipe.phase(0)
    optimizer = recipe.optimizer(phase)
    state = init_state(run.trainable, optimizer, 0, run.mesh, phase.partition)
    sharding = batch_sharding(run.mesh)
    batches = [jax.device_put(batch_of(workload, seed), sharding) for seed in range(BATCHES)]
    with logical_axes(run.mesh):
        lowered = lower_step(recipe.step(phase), state, run.frozen, batches[0], run.mesh)
        step = lowered.compile()

    def one(number: int) -> Any:
        nonlocal state
        state, metrics = step(state, run.frozen, batches[number % BATCHES])
        return metrics["loss"]

    timed = timing(one, float, seconds)
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    trainable = run.tuned.partition.counts(run.tuned.shapes)[0]
    return timed | {
        "device": device.device_kind,
        "peak_bytes": memory,
        "trainable": trainable,
        "start_seconds": time.perf_counter() - begin - timed["timed_seconds"],
    }


def timing(one: Any, value: Any, seconds: float) -> dict[str, Any]:
    """Losses of the first steps, and seconds a step after them.

    Args:
        one: does a step by its number; its loss, which may not be there yet.
        value: waits for a loss.
        seconds: to time for, about.
    """
    losses = [value(one(number)) for number in range(FIRST)]
    begin = time.perf_counter()
    value(one(FIRST))
    count = max(int(seconds / (time.perf_counter() - begin)), 3)
    begin = time.perf_counter()
    for number in range(count):
        last = one(FIRST + 1 + number)
    value(last)
    took = time.perf_counter() - begin
    return {
        "losses": losses,
        "step_seconds": took / count,
        "timed_steps": count,
        "timed_seconds": took,
    }


def child(arguments: argparse.Namespace) -> None:
    """One run, in this process; its figures into a file."""
    side, name, method = arguments.run
    workload = next(each for each in workloads(arguments.toy) if each.name == name)
    if side == "ftjax":
        figures = ours(workload, method, arguments.workdir, arguments.seconds)
    else:
        import benchmark_gpu_peer

        compiled = side.endswith("compiled")
        settings = workload, method, arguments.workdir, arguments.seconds, compiled
        figures = benchmark_gpu_peer.peer(*settings)
    arguments.figures.write_text(json.dumps(figures))


def run(arguments: argparse.Namespace, side: str, name: str, method: str, limit: float) -> dict:
    """A run's figures, or "failed": why there are none."""
    slug = f"{side.replace(', ', '_')}_{name}_{method}"
    file = arguments.workdir / f"{slug}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--workdir", str(arguments.workdir)]
    command += ["--seconds", str(arguments.seconds), "--run", side, name, method]
    command += ["--figures", str(file), *(["--toy"] if arguments.toy else [])]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    one_card = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    with (arguments.workdir / f"{slug}.log").open("w") as log:
        try:
            subprocess.run(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, **offline, **one_card},
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"more than the {limit:.0f} s that were left"}
    if file.exists():
        return json.loads(file.read_text())
    lines = (arguments.workdir / f"{slug}.log").read_text(errors="replace").strip().splitlines()
    return {"failed": (lines or ["no reason given"])[-1][:300]}


def row(
    workload: Workload, method: str, side: str, figures: Mapping[str, Any], flops: float
) -> str:
    """A line of the table."""
    from ftjax.forecast.chips import KINDS

    cells = [workload.name, method, side]
    if "failed" in figures:
        return f"| {' | '.join([*cells, figures['failed']])} |" + " |" * 4
    seconds, peak = figures["step_seconds"], figures["peak_bytes"]
    rate = next((KINDS[kind] for kind in KINDS if kind in figures["device"]), None)
    cells += [
        f"{real_tokens(workload) / seconds:,.0f}",
        f"{1e3 * seconds:,.1f}",
        f"{peak / 2**30:.2f}" if peak else "–",
        f"{flops / seconds / rate:.1%}" if rate else "–",
        f"{figures['losses'][0]:.4f} → {figures['losses'][-1]:.4f}",
    ]
    return f"| {' | '.join(cells)} |"


def compared(sides: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What is said of both sides together."""
    mine = sides["ftjax"]
    peers = [each for name, each in sides.items() if name != "ftjax" and "failed" not in each]
    if "failed" in mine or not peers:
        return
    best = min(peers, key=lambda each: each["step_seconds"])
    furthest = max(
        abs(a - b) / abs(b) for a, b in zip(mine["losses"], peers[0]["losses"], strict=True)
    )
    yield f"{best['step_seconds'] / mine['step_seconds']:.2f} times the peer's best speed"
    if mine["peak_bytes"] and best["peak_bytes"]:
        yield f"{mine['peak_bytes'] / best['peak_bytes']:.2f} times its memory"
    yield f"losses of the first {FIRST} steps within {furthest:.1e} of the peer's"
    yield f"{mine['trainable']:,} and {peers[0]['trainable']:,} parameters train"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.5, help="for all of it (default 8.5)")
    parser.add_argument("--seconds", type=float, default=6.0, help="timed a run (default 6)")
    parser.add_argument("--toy", action="store_true", help="at a size for CPUs")
    parser.add_argument("--output", type=Path, help="the report (default experiments/GPU.md)")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--figures", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        return child(arguments)
    end = time.monotonic() + 60 * arguments.minutes
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    import benchmark_gpu_peer

    lines, devices = [], set()
    for workload in workloads(arguments.toy):
        benchmark_gpu_peer.write_model(workload, arguments.workdir)
    header = "model", "method", "side", "tokens/s", "ms a step", "peak GiB", "MFU", "loss"
    table = [f"| {' | '.join(header)} |", "|---|---|---|" + "---:|" * 5]
    # Of every case ours and the peer as it is come before the peer compiled, which takes longest.
    cases = [(w, method) for w in workloads(arguments.toy) for method in ("full", "lora")]
    found: dict[tuple[str, str], dict[str, Any]] = {(w.name, m): {} for w, m in cases}
    for sides in (SIDES[:2], SIDES[2:]):
        for workload, method in cases:
            for side in sides:
                left = end - time.monotonic()
                print(f"{side}: {workload.name}, {method} ({left:.0f} s are left)", flush=True)
                figures = {"failed": "left out: no time was left"}
                if left > arguments.seconds:
                    figures = run(arguments, side, workload.name, method, left)
                found[workload.name, method][side] = figures
                devices |= {figures["device"]} if side == "ftjax" and "device" in figures else set()
    for workload, method in cases:
        flops = needed_flops(workload, method, arguments.workdir)
        sides = found[workload.name, method]
        table += [row(workload, method, side, sides[side], flops) for side in SIDES]
        lines.append(f"- {workload.name}, {method}: {'; '.join(compared(sides)) or 'not compared'}")
    report = [
        "# On a GPU, beside transformers and peft",
        "",
        f"Written by `python scripts/benchmark_gpu.py`, on {', '.join(devices) or 'no device'}.",
        *__doc__.split("\n\n")[2].strip().splitlines(),
        "",
        "Tokens are those that are no padding. MFU is of the FLOPs that a method cannot do",
        "without (no gradient of a frozen weight, nothing twice, tokens of their own example",
        "alone), over the card's published rate in bfloat16; the same number for both sides.",
        "",
        *table,
        "",
        *lines,
    ]
    output = arguments.output or ROOT / "experiments" / "GPU.md"
    output.write_text("\n".join(report) + "\n", encoding="utf-8")
    (arguments.workdir / "figures.json").write_text(
        json.dumps({" ".join(key): value for key, value in found.items()}, indent=1)
    )
    print("\n".join(report))


if __name__ == "__main__":
    main()
