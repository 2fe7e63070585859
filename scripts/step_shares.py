"""What a training step's time on a CPU goes to, by kinds of operations: from a trace of a run.

    ftjax train --config PAGE --workdir DIR --config.train.profile_steps=20,40 \
        --config.train.dump_programs=True --config.data.buckets=1
    python scripts/step_shares.py --workdir DIR

Operations that run beside each other count in full: shares are of their sum, not of the clock.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

from jax.profiler import ProfileData

KINDS = {  # kind → pattern of the name that JAX gave what the operation is of; the first that fits
    "attention's products": r"/core/.*dot_general",
    "projections": r"dot_general",
    "dropout": r"dropout|threefry|random_bits",
    "softmax and mask": r"/core/",
    "normalization": r"norm/",
    "activation": r"/(erf|tanh|logistic|act)|ffn/(mul|add|integer_pow|div)",
    "embeddings": r"embeddings/|/word/",
    "rounding and laying out": r"\.product/|convert_element_type|transpose|reshape|copy",
    "optimizer and norm of gradients": r"^jit\(step\)/(?!.*Model)",
}
NAMED = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name=\"([^\"]*)\"")
COPY = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = \S+ copy\(")


def kinds(text: str) -> dict[str, str]:
    """Instruction → kind, from a program's optimized text."""
    kind = {}
    for line in text.splitlines():
        if match := NAMED.match(line):
            name = match[2].removeprefix("jit(step)/while/body/")
            fitting = (kind for kind, pattern in KINDS.items() if re.search(pattern, name))
            product = "ynn_fusion" not in match[1] and "dot" not in match[1]
            chosen = next(fitting, "other")
            if chosen in ("attention's products", "projections") and product:
                chosen = "rounding and laying out"
            kind[match[1]] = chosen
        elif match := COPY.match(line):
            kind[match[1]] = "copies"
    return kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    workdir = parser.parse_args().workdir
    (program,) = (workdir / "programs").glob("*.hlo.txt")
    kind_of, seconds = kinds(program.read_text()), Counter()
    for trace in (workdir / "profile").rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(trace)).planes:
            for line in plane.lines:
                for event in line.events:
                    stats = dict(event.stats)
                    if str(stats.get("hlo_module", "")).startswith("jit_step"):
                        kind = kind_of.get(stats.get("hlo_op", ""), "other")
                        seconds[kind] += event.duration_ns / 1e9
    total = sum(seconds.values())
    print("| | share |\n|---|---:|")
    for kind, spent in seconds.most_common():
        print(f"| {kind} | {spent / total:.1%} |")


if __name__ == "__main__":
    main()
