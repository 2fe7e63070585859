"""Measures prompting on SST-2, TREC and SNIPS and writes the table experiments/PROMPTING.md.

python scripts/prompting.py --data DATA --workdir runs/prompting [--test 200] [--validation 60]

DATA has the folders sst2, trec and snips. Validation and test are samples, the same for every run;
a run that is finished is not run again.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

SHOTS = {"sst2": 4, "trec": 6, "snips": 7}
SPLITS = ("train", "validation", "test")


def sample(source: Path, folder: Path, sizes: dict[str, int]) -> None:
    """Writes a data set with smaller splits; tokens are joined to texts."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        file = source / f"{split}.jsonl"
        if not file.exists():  # then it is drawn out of the training split
            continue
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        texts = (row.get("text") or " ".join(row["tokens"]) for row in rows)
        rows = [{"text": t, "label": row["label"]} for t, row in zip(texts, rows, strict=True)]
        if split in sizes:
            rows = random.Random(0).sample(rows, sizes[split])
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / file.name).write_text("".join(lines), encoding="utf-8")


def variants(shots: int) -> dict[str, tuple[str, ...]]:
    """Row of the table → the configuration's argument and overrides."""
    few = f"--config.method.shots={shots}"
    return {
        "MiniLM, 0 shots": (":minilm",),
        "SmolLM2, 0 shots": ("",),
        "SmolLM2, few shots": ("", few),
        "SmolLM2, 0 shots, calibrated": ("", "--config.method.calibrate=True"),
        "SmolLM2, few shots, calibrated": ("", few, "--config.method.calibrate=True"),
    }


def run(name: str, variant: tuple[str, ...], data: Path, folder: Path, validation: int) -> dict:
    """The result of one run."""
    argument, *overrides = variant
    command = [sys.executable, "-m", "ftjax", "train", "--workdir", str(folder), *overrides]
    command += ["--config", f"configs/prompting_{name}.py{argument}"]
    command += [f"--config.data.path={data}", f"--config.data.splits.validation={validation}"]
    if not (folder / "result.json").exists():
        subprocess.run(command, check=True)
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, default=Path("runs/prompting"))
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--validation", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("experiments/PROMPTING.md"))
    options = parser.parse_args()
    sizes = {"test": options.test, "validation": options.validation}
    for name in SHOTS:
        sample(options.data / name, options.workdir / "data" / name, sizes)
    cells: dict[str, list[str]] = {}
    for number, row in enumerate(variants(0)):
        for name, shots in SHOTS.items():
            folder, data = options.workdir / name / str(number), options.workdir / "data" / name
            result = run(name, variants(shots)[row], data, folder, options.validation)
            scores = result["metrics"]["test"]
            cells.setdefault(row, []).append(f"{scores['accuracy']:.3f} / {scores['f1']:.3f}")
        options.output.write_text(report(cells, options.test, options.validation), encoding="utf-8")
    print(options.output)


def report(cells: dict[str, list[str]], test: int, validation: int) -> str:
    """The file, of what has been measured so far."""
    heads = [f"{name} (few: {shots})" for name, shots in SHOTS.items()]
    return f"""# Prompting without training

Accuracy / macro F1 on a sample of each test split; the template is chosen on a sample of the
validation split (of TREC's training split). {test} and {validation} rows, seed 0; an accuracy's 95%
interval is at most ±{1.96 * 0.5 / test**0.5:.2f}. MiniLM scores by similarity to the labels' words,
SmolLM2-135M-Instruct (4 bits, read to float32) by their likelihood. Demonstrations are balanced;
calibration is by inputs without content. Written by:

```bash
python scripts/prompting.py --data DATA --test {test} --validation {validation}
```

| | {" | ".join(heads)} |
|---|{"---|" * len(heads)}
""" + "".join(f"| {row} | {' | '.join(found)} |\n" for row, found in cells.items())


if __name__ == "__main__":
    main()
