"""Speed and accuracy beside the Hugging Face Trainer, in one run on one machine.

    python scripts/benchmark.py speed    --data FOLDER [--steps 100] [--rounds 3]
    python scripts/benchmark.py accuracy --data FOLDER [--seeds 3] [--epochs 3]
    python scripts/benchmark.py start    --data FOLDER

FOLDER holds train.jsonl and validation.jsonl with `text` and `label` (SST-2). Both sides run
MiniLM with CLS pooling, batch 32, at most 128 tokens, AdamW, a linear schedule with 6% warm-up
and the same learning rates; each run is a process of its own, and finished runs are kept in
--workdir, so that the same command goes on where it stopped. Needs the `test` extras.
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

RATES = {"full": 5e-5, "lora": 1e-3, "head": 1e-2}
ROOT = Path(__file__).parent.parent


def run(command: list[str], log: Path, **environment: str) -> None:
    """Runs a process, its output in a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        subprocess.run(
            command, check=True, stdout=stream, stderr=stream, env={**os.environ, **environment}
        )


def ours(arguments: argparse.Namespace, method: str, seed: int, **changes: object) -> dict:
    """result.json of an ftjax run."""
    label = "_".join(f"{k.split('.')[-1]}={v}" for k, v in sorted(changes.items()))
    folder = arguments.workdir / "ftjax" / f"{method}_{seed}_{label or 'plain'}"
    result = folder / "result.json"
    if not result.exists():
        settings = {
            "data.path": arguments.data,
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
    return json.loads(result.read_text())


def peer(arguments: argparse.Namespace, method: str, seed: int, **options: object) -> dict:
    """What the Trainer reports in a process of its own."""
    label = "_".join(f"{key}={value}" for key, value in sorted(options.items()))
    result = arguments.workdir / "trainer" / f"{method}_{seed}_{label}.json"
    if not result.exists():
        command = [sys.executable, __file__, "peer", "--data", str(arguments.data)]
        command += ["--method", method, "--seed", str(seed), "--output", str(result)]
        command += [f"--{key}={value}" for key, value in options.items()]
        run(command, result.with_suffix(".log"), CUDA_VISIBLE_DEVICES="")
    return json.loads(result.read_text())


def train_peer(arguments: argparse.Namespace) -> None:
    """Trains with the Trainer (and PEFT) and writes tokens/s and validation accuracy."""
    import numpy as np
    import torch
    from transformers import (
        AutoTokenizer,
        BertForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from ftjax.formats.folder import locate

    folder = locate("minilm")
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def rows(split: str) -> list[dict]:
        lines = (arguments.data / f"{split}.jsonl").read_text().splitlines()
        found = []
        for row in map(json.loads, lines):
            encoded = tokenizer(row["text"], truncation=True, max_length=128)
            found.append({**encoded, "labels": int(row["label"])})
        return found

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(arguments.seed)
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=2)
    if arguments.method == "lora":
        from peft import LoraConfig, get_peft_model

        targets = ["query", "value"]
        config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=8, target_modules=targets)
        model = get_peft_model(model, config)
    elif arguments.method == "head":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "pooler" in name or "classifier" in name

    class Collator(DataCollatorWithPadding):
        tokens = 0

        def __call__(self, features: list) -> dict:
            batch = super().__call__(features)
            Collator.tokens += int(batch["attention_mask"].sum())
            return batch

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            self.start = time.perf_counter()

        def on_train_end(self, *_: object, **__: object) -> None:
            self.seconds, self.tokens = time.perf_counter() - self.start, Collator.tokens

    train, clock = rows("train"), Clock()
    steps = arguments.steps if arguments.steps > 0 else arguments.epochs * -(-len(train) // 32)
    with tempfile.TemporaryDirectory() as output:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=output,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=64,
                max_steps=steps,
                learning_rate=RATES[arguments.method],
                lr_scheduler_type="linear",
                warmup_steps=int(-(-0.06 * steps // 1)),
                weight_decay=0.0,
                # Whole runs, for accuracy, take less time with batches of like lengths.
                train_sampling_strategy="random" if arguments.steps > 0 else "group_by_length",
                use_cpu=True,
                bf16=arguments.dtype == "bfloat16",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=arguments.seed,
            ),
            train_dataset=train,
            data_collator=Collator(tokenizer),
            callbacks=[clock],
            compute_metrics=lambda p: {
                "accuracy": float((np.argmax(p.predictions, -1) == p.label_ids).mean())
            },
        )
        trainer.train()
        result = {"tokens_per_second": clock.tokens / clock.seconds, "seconds": clock.seconds}
        if arguments.steps <= 0:
            result["accuracy"] = trainer.evaluate(rows("validation"))["eval_accuracy"]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result))


def peak_gflops() -> float:
    """Of a float32 matrix product here: the best of several."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((2048, 2048))
    product, best = jax.jit(lambda a: a @ a), float("inf")
    product(a).block_until_ready()
    for _ in range(20):
        start = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best / 1e9


def speed(arguments: argparse.Namespace) -> None:
    """Real tokens/s of the training phase, without compilation, ours and the Trainer's.

    Sides take turns, so that a machine that slows down slows both; medians over rounds.
    """
    steps = arguments.steps
    print("| method | ftjax | Trainer float32 | ratio | Trainer bfloat16 | ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    runs = {}
    for method in RATES:
        # The head's run is a whole one: its backbone runs once, for all epochs.
        changes = {} if method == "head" else {"train.steps": steps, "train.eval_every": steps}
        rates: dict[str, list[float]] = {"ftjax": [], "float32": [], "bfloat16": []}
        for turn in range(arguments.rounds):
            runs[method] = ours(arguments, method, turn, **changes)
            rates["ftjax"].append(runs[method]["tokens_per_second"])
            for dtype in ("float32", "bfloat16"):
                found = peer(arguments, method, turn, steps=steps, dtype=dtype)
                rates[dtype].append(found["tokens_per_second"])
        mine, plain, half = (statistics.median(values) for values in rates.values())
        print(
            f"| {method} | {mine:,.0f} | {plain:,.0f} | {mine / plain:.2f} "
            f"| {half:,.0f} | {mine / half:.2f} |",
            flush=True,
        )
    peak = peak_gflops()
    # MiniLM's projections; of the last layer, where [CLS] is pooled, keys and values alone are
    # computed for every token.
    weights = (5 + 1 / 6) * 12 * 384**2
    useful = 6 * weights * runs["full"]["tokens_per_second"] / 1e9
    print(f"\npeak float32 matrix product: {peak:.0f} GFLOP/s")
    print(f"full: {useful:.0f} GFLOP/s in products on real tokens, {useful / peak:.0%} of peak")
    for method, found in runs.items():
        print(
            f"{method}: compilation of all lengths {found['compile_seconds']:.1f} s, "
            f"peak memory {found['peak_memory_bytes'] / 2**20:,.0f} MiB"
        )


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
        found = [peer(arguments, method, s, epochs=epochs, dtype="float32") for s in seeds]
        line(method, "Trainer", [result["accuracy"] for result in found])


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
    parser.add_argument("what", choices=("speed", "accuracy", "start", "peer"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", choices=tuple(RATES))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.steps is None:
        arguments.steps = 0 if arguments.what == "peer" else 100
    {"speed": speed, "accuracy": accuracy, "start": start, "peer": train_peer}[arguments.what](
        arguments
    )


if __name__ == "__main__":
    main()
