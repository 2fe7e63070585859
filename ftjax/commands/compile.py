"""`ftjax compile`: what a run takes on TPUs or GPUs that are not there."""

import math
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftjax.changes import ALL
from ftjax.commands.command import Command, add_page, load_page
from ftjax.errors import UserError

NOTHING_FITS = ("", "nothing that was tried fits: more chips, or a method that trains less")


def add_arguments(parser: ArgumentParser) -> None:
    add_page(parser)
    parser.add_argument("--topology", required=True, help="such as v5e:8x8 or h100:8")
    beside = "pods of TPUs, or hosts of GPUs, beside each other (default 1)"
    parser.add_argument("--slices", "--hosts", type=int, default=1, help=beside)
    quick = "memory alone, sooner: compiled with less effort, which says nothing of time"
    parser.add_argument("--quick", action="store_true", help=quick)
    fastest = "search for the layout that is predicted to take the least time, from this page on"
    parser.add_argument("--fastest", action="store_true", help=fastest)
    minutes = "after which --fastest compiles nothing more (default 10)"
    parser.add_argument("--minutes", type=float, default=10.0, help=minutes)
    parser.add_argument("--page", type=Path, help="a page to write, of what --fastest found: .py")
    parser.add_argument("--price", type=float, help="of a chip-hour, in any currency, for the cost")
    parser.add_argument("--output", type=Path, help="a .json to write")


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no device of this machine is asked
    from ftjax.config import check
    from ftjax.files import write_json
    from ftjax.forecast.forecast import forecast
    from ftjax.forecast.mend import mended
    from ftjax.forecast.text import lines

    topology, slices, quick = arguments.topology, arguments.slices, arguments.quick
    if slices < 1:
        raise UserError(f"--slices {slices} must be positive")
    if arguments.price is not None and not 0 <= arguments.price < math.inf:
        raise UserError(f"--price {arguments.price} must not be negative, nor without end")
    if quick and arguments.price is not None:
        raise UserError("--price is of times, of which --quick says nothing: leave out one of them")
    if arguments.page and not arguments.fastest:
        raise UserError("--page is of what --fastest finds: add --fastest")
    if quick and arguments.fastest:
        raise UserError("--fastest is of times, of which --quick says nothing: leave out one")
    if not 0 < arguments.minutes < math.inf:
        raise UserError(f"--minutes {arguments.minutes} must be positive")
    config = check(load_page(arguments, overrides))
    if arguments.fastest:
        figures = _fastest(config, arguments)
    else:
        figures = forecast(config, topology, slices, quick)
    print("\n".join(lines(figures, arguments.price)), flush=True)
    if not figures["fits"]:
        mend = mended(config, topology, slices, print, quick)
        text = lines(mend[1], arguments.price) if mend else []
        print("\n".join(["", f"fits with {mend[0]}", *text] if mend else NOTHING_FITS))
        figures["mend"] = mend and {"overrides": mend[0], **mend[1]}
    if arguments.output:
        write_json(arguments.output, figures)
        print(f"forecast: {arguments.output}")


def _fastest(config: Any, arguments: Namespace) -> dict[str, Any]:
    """The forecast of the fastest layout found; its page is written if that is asked for."""
    from ftjax.config.load import changed
    from ftjax.config.page import page_of
    from ftjax.files import write_text
    from ftjax.forecast.fastest import fastest

    page, topology = arguments.page, arguments.topology
    if page is not None and page.suffix != ".py":
        raise UserError(f"--page {page}: a page of Python ends in .py")
    trial = fastest(config, topology, arguments.slices, minutes=arguments.minutes)
    print(f"\nfastest: {trial}", flush=True)
    if page is not None:
        found = changed(config.copy_and_resolve_references(), list(trial.changes.items()))
        write_text(page, page_of(found, page.name))
        print(f"page: {page}")
    return {**trial.figures, "changes": trial.changes}


HELP = "compile for TPUs or GPUs that are not there, and say what a step takes"
COMMAND = Command(HELP, add_arguments, run, ALL)
