"""Writes experiments/TPU_AOT.md and TPU_SCALING.md: what methods take on pods, with no TPU there.

    python scripts/tpu_aot.py --workdir runs/tpu_aot

Each case is one `ftjax compile`, whose forecast is kept in the work folder; a case that is there
is not compiled again. Peers' figures were measured by their own step functions in the same way;
the cases they have are compiled by another version of JAX too, where its forecasts are there:

    python3.12 scripts/tpu_aot.py --workdir runs/tpu_aot_new --peers
    python scripts/tpu_aot.py --workdir runs/tpu_aot --beside runs/tpu_aot_new
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "experiments" / "TPU_AOT.md"
SCALING = ROOT / "experiments" / "TPU_SCALING.md"
GIB = 2**30
TIMES = "# Predicted step times"
RANK = ("method.rank=16", "method.alpha=16.0")
METHODS = {  # name in the table → method, overrides
    "full": ("full", ()),
    "full, bfloat16 weights": ("full", ("model.trainable_dtype=bfloat16",)),
    "lora q, v": ("lora", RANK),
    "lora all-linear": ("lora", (*RANK, "method.targets=all-linear")),
    "qlora all-linear": ("qlora", ("method.over.rank=16", "method.over.alpha=16.0")),
    "houlsby": ("houlsby", ()),
    "prompt_tuning": ("prompt_tuning", ()),
    "prefix_tuning": ("prefix_tuning", ()),
}
WHOLE = ("lora all-linear", "qlora all-linear", "houlsby")  # which change feed-forward blocks


@dataclass(frozen=True)
class Place:
    """A model on a topology.

    Attributes:
        batch, length: of a step, over all chips.
        slices: over which the data axis goes.
        methods: keys of `METHODS`.
        overrides: of the configuration, for all of its methods.
    """

    model: str
    topology: str
    batch: int
    length: int
    methods: tuple[str, ...] = tuple(METHODS)
    task: str = "causal_lm"
    slices: int = 1
    overrides: tuple[str, ...] = ()


QUANTIZED = ("lora all-linear", "qlora all-linear")
LONG = ("mesh.fsdp=1", "mesh.sequence=16")
MIXTURE = ("mesh.fsdp=2", "mesh.expert=8", "model.parts=1")
PLACES = (
    Place("llama-3.1-8b", "v5e:8x8", 64, 4096),
    Place("llama-3.1-8b", "v5p:2x2x4", 16, 4096),
    Place("llama-3.1-70b", "v5p:4x4x4", 128, 4096),
    Place("llama-3.1-405b", "v5p:8x8x8", 512, 4096, ("lora q, v",)),
    Place("qwen3-0.6b", "v5e:2x2", 16, 2048),
    Place("bert-large", "v5e:2x2", 64, 512, task="classification"),
    Place("t5-11b", "v5e:4x8", 64, 512, task="classification"),
    Place("llama-3.1-8b", "v5e:1x1", 1, 4096, QUANTIZED),
    Place("llama-3.1-70b", "v5e:4x4", 16, 4096, QUANTIZED),
    Place("llama-3.1-8b", "v5p:2x2x4", 1, 131072, ("lora q, v",), overrides=LONG),
    Place("mixtral-8x7b", "v5p:2x2x4", 16, 4096, ("lora q, v",), overrides=MIXTURE),
)
# Sum of arguments, outputs less aliases, and temporaries in GiB; compile seconds; dense TFLOP;
# all-gather and all-reduce in GB; all a chip and a step.
PEERS = {
    ("llama-3.1-8b", "v5e:8x8", "lora q, v"): {
        "MaxText 0.2.5": (3.53, 43, 165, 27.9, 1.09),
        "Tunix 0.1.7": (6.65, 237, None, None, None),
    },
    ("llama-3.1-8b", "v5e:8x8", "lora all-linear"): {"MaxText 0.2.5": (3.80, 64, 166, 27.9, 1.16)},
    ("llama-3.1-8b", "v5e:8x8", "full, bfloat16 weights"): {
        "MaxText 0.2.5": (4.71, 78, 226, 27.9, 16.1),
        "Tunix 0.1.7": (8.16, 306, None, None, None),
    },
    ("llama-3.1-8b", "v5e:8x8", "full"): {"MaxText 0.2.5": (5.60, 70, 226, 27.9, 16.1)},
    ("llama-3.1-70b", "v5p:4x4x4", "lora q, v"): {
        "MaxText 0.2.5": (18.7, 45, 3093, 276, 0.07),
        "Tunix 0.1.7": (36, None, None, None, None),
    },
    ("qwen3-0.6b", "v5e:2x2", "lora q, v"): {
        "MaxText 0.2.5": (3.73, 38, 25.5, 1.0, 0.005),
        "Tunix 0.1.7": (9.6, None, None, None, None),
    },
    ("mixtral-8x7b", "v5p:2x2x4", "lora q, v"): {"MaxText 0.2.5": (16.46, 133, 46.4, 28.2, 0.014)},
}
NOTES = {  # model, topology, length → what is to be said below its table
    ("mixtral-8x7b", "v5p:2x2x4", 4096): "TFLOP, and the bound, are without the experts' kernels,"
    " whose rows are not known ahead: nine a layer in both, 277 TFLOP a chip where all experts are"
    " chosen alike. By hand, two choices of 4,096 tokens, there and back, three times, in 32 layers"
    " are 12.885 GB. MaxText (fsdp 2, expert 8, too; its figures counted as ours) sends as much by"
    " ragged-all-to-all, and what it returns takes its weights' memory anew.",
    ("llama-3.1-8b", "v5p:2x2x4", 131072): "By hand: queries and contexts of 8,192 tokens and 32"
    " heads of 128 features, keys and values of 16, in bfloat16, are 201,326,592 bytes a layer;"
    " forward, computed again, and backward, 19,327,352,832 of 32 layers.",
}
LESS = {("bert-large", "prompt_tuning"): 20}  # of the model's positions, that the method takes
WEAK = {  # chips: rows are as many
    "v5e": ("v5e:4x4", "v5e:8x8", "v5e:16x16", "v5e:16x16 x 2"),
    "v5p": ("v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8", "v5p:8x8x8"),
}
HEADER = ("", "GiB a chip", "peak", "TFLOP", "needed", "all-gather GB", "all-reduce GB")
HEADER = (*HEADER, "reduce-scatter GB", "bound by", "MFU at most", "compiled in")


def chips(topology: str) -> int:
    count = 1
    for size in topology.partition(":")[2].split("x"):
        count *= int(size)
    return count


def compiled(workdir: Path, place: Place, name: str) -> dict[str, Any]:
    """The forecast of a case, from the work folder or made now."""
    method, overrides = METHODS[name]
    slug = f"{place.model} {place.topology} {place.batch}x{place.length} {name}"
    file = workdir / (re.sub("[ :,]+", "_", slug) + ".json")
    if not file.exists():
        settings = {
            "model.path": place.model,
            "train.batch_size": place.batch,
            "data.max_length": place.length - LESS.get((place.model, name), 0),
            "mesh.data": place.slices,
            "model.parts": 4 if place.task == "causal_lm" and name not in WHOLE else 1,
        }
        changes = [f"{key}={value}" for key, value in settings.items()]
        command = [sys.executable, "-m", "ftjax", "compile", "--topology", place.topology]
        command += ["--slices", str(place.slices)]
        command += ["--config", f"{ROOT / 'configs' / 'ahead.py'}:{method}/{place.task}"]
        command += [f"--config.{c}" for c in (*changes, *overrides, *place.overrides)]
        print(slug, flush=True)
        done = subprocess.run([*command, "--output", str(file)], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            file.write_text(json.dumps({"refused": reason.removeprefix("error: ")}))
    return json.loads(file.read_text())


def row(name: str, found: dict[str, Any]) -> str:
    if "refused" in found or "memory" not in found:
        return f"| {name} | {found.get('refused', found.get('reason'))} |" + " |" * 9
    flops, sent = found["flops"], found["collectives"]["bytes"]
    least, times = found["least_flops"], found["seconds"]
    cells = [
        name + ("" if found["fits"] else " (does not fit)"),
        f"{found['memory']['sum'] / GIB:.2f}",
        f"{found['memory']['peak'] / GIB:.2f}",
        f"{flops['dense'] / 1e12:.1f} + {flops['kernels'] / 1e12:.1f}",
        f"{least['dense'] / 1e12:.1f} + {least['attention'] / 1e12:.1f}",
        *(f"{sent.get(k, 0) / 1e9:.3f}" for k in ("all-gather", "all-reduce", "reduce-scatter")),
        max(times, key=times.get),
        f"{found['mfu_bound']:.0%}",
        f"{found['compile_seconds']:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def peer_row(name: str, figures: tuple) -> str:
    memory, took, flops, gather, reduce = ("–" if x is None else f"{x:g}" for x in figures)
    cells = (f"*{name}*", memory, "–", flops, "–", gather, reduce, "–", "–", "–", f"{took} s")
    return f"| {' | '.join(cells)} |"


def version_of(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found["versions"].items())


def section(workdir: Path, beside: Path | None, place: Place) -> Iterator[str]:
    """The table of a model on a topology."""
    count = chips(place.topology)
    yield f"## {place.model} on {place.topology} ({count} chips)"
    yield ""
    words = f"with {', '.join(place.overrides)}" if place.overrides else "all parameters over fsdp"
    yield f"Batch {place.batch} of {place.length} tokens, {words}."
    yield ""
    yield f"| {' | '.join(HEADER)} |"
    yield "|---|" + "---:|" * 7 + "---|---:|---:|"
    for name in place.methods:
        less = LESS.get((place.model, name))
        words = f"{name} ({place.length - less} tokens)" if less else name
        yield row(words, compiled(workdir, place, name))
        peers = PEERS.get((place.model, place.topology, name), {})
        if peers and beside:
            other = compiled(beside, place, name)
            yield row(f"{name}, by {version_of(other)}", other)
        for peer, figures in peers.items():
            yield peer_row(peer, figures)
    yield ""
    yield from exchanges(workdir, place)
    if note := NOTES.get((place.model, place.topology, place.length)):
        yield from (note, "")


def exchanges(workdir: Path, place: Place) -> Iterator[str]:
    """What is sent from each chip to each, where the table's columns do not have it."""
    for name in place.methods:
        sent = compiled(workdir, place, name).get("collectives", {"bytes": {}})["bytes"]
        for kind in ("all-to-all", "ragged-all-to-all"):
            if place.overrides and sent.get(kind, 0) > 1e9:
                yield f"{name}: {kind} {sent[kind] / 1e9:.3f} GB a chip and step."
                yield ""


def weak_scaling(workdir: Path) -> Iterator[str]:
    """Bytes a chip where rows grow with chips, as a table and a plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield "# As TPU pods grow, compiled ahead of time"
    yield ""
    yield "Weak scaling: llama-3.1-8b with lora on q and v, one row of 4,096 tokens a chip, all"
    yield "parameters over fsdp; between slices, which have at most 256 chips of v5e, over data."
    yield "Columns are those of [TPU_AOT.md](TPU_AOT.md), written by the same command. Kernels"
    yield "are cut along 4,096 features: over 512 chips eight are left, which chips pad to sixteen."
    yield ""
    yield "| chip | topology | chips | GiB a chip | GB in a slice | GB between slices | TFLOP |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    figure, axes = plt.subplots(figsize=(6, 3.6))
    most = 0.0
    for kind, topologies in WEAK.items():
        points: list[tuple[int, float]] = []
        for topology in topologies:
            shape, _, slices = topology.partition(" x ")
            slices = int(slices or 1)
            count = slices * chips(shape)
            place = Place("llama-3.1-8b", shape, count, 4096, slices=slices)
            found = compiled(workdir, place, "lora q, v")
            memory = found["memory"]["sum"] / GIB
            sent = sum(found["collectives"]["bytes"].values()) / 1e9
            between = found["collectives"]["between_slices"] / 1e9
            points.append((count, memory))
            work = found["flops"]["dense"] / 1e12
            cells = kind, topology, count, f"{memory:.2f}", f"{sent:.1f}", f"{between:.3f}"
            yield f"| {' | '.join(map(str, cells))} | {work:.1f} |"
        counts, memories = zip(*points, strict=True)
        most = max(most, *memories)
        axes.plot(counts, memories, marker="o", label=kind)
    axes.set_xscale("log")
    axes.set_xticks(counts, counts)
    axes.minorticks_off()
    axes.set(xlabel="chips", ylabel="GiB a chip", ylim=(0, 1.1 * most))
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(SCALING.with_suffix(".png"), dpi=150)
    yield ""
    yield f"![memory a chip by chips]({SCALING.with_suffix('.png').name})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--beside", type=Path, help="a work folder of another version of JAX")
    parser.add_argument("--peers", action="store_true", help="only compile what peers have, too")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    if options.peers:
        for place in PLACES:
            for name in place.methods:
                if (place.model, place.topology, name) in PEERS:
                    compiled(options.workdir, place, name)
        return
    tables = [line for place in PLACES for line in section(options.workdir, options.beside, place)]
    lines = [
        "# On TPU pods, compiled ahead of time",
        "",
        "Written by `python scripts/tpu_aot.py --workdir DIR`: the step that `ftjax train` runs,",
        "as `ftjax compile` finds it (bfloat16, layers scanned, all computed again in the",
        "backward pass, feed-forward blocks of decoders in four parts where the method leaves",
        f"them whole), by {version_of(compiled(options.workdir, PLACES[0], 'full'))}. GiB are",
        "arguments, outputs less aliases, and temporaries; peak is the compiler's own figure.",
        "TFLOP are of products and of attention kernels; what the method needs computes nothing",
        "twice, and no gradient of frozen weights. Collectives are counted by what they give a",
        "chip in a step. Bounds are by least times: the slowest of compute, memory, interconnect",
        "and the compiler's own estimate. No step was run. Peers: full remat, fsdp alone, LoRA of",
        "rank 16 on bfloat16 weights; MaxText 0.2.5 by JAX 0.12 and libtpu 0.0.52, Tunix 0.1.7 by",
        "JAX 0.10.2 and libtpu 0.0.42.1.",
        "",
        *tables,
    ]
    times = OUTPUT.read_text(encoding="utf-8").partition(TIMES)[1:]  # of scripts/tpu_times.py
    lines.append("".join(times))
    for file, text in ((OUTPUT, lines), (SCALING, weak_scaling(options.workdir))):
        file.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
