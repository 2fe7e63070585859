"""Writes experiments/TASKS.md: each task on real data, beside the same training by Hugging Face.

    python scripts/tasks.py --data DATA [--only sst2,mrpc] [--seeds 3] [--peer-seeds 1] [--jobs 2]

DATA holds a folder of .jsonl files for each data set. A finished run is a line of the .jsonl file
beside the page, and is not run again: the same command goes on where it stopped, and the page is
written anew after each run, of all runs there are. What is trained on and validated by is a
sample, written to WORKDIR/data once: other --rows or --epochs need another --workdir and --output.
Needs the `test` extras.
"""

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftjax.comparison.pool import pool_of
from ftjax.comparison.statistics import interval

ROOT = Path(__file__).parents[1]
METHODS = ("full", "lora")
SPLITS = ("train", "validation", "test")
HEADER = "| data | metric | examples | method | ftjax | HF | difference | within | configuration |"


@dataclass(frozen=True)
class Case:
    """A row of the table for each of its metrics and each method.

    Attributes:
        data: the data set's folder.
        page: the configuration's file, in configs/.
        metrics: of the test split; key in result.json → name in the table.
        overrides: of the configuration.
        name: of work folders.
    """

    data: str
    page: str
    metrics: Mapping[str, str]
    overrides: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "_".join((self.data, *(value.strip("()',") for value in self.overrides.values())))


ACCURACY = {"accuracy": "accuracy"}
MEAN_F1 = {"f1": "F1, mean of both classes"}
SNIPS = {"exact": "rows all right", "intent_accuracy": "accuracy of intents", "f1": "F1 of slots"}
CASES = (
    Case("sst2", "sst2", ACCURACY),
    Case("mrpc", "mrpc", MEAN_F1),
    Case("wnut17", "wnut17", {"f1": "F1 of entities"}),
    Case("snips", "snips", SNIPS),
    Case("semeval2010_t8", "semeval2010", {"f1_relations": "official F1"}),
    Case("cola", "cola", {"matthews": "Matthews"}),
    Case("stsb", "stsb", {"pearson": "Pearson"}),
    Case("trec", "trec", ACCURACY),
    Case("sms_spam", "sms_spam", MEAN_F1),
    Case("rte", "rte", ACCURACY),
    Case("clinc150_small", "clinc150", ACCURACY),
    Case("sms_spam", "sms_spam", MEAN_F1, {"task.class_weights": "balanced"}),
    Case("sms_spam", "sms_spam", MEAN_F1, {"data.prepare": "('oversample',)"}),
)


@dataclass(frozen=True)
class Run:
    """One training: by ftjax, or by its peer."""

    case: Case
    method: str
    seed: int
    peer: bool = False

    @property
    def group(self) -> str:
        """The name of runs that differ in their seeds alone."""
        return f"{self.case.name} {self.method} {'hf' if self.peer else 'ftjax'}"

    @property
    def name(self) -> str:
        return f"{self.group} {self.seed}"


@dataclass(frozen=True)
class Study:
    """Runs in one work folder, and the file that has a line for each that finished."""

    data: Path
    workdir: Path
    records: Path
    rows: int
    epochs: int

    def sampled(self, case: Case) -> Path:
        """The folder of a data set's sample, written where it is not there."""
        folder = self.workdir / "data" / case.data
        if not folder.exists():
            part = folder.with_suffix(".part")
            part.mkdir(parents=True, exist_ok=True)
            for split, rows in sample(self.data / case.data, self.rows).items():
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
                (part / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
            part.rename(folder)
        return folder

    def results(self) -> dict[str, dict[str, Any]]:
        """By the name of the run: its metrics of the test split."""
        if not self.records.exists():
            return {}
        lines = self.records.read_text(encoding="utf-8").splitlines()
        return {record["run"]: record for record in map(json.loads, lines)}

    def run(self, run: Run) -> bool:
        """Trains, and says whether it succeeded."""
        case = run.case
        place = self.workdir / run.name.replace(" ", "_")
        settings = {"data.path": self.sampled(case), "data.prepare": "()", "seed": run.seed}
        settings |= {"train.epochs": self.epochs} if self.epochs else {}
        settings |= case.overrides
        output = place / "result.json"
        if run.peer:
            output = place.with_suffix(".json")
            command = [str(ROOT / "scripts" / "tasks_peer.py"), "--output", str(output)]
        else:
            command = ["-m", "ftjax", "train", "--workdir", str(place)]
        command += ["--config", f"{ROOT / 'configs' / case.page}.py:{run.method}"]
        command += [f"--config.{key}={value}" for key, value in settings.items()]
        # Torch's threads that spin while they wait cost much where the cores have other work.
        waits = {"OMP_WAIT_POLICY": "PASSIVE"} if run.peer else {"JAX_PLATFORMS": "cpu"}
        environment = {**os.environ, **waits, "PYTHONPATH": str(ROOT)}
        with place.with_suffix(".log").open("a") as log:
            done = subprocess.run(
                [sys.executable, *command], stdout=log, stderr=log, env=environment, check=False
            )
        if done.returncode:
            return False
        test = json.loads(output.read_text(encoding="utf-8"))["metrics"]["test"]
        record = {"run": run.name, "test": {key: test[key] for key in case.metrics}}
        with self.records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        shutil.rmtree(place / "checkpoints", ignore_errors=True)  # of no use once it is finished
        return True


def sample(source: Path, count: int) -> dict[str, list[dict[str, Any]]]:
    """At most `count` training rows, a quarter as many to validate by, and all test rows.

    Training rows that come again, or are held out, are dropped; those kept have every label.
    Without a test split the validation split is it; without another to validate by, a tenth of
    training is.
    """
    rows = {}
    for split in SPLITS:
        if (file := source / f"{split}.jsonl").exists():
            lines = file.read_text(encoding="utf-8").splitlines()
            rows[split] = [json.loads(line) for line in lines]
    if "test" not in rows:
        rows["test"] = rows.pop("validation")
    seen = {key(row) for split in rows if split != "train" for row in rows[split]}
    train = []
    for row in rows["train"]:
        if key(row) not in seen:
            seen.add(key(row))
            train.append(row)
    shuffled = random.Random(0)
    shuffled.shuffle(train)
    if "validation" not in rows:
        tenth = len(train) // 10
        rows["validation"], train = train[:tenth], train[tenth:]
    shuffled.shuffle(rows["validation"])
    return {
        "train": with_all_labels(train, count),
        "validation": rows["validation"][: count // 4],
        "test": rows["test"],
    }


def with_all_labels(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first `count` rows, the last exchanged for one of each label that they lack."""
    found = {row.get("label") for row in rows[:count]}
    lacking = {
        row["label"]: row
        for row in rows[count:]
        if isinstance(row.get("label"), str) and row["label"] not in found
    }
    return rows[: count - len(lacking)] + list(lacking.values())


def key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What is the same in rows of the same text."""
    texts = [row["text"]] if "text" in row else row["tokens"]
    return tuple(" ".join(text.lower().split()) for text in (*texts, row.get("text_pair", "")))


def close(ours: list[float], theirs: list[float]) -> bool:
    """Whether the means differ by at most a point, or two standard errors of the difference.

    A side of one run is taken to vary as the other does.
    """
    spreads = [statistics.stdev(side) for side in (ours, theirs) if len(side) > 1] or [0.0]
    error = math.hypot(spreads[0] / math.sqrt(len(ours)), spreads[-1] / math.sqrt(len(theirs)))
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    return abs(difference) <= max(0.01, 2 * error)


def points(scores: list[float]) -> str:
    """The mean in points, of several with half of Student's 95% interval."""
    mean = f"{100 * statistics.fmean(scores):.1f}"
    if len(scores) == 1:
        return mean
    low, high = interval(scores)
    return f"{mean} ± {50 * (high - low):.1f}"


def table(study: Study, cases: list[Case]) -> Iterator[str]:
    """A line for each metric of each method that both have run."""
    yield HEADER
    yield "|---|---|---|---|---:|---:|---:|---|---|"
    results = study.results()
    for case in cases:
        for method in METHODS:
            sides = []
            for peer in (False, True):
                group = Run(case, method, 0, peer).group
                runs = (found for name, found in results.items() if name.rsplit(" ", 1)[0] == group)
                sides.append([found["test"] for found in runs])
            for metric in case.metrics if all(sides) else ():
                scores = [[found[metric] for found in side] for side in sides]
                yield line(study, case, method, metric, *scores)


def line(
    study: Study, case: Case, method: str, metric: str, ours: list[float], theirs: list[float]
) -> str:
    sizes = []
    for split in SPLITS:
        text = (study.sampled(case) / f"{split}.jsonl").read_text(encoding="utf-8")
        sizes.append(f"{text.count(chr(10)):,}")
    difference = 100 * (statistics.fmean(ours) - statistics.fmean(theirs))
    within = "yes" if close(ours, theirs) else "**no**"
    changed = "".join(f" `{key}={value}`" for key, value in case.overrides.items())
    cells = [case.data, case.metrics[metric], " / ".join(sizes), method]
    cells += [f"{points(ours)} ({len(ours)})", f"{points(theirs)} ({len(theirs)})"]
    cells += [f"{difference:+.1f}", within, f"`{case.page}.py:{method}`{changed}"]
    return f"| {' | '.join(cells)} |"


def document(study: Study, cases: list[Case], failed: list[str]) -> str:
    """The Markdown page."""
    text = f"""# Tasks on real data, beside Hugging Face

Written by `python scripts/tasks.py --data DATA`, from runs of `ftjax train` with
the configurations named (MiniLM, 22.6 million parameters) and of `scripts/tasks_peer.py`, which
trains the same by transformers, peft and torch: the same rows, epochs, batch size, learning rate,
schedule, dropout, clipping, head and pooling, both in float32; its encoding, losses and metrics
are its own.

At most {study.rows:,} training rows and {study.rows // 4:,} to validate by, drawn once (examples:
train / validation / test); training rows that come twice or are held out are dropped. Both sides
keep the epoch that validation chooses, by the metric named, and run it on the test split, for RTE
the published validation split, of which training has given one. Scores are in points: the mean
over seeds ± half of Student's 95% interval (number of seeds). *Within*: the means differ by at
most one point, or two standard errors of the difference, where one run is taken to vary as the
other side's do. Of some rows that were further apart by one run of Hugging Face's, more
were made. Every run is a line of [TASKS.jsonl](TASKS.jsonl). For speed see
[benchmark.md](benchmark.md).

"""
    lines = "\n".join(table(study, cases))
    return text + lines + "\n" + "".join(f"\nFailed: {name}\n" for name in failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "tasks")
    parser.add_argument("--output", type=Path, default=ROOT / "experiments" / "TASKS.md")
    parser.add_argument("--only", default="", help="data sets, as sst2,mrpc")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer-seeds", type=int, default=1, help="of Hugging Face's runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, on as many cores")
    parser.add_argument("--rows", type=int, default=4000, help="to train on, at most")
    parser.add_argument("--epochs", type=int, default=0, help="0: as the configuration says")
    arguments = parser.parse_args()
    records = arguments.output.with_suffix(".jsonl")
    folders = (arguments.data.resolve(), arguments.workdir.resolve())
    study = Study(*folders, records, arguments.rows, arguments.epochs)
    names = arguments.only.split(",") if arguments.only else [case.data for case in CASES]
    cases = [case for case in CASES if case.data in names]
    failed: list[str] = []

    def train(run: Run) -> None:
        if run.name in study.results():
            return
        print(run.name, flush=True)
        if not study.run(run):
            failed.append(run.name)
            print(f"{run.name} failed: see its .log in {study.workdir}", flush=True)

    for case in CASES:
        study.sampled(case)
    runs = [
        Run(case, method, seed, peer)
        for seed in range(max(arguments.seeds, arguments.peer_seeds))
        for peer in (False, True)
        if seed < (arguments.peer_seeds if peer else arguments.seeds)
        for case in cases
        for method in arguments.methods.split(",")
    ]
    with pool_of(arguments.jobs) as pool:
        for done in as_completed([pool.submit(train, run) for run in runs]):
            done.result()
            page = document(study, list(CASES), failed)
            arguments.output.write_text(page, encoding="utf-8")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
