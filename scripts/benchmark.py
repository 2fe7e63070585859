"""Speed and accuracy beside the Hugging Face Trainer, in one run on one machine.

    python scripts/benchmark.py speed    --data FOLDER [--size base] [--steps 100] [--rounds 3]
    python scripts/benchmark.py accuracy --data FOLDER [--seeds 3] [--epochs 3]
    python scripts/benchmark.py products --data FOLDER/.. [--seeds 3] [--pages sst2 mrpc cola stsb]
    python scripts/benchmark.py start    --data FOLDER

FOLDER holds train.jsonl and validation.jsonl with `text` and `label` (SST-2). Both sides run
MiniLM with CLS pooling, batch 32, at most 128 tokens, AdamW, a linear schedule with 6% warm-up
and the same learning rates; with `--size base` a model of BERT-base's size with random weights, on
rows of 128 tokens each. The Trainer is measured at all of `PEERS`, each run a process of its own
with huge pages, as ours; finished runs are kept in --workdir, so that the same command goes on
where it stopped. `products` trains by the pages of `SCORES` in float32 and in bfloat16 products.
Needs the `test` extras.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RATES = {
    "full": 5e-5,
    "lora": 1e-3,
    "houlsby": 1e-3,
    "bitfit": 1e-3,
    "prompt_tuning": 1e-2,
    "head": 1e-2,
}
ROOT = Path(__file__).parent.parent
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # which `ftjax` asks for by itself
PEERS = [  # dtype, sampling, torch.compile
    ("float32", "random", 0),
    ("bfloat16", "random", 0),
    ("float32", "group_by_length", 0),
    ("bfloat16", "group_by_length", 0),
    ("float32", "group_by_length", 1),
    ("bfloat16", "group_by_length", 1),
]
SCORES = {  # page, of data in a folder of its name → what is compared, of validation
    "sst2": "accuracy",
    "mrpc": "accuracy",
    "cola": "matthews",
    "stsb": "spearman",
}
BASE = {  # of BERT-base, and MiniLM's words
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}


def run(command: list[str], log: Path, **environment: str) -> None:
    """Runs a process, its output in a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        subprocess.run(
            command, check=True, stdout=stream, stderr=stream, env={**os.environ, **environment}
        )


def model_folder(arguments: argparse.Namespace) -> Path:
    """The folder of the model that both sides train; one of random weights is made there."""
    from ftjax.formats.folder import locate

    minilm = locate("minilm")
    if arguments.size == "minilm":
        return minilm
    folder = arguments.workdir / "bert-base"
    if not (folder / "config.json").exists():
        from transformers import AutoTokenizer, BertConfig, BertModel

        AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
        BertModel(BertConfig(**BASE)).save_pretrained(folder)
    return folder


def data_folder(arguments: argparse.Namespace) -> Path:
    """The folder of rows; for the larger model, of rows that fill 128 tokens."""
    if arguments.size == "minilm":
        return arguments.data
    folder = arguments.workdir / "long"
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        lines = (arguments.data / f"{split}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        texts = [" ".join(row["text"] for row in rows[i : i + 16]) for i in range(len(rows) - 16)]
        text = [
            json.dumps({"text": text, "label": row["label"]})
            for text, row in zip(texts, rows, strict=False)
            if len(text.split()) > 128
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(text) + "\n")
    return folder


def ours(arguments: argparse.Namespace, method: str, seed: int, **changes: object) -> dict:
    """result.json of an ftjax run."""
    label = "_".join(f"{k.split('.')[-1]}={v}" for k, v in sorted(changes.items()))
    folder = arguments.workdir / arguments.size / "ftjax" / f"{method}_{seed}_{label or 'plain'}"
    result = folder / "result.json"
    if not result.exists():
        settings = {
            "data.path": data_folder(arguments),
            "model.path": model_folder(arguments),
            "task.pooling": "cls",
            "optimizer.learning_rate": RATES[method],
            "data.prepare": "()",
            "seed": seed,
            **changes,
        }
        command = [sys.executable, "-m", "ftjax", "train", "--workdir", str(folder)]
        command += ["--config", f"{ROOT / 'configs' / 'sst2.py'}:{method}"]
        command += [f"--config.{key}={value}" for key, value in settings.items()]
        run(command, folder.with_suffix(".log"), JAX_PLATFORMS="cpu")
    return {**json.loads(result.read_text()), "workdir": str(folder)}


def warm_rate(arguments: argparse.Namespace, method: str, seed: int, **changes: object) -> float:
    """Real tokens/s of an ftjax run after its first ten steps, as the peer's is measured.

    Of a run whose backbone runs once, before its steps: of all of it, that included.
    """
    result = ours(arguments, method, seed, **changes)
    if result["cached_frozen"]:
        return result["tokens_per_second"]
    rows = map(json.loads, (Path(result["workdir"]) / "metrics.jsonl").read_text().splitlines())
    rates = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    return statistics.harmonic_mean(rates[1:]) if len(rates) > 1 else result["tokens_per_second"]


def peer(arguments: argparse.Namespace, method: str, seed: int, **options: object) -> dict:
    """What the Trainer reports in a process of its own."""
    label = "_".join(f"{key}={value}" for key, value in sorted(options.items()))
    result = arguments.workdir / arguments.size / "trainer" / f"{method}_{seed}_{label}.json"
    if not result.exists():
        command = [sys.executable, str(ROOT / "scripts" / "benchmark_trainer.py")]
        command += ["--data", str(data_folder(arguments)), "--model", str(model_folder(arguments))]
        command += ["--method", method, "--rate", str(RATES[method]), "--seed", str(seed)]
        command += [f"--{key}={value}" for key, value in options.items()]
        command += ["--output", str(result)]
        run(command, result.with_suffix(".log"), CUDA_VISIBLE_DEVICES="", **HUGE)
    return json.loads(result.read_text())


def peak_gflops() -> dict[str, float]:
    """The best of several matrix products, of float32 and of bfloat16 summed in float32."""
    import jax
    import jax.numpy as jnp

    peaks = {}
    for dtype in ("float32", "bfloat16"):
        a = jnp.ones((2048, 2048), dtype)
        product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
        best = float("inf")
        product(a).block_until_ready()
        for _ in range(20):
            start = time.perf_counter()
            product(a).block_until_ready()
            best = min(best, time.perf_counter() - start)
        peaks[dtype] = 2 * 2048**3 / best / 1e9
    return peaks


def speed(arguments: argparse.Namespace) -> None:
    """Real tokens/s of the training phase, without compilation, ours and the Trainer's.

    The first round is of all of the Trainer's settings, the others of its best two; sides take
    turns, so that a machine that slows down slows both; medians over rounds.
    """
    steps = arguments.steps
    # Where all rows are of one length, the two ways to sample are the same.
    peers = [peer for peer in PEERS if arguments.size == "minilm" or peer[1] != "random"]
    peers = [peer for peer in peers if peer[0] in arguments.dtypes]
    names = [f"{dtype}, {sampling}{', compiled' * c}" for dtype, sampling, c in peers]
    print(f"| method | ftjax | {' | '.join(names)} | ratio to the best |")
    print("|---|---:|" + "---:|" * len(peers) + "---:|")
    runs = {}
    for method in arguments.methods or RATES:
        # The head's run is a whole one: its backbone runs once, for all epochs.
        changes = {} if method == "head" else {"train.steps": steps, "train.eval_every": steps}
        mine: list[float] = []
        theirs: dict[tuple, list[float]] = {setting: [] for setting in peers}
        settings = peers
        for turn in range(arguments.rounds):
            runs[method] = ours(arguments, method, turn, **changes)
            mine.append(warm_rate(arguments, method, turn, **changes))
            for dtype, sampling, compiled in settings:
                options = {"dtype": dtype, "sampling": sampling, "compile": compiled}
                rate = peer(arguments, method, turn, steps=steps, **options)["tokens_per_second"]
                theirs[dtype, sampling, compiled].append(rate)
            settings = sorted(settings, key=lambda setting: -theirs[setting][0])[:2]
        rates = [statistics.median(theirs[setting]) for setting in peers]
        ratio = statistics.median(mine) / max(rates)
        cells = [f"{rate:,.0f}" for rate in (statistics.median(mine), *rates)]
        print(f"| {method} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)
    peaks = peak_gflops()
    print("\npeak matrix product, GFLOP/s: " + ", ".join(f"{d} {x:.0f}" for d, x in peaks.items()))
    width, layers = (384, 6) if arguments.size == "minilm" else (768, 12)
    # Of the last layer, where [CLS] is pooled, keys and values alone are computed for every token.
    weights = (layers - 1 + 1 / 6) * 12 * width**2
    for method, result in runs.items():
        line = (
            f"{method}: compilation of all lengths {result['compile_seconds']:.1f} s, "
            f"peak memory {result['peak_memory_bytes'] / 2**20:,.0f} MiB"
        )
        if method in ("full", "lora"):  # of which frozen kernels have no gradient
            times = 6 if method == "full" else 4
            useful = times * weights * result["tokens_per_second"] / 1e9
            line += f", {useful:.0f} GFLOP/s in products on real tokens: " + ", ".join(
                f"{useful / peak:.0%} of {dtype}'s peak" for dtype, peak in peaks.items()
            )
        print(line)


def accuracy(arguments: argparse.Namespace) -> None:
    """Validation accuracy after the last epoch's choice, ours and the Trainer's, over seeds."""
    print("| method | side | accuracy by seed | mean |")
    print("|---|---|---|---:|")
    epochs = arguments.epochs

    def line(method: str, side: str, values: list[float]) -> None:
        each = ", ".join(f"{value:.4f}" for value in values)
        print(f"| {method} | {side} | {each} | {statistics.fmean(values):.4f} |", flush=True)

    def last(method: str, seed: int, **changes: object) -> float:
        # One evaluation, after the last step, as the Trainer's: no choice of the best epoch.
        settings = {"train.epochs": epochs, "train.eval_every": 10**9, **changes}
        found = ours(arguments, method, seed, **settings)
        return found["metrics"]["validation"]["accuracy"]

    seeds = range(arguments.seeds)
    line(
        "head, mean pooling", "ftjax", [last("head", s, **{"task.pooling": "mean"}) for s in seeds]
    )
    line("head", "ftjax", [last("head", s) for s in seeds])
    for method in ("lora", "full"):
        line(method, "ftjax", [last(method, s) for s in seeds])
        for dtype in ("float32", "bfloat16"):
            options = {"dtype": dtype, "sampling": "group_by_length"}
            results = [peer(arguments, method, s, epochs=epochs, **options) for s in seeds]
            line(method, f"Trainer {dtype}", [result["accuracy"] for result in results])


def products(arguments: argparse.Namespace) -> None:
    """Validation scores of the last step by products in float32 and in bfloat16, over seeds."""
    print("| data | method | products | score by seed | mean |\n|---|---|---|---|---:|")
    for page in arguments.pages:
        metric = SCORES[page]
        for method in arguments.methods or ("full", "lora"):
            for dtype in ("float32", "bfloat16"):
                scores = []
                for seed in range(arguments.seeds):
                    folder = arguments.workdir / "products" / f"{page}_{method}_{dtype}_{seed}"
                    if not (folder / "result.json").exists():
                        changes = {
                            "data.path": arguments.data / page,
                            "seed": seed,
                            "model.products": dtype,
                            "train.epochs": arguments.epochs,
                            "train.eval_every": 10**9,
                        }
                        command = [sys.executable, "-m", "ftjax", "train"]
                        command += ["--config", f"{ROOT / 'configs' / page}.py:{method}"]
                        command += [f"--config.{key}={value}" for key, value in changes.items()]
                        command += ["--workdir", str(folder)]
                        run(command, folder.with_suffix(".log"), JAX_PLATFORMS="cpu")
                    result = json.loads((folder / "result.json").read_text())
                    scores.append(result["metrics"]["validation"][metric])
                each = ", ".join(f"{100 * score:.2f}" for score in scores)
                mean = 100 * statistics.fmean(scores)
                print(f"| {page} | {method} | {dtype} | {each} | {mean:.2f} |", flush=True)


def start(arguments: argparse.Namespace) -> None:
    """Seconds from the command to the first logged step, cold and with kept programs."""
    with tempfile.TemporaryDirectory() as folder:
        for method in ("full", "lora"):
            for attempt in ("cold", "kept"):
                work = Path(folder) / f"{method}_{attempt}"
                command = [sys.executable, "-m", "ftjax", "train", "--workdir", str(work)]
                command += ["--config", f"{ROOT / 'configs' / 'sst2.py'}:{method}"]
                command += [f"--config.data.path={arguments.data}", "--config.task.pooling=cls"]
                command += ["--config.train.log_every=1"]
                environment = {**os.environ, "FTJAX_CACHE": f"{folder}/cache"}
                begin = time.perf_counter()
                process = subprocess.Popen(
                    command,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**environment, "JAX_PLATFORMS": "cpu"},
                )
                rows = work / "metrics.jsonl"
                while not rows.exists() or not rows.stat().st_size:
                    time.sleep(0.01)
                first = time.perf_counter() - begin
                print(f"{method}, {attempt}: first step logged after {first:.1f} s", flush=True)
                time.sleep(60 if attempt == "cold" else 0)  # the other lengths come too
                process.kill()
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "accuracy", "products", "start"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--size", choices=("minilm", "base"), default="minilm")
    parser.add_argument("--methods", nargs="*", choices=tuple(RATES))
    parser.add_argument("--pages", nargs="*", choices=tuple(SCORES), default=tuple(SCORES))
    # Of the Trainer: on a processor without units for bfloat16 it takes ten times as long.
    types = ("float32", "bfloat16")
    parser.add_argument("--dtypes", nargs="*", choices=types, default=types)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    parts = {"speed": speed, "accuracy": accuracy, "products": products, "start": start}
    parts[arguments.what](arguments)


if __name__ == "__main__":
    main()
