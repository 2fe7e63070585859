"""What to set for a configuration that does not fit, found by trying."""

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from ftjax.config.load import changed
from ftjax.errors import UserError
from ftjax.forecast.chips import CHIPS, chips_of
from ftjax.forecast.forecast import forecast
from ftjax.forecast.kept import ORDER, device_tokens, kept_bytes
from ftjax.forecast.lowering import abstract_recipe


def mended(
    config: ConfigDict,
    topology: str,
    slices: int,
    say: Callable[[str], None],
    quick: bool = False,
) -> tuple[str, dict[str, Any]] | None:
    """The first change that makes a configuration fit, of those in order of what they cost.

    Returns:
        Overrides for the command line, and the forecast under them; None where nothing fits.
    """
    changes: dict[str, Any] = {}
    for more in _mends(config, topology, slices):
        attempt = changes | more
        candidate = changed(config.copy_and_resolve_references(), list(attempt.items()))
        words = " ".join(f"--config.{key}={value}" for key, value in attempt.items())
        say(f"trying {words}")
        try:
            figures = forecast(candidate, topology, slices, quick)
        except UserError:  # the batch does not divide so, or the model has no such parts
            continue
        changes = attempt
        if figures["fits"]:
            return words, figures
    return None


def _mends(config: ConfigDict, topology: str, slices: int) -> Iterator[dict[str, Any]]:
    """From what costs least: spreading parameters, computing again, smaller microbatches.

    What is computed again is from least to all; policies that keep more than there is memory for
    are left out.
    """
    if config.mesh.fsdp != -1 and config.mesh.data != 1:
        yield {"mesh.data": slices, "mesh.fsdp": -1}
    yield from ({"model.remat": policy} for policy in cheaper(config, topology, slices))
    if config.model.parts == 1:
        yield {"model.parts": 4}
    parts = config.train.accumulation
    while parts * 2 <= min(config.train.batch_size, 64):
        parts *= 2
        yield {"train.accumulation": parts}


def cheaper(config: ConfigDict, topology: str, slices: int) -> list[str]:
    """Policies that keep less than the configuration's, and no more than a chip has memory for."""
    policy = config.model.remat
    after = ORDER.index(policy) + 1 if policy in ORDER else 0
    model = abstract_recipe(config, "tpu").tuned
    tokens = device_tokens(config, slices * chips_of(topology))
    memory = CHIPS[topology.partition(":")[0]].memory
    return [p for p in ORDER[after:] if p == "full" or kept_bytes(model, p, tokens) < memory]
