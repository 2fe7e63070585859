"""Measures the way of rows from files to batches and writes the table experiments/DATA.md.

python scripts/benchmark_data.py --workdir runs/data [--rows 1000000] [--gigabytes 2]

Texts are made of the words of movie reviews' lengths. Each part is a process of its own, so that
its peak memory is its own; the peer is Hugging Face's datasets with torch's DataLoader, in the same
run.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

BATCH, LENGTH = 32, 64
PARTS = ("read", "serve", "peer", "train", "stream")
TEXT = "the a film of and it is to in that was movie with for plot actor story good bad"


def write_rows(path: Path, rows: int = 0, size: int = 0, words: int = 15) -> Path:
    """A .jsonl of so many rows, or of so many bytes at least, of so many words a row on average."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    random, written, count = np.random.default_rng(0), 0, 0
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as out:
        while count < rows or written < size:
            lengths = np.clip(random.gamma(3, words / 3, 1000), 2, 4 * words).astype(int)
            chosen = random.choice(TEXT.split(), lengths.sum())
            labels = random.integers(0, 2, 1000)
            for part, label in zip(np.split(chosen, np.cumsum(lengths)[:-1]), labels, strict=True):
                line = json.dumps({"text": " ".join(part), "label": int(label)}) + "\n"
                written += out.write(line)
            count += 1000
    partial.rename(path)
    return path


def memory(whose: int = resource.RUSAGE_SELF) -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(whose).ru_maxrss / 1024


def settings(path: Path, **changes: object) -> dict:
    from ftjax.config import default_config

    return {**default_config().data.to_dict(), "path": str(path), **changes}


def examples(path: Path) -> tuple[object, dict[str, float]]:
    """Encoded rows, and seconds of reading and of tokenizing."""
    from ftjax.data.encode import encode
    from ftjax.data.sources import load
    from ftjax.formats.folder import locate
    from ftjax.tasks.classification import Classification

    task, start = Classification(), time.perf_counter()
    split = load(settings(path), task.schema)["train"]
    read = time.perf_counter()
    found = task.targets(encode(split, task, locate("minilm"), LENGTH), split, ("0", "1"))
    return found, {"read_seconds": read - start, "tokenize_seconds": time.perf_counter() - read}


def read(path: Path) -> dict:
    """Rows read, checked and tokenized."""
    return examples(path)[1]


def serve(path: Path) -> dict:
    """Batches of an epoch, bucketed and packed, as fast as they come."""
    from ftjax.data.loading import Loader
    from ftjax.data.packed_layout import packed_layout
    from ftjax.data.planning import bucket_layout

    found, _ = examples(path)
    result = {}
    for name, layout in (
        ("bucket", bucket_layout(found.lengths, 6)),
        ("pack", packed_layout(found.lengths, BATCH)),
    ):
        loader, start = Loader(found, BATCH, layout, 0), time.perf_counter()
        held, tokens = [], 0
        for batch in loader.iterate(loader.steps_per_epoch):
            held.append(batch.counts)
            tokens += int((batch.arrays["input_ids"] > 0).sum())
        seconds = time.perf_counter() - start
        share = sum(c.tokens for c in held) / sum(c.slots for c in held)
        result[name] = {
            "examples_per_second": len(found) / seconds,
            "tokens_per_second": tokens / seconds,
            "token_efficiency": share,
        }
    return result


def peer(path: Path) -> dict:
    """The same by datasets, a fast tokenizer and torch's DataLoader, grouped by length."""
    import datasets
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer, DataCollatorWithPadding

    from ftjax.formats.folder import locate

    tokenizer, start = AutoTokenizer.from_pretrained(locate("minilm")), time.perf_counter()
    rows = datasets.load_dataset("json", data_files=str(path), split="train")
    read = time.perf_counter()
    rows = rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=LENGTH),
        batched=True,
        remove_columns=["text"],
    )
    tokenized = time.perf_counter()
    order = np.random.default_rng(0).permutation(len(rows))
    loader = DataLoader(
        rows, BATCH, sampler=order.tolist(), collate_fn=DataCollatorWithPadding(tokenizer)
    )
    tokens = count = 0
    for number, batch in enumerate(loader):
        tokens, count = tokens + int(batch["attention_mask"].sum()), count + len(batch["input_ids"])
        if number == 3000:
            break
    seconds = time.perf_counter() - tokenized
    return {
        "read_seconds": read - start,
        "tokenize_seconds": tokenized - read,
        "examples_per_second": count / seconds,
        "tokens_per_second": tokens / seconds,
    }


def trained(path: Path, workdir: Path, *changes: str) -> dict:
    """The share of a run's time that it waits for data, and its peak memory.

    A process of its own, since the command begins with another in its place.
    """
    config = Path(__file__).parents[1] / "configs" / "sst2.py"
    overrides = [
        f"--config.data.path={path}",
        "--config.data.prepare=()",
        "--config.data.batching=bucket",
        f"--config.data.max_length={LENGTH}",
        "--config.data.splits.validation=0",
        "--config.train.steps=600",
        "--config.train.log_every=100",
        *changes,
    ]
    command = [sys.executable, "-m", "ftjax", "train", "--config", f"{config}:lora"]
    subprocess.run([*command, "--workdir", str(workdir), *overrides], check=True)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    waits = [row["input_wait"] for row in rows if "input_wait" in row]
    return {
        "input_wait": float(np.mean(waits)),
        "worst_input_wait": max(waits),
        "peak_memory_mib": memory(resource.RUSAGE_CHILDREN),
    }


def stream(path: Path) -> dict:
    """Windows of a file larger than memory may be, read and tokenized, without a model."""
    from ftjax.data.encode import encoder
    from ftjax.data.planning import bucket_layout
    from ftjax.data.sources import open_parts
    from ftjax.data.stream_source import Source
    from ftjax.data.streaming import StreamLoader, Windows
    from ftjax.formats.folder import locate
    from ftjax.tasks.classification import Classification

    task = Classification()
    opened = open_parts(settings(path, streaming=True))[0][1]["train"]
    encode = encoder(task, locate("minilm"), LENGTH)
    windows = Windows([Source(opened, task.schema)], 8192, encode)
    loader = StreamLoader(windows, BATCH, bucket_layout(np.arange(4, LENGTH + 1), 6), 0)
    rows = sum(1 for _ in path.open("rb"))
    start, steps = time.perf_counter(), rows // BATCH
    for _ in loader.iterate(steps):
        pass
    return {"rows": rows, "rows_per_second": rows / (time.perf_counter() - start)}


def run_part(part: str, arguments: argparse.Namespace) -> dict:
    """Runs a part in a process of its own, unless it was run."""
    from ftjax.commands.entry import surroundings  # of commands

    output = arguments.workdir / f"{part}.json"
    if not output.exists():
        command = [sys.executable, __file__, "--workdir", str(arguments.workdir), "--part", part]
        command += ["--rows", str(arguments.rows), "--gigabytes", str(arguments.gigabytes)]
        cache = arguments.workdir / "cache"  # where what `read` tokenizes is kept for the others
        if part == "read":
            shutil.rmtree(cache, ignore_errors=True)
        environment = {**surroundings(), **os.environ, "FTJAX_CACHE": str(cache)}
        subprocess.run(command, check=True, env=environment)
    return json.loads(output.read_text())


def measure(part: str, arguments: argparse.Namespace) -> None:
    """One part, in this process."""
    folder = arguments.workdir
    if part == "stream":
        size = int(arguments.gigabytes * 1e9)
        path = write_rows(folder / "stream" / "train.jsonl", size=size, words=200)
    else:
        path = write_rows(folder / "rows" / "train.jsonl", rows=arguments.rows)
    result = trained(path, folder / "run") if part == "train" else globals()[part](path)
    result.setdefault("peak_memory_mib", memory())
    (folder / f"{part}.json").write_text(json.dumps(result, indent=2) + "\n")


def table(found: dict[str, dict], arguments: argparse.Namespace) -> str:
    """The page."""
    rows, serve, peer = arguments.rows, found["serve"], found["peer"]
    each, streamed = found["read"], found["stream"]
    lines = [
        "# From files to batches",
        "",
        f"`python scripts/benchmark_data.py` on two CPU cores: {rows:,} made-up short texts, "
        f"batches of {BATCH}, MiniLM's tokenizer; each part a process of its own.",
        "",
        "| | ftjax | datasets and DataLoader |",
        "|---|---:|---:|",
        f"| reading and checking, rows/s | {rows / each['read_seconds']:,.0f} "
        f"| {rows / peer['read_seconds']:,.0f} |",
        f"| tokenizing, rows/s | {rows / each['tokenize_seconds']:,.0f} "
        f"| {rows / peer['tokenize_seconds']:,.0f} |",
        f"| serving buckets, examples/s | {serve['bucket']['examples_per_second']:,.0f} "
        f"| {peer['examples_per_second']:,.0f} |",
        f"| serving packed, examples/s | {serve['pack']['examples_per_second']:,.0f} | |",
        f"| real tokens in buckets | {serve['bucket']['token_efficiency']:.1%} | |",
        f"| real tokens packed | {serve['pack']['token_efficiency']:.1%} | |",
        f"| peak memory, MiB | {each['peak_memory_mib']:,.0f} | {peer['peak_memory_mib']:,.0f} |",
        "",
        f"LoRA on MiniLM over these rows waits for data {found['train']['input_wait']:.2%} of its "
        f"time (at worst {found['train']['worst_input_wait']:.2%} of a hundred steps).",
        "",
        f"A stream of {arguments.gigabytes:g} GB ({streamed['rows']:,} longer rows, cut to "
        f"{LENGTH} tokens) is read, checked, tokenized and served at "
        f"{streamed['rows_per_second']:,.0f} rows/s, with a peak of "
        f"{streamed['peak_memory_mib']:,.0f} MiB of memory.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--part", choices=PARTS, default="")
    parser.add_argument("--output", type=Path, default=Path("experiments/DATA.md"))
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    if arguments.part:
        measure(arguments.part, arguments)
        return
    found = {part: run_part(part, arguments) for part in PARTS}
    arguments.output.write_text(table(found, arguments), encoding="utf-8")
    print(f"table: {arguments.output}")


if __name__ == "__main__":
    main()
