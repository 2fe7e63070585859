"""`ftjax compile`: what a run takes on TPUs that are not there."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ftjax.commands.command import ALL, Command
from ftjax.errors import UserError

AHEAD = {  # what libtpu asks of a machine with TPUs is told it, lest it wait for them
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
NOTHING_FITS = ("", "nothing that was tried fits: more chips, or a method that trains less")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="FILE[:ARG], a file with get_config()")
    parser.add_argument("--topology", required=True, help="such as v5e:8x8")
    parser.add_argument("--slices", type=int, default=1, help="pods beside each other (default 1)")
    parser.add_argument(
        "--quick", action="store_true", help="with less effort: nearly the same figures, sooner"
    )
    parser.add_argument("--output", type=Path, help="a .json to write")


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    for key, value in AHEAD.items():
        os.environ.setdefault(key, value)
    from ftjax.config import check, load_config
    from ftjax.training.forecast import forecast, lines, mended
    from ftjax.workdir.records import write_json

    if arguments.slices < 1:
        raise UserError(f"--slices {arguments.slices} must be positive")
    if arguments.quick:
        import jax

        jax.config.update("jax_optimization_level", "O1")
    config = check(load_config(arguments.config, overrides))
    found = forecast(config, arguments.topology, arguments.slices)
    print("\n".join(lines(found)), flush=True)
    if not found["fits"]:
        mend = mended(config, arguments.topology, arguments.slices, print)
        print("\n".join(["", f"fits with {mend[0]}", *lines(mend[1])] if mend else NOTHING_FITS))
        found["mend"] = mend and {"overrides": mend[0], **mend[1]}
    if arguments.output:
        write_json(arguments.output, found)
        print(f"forecast: {arguments.output}")


HELP = "compile for TPUs that are not there, and say what a step takes"
COMMAND = Command(HELP, add_arguments, run, ALL)
