"""The part of `ftjax train` that makes the model of `model.from_run`."""

from collections.abc import Sequence

from ftjax.commands import entry as cli
from ftjax.config import check, load_config
from ftjax.runs.start import begin


def main(arguments: Sequence[str]) -> int:
    """Runs it."""
    options, rest = cli.parser().parse_known_args(arguments)
    cli.start_jax()
    begin(check(load_config(options.config, rest)), options.workdir)
    return 0
