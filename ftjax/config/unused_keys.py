"""Keys that were set and that nothing reads, because of what another key says."""

from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from ftjax.config.keys import flat_keys, known_options

ADAM, SGD, PGD = "optimizer.name=adamw", "optimizer.name=sgd", "pgd or freelb"
READ: dict[str, tuple[str, Callable[[ConfigDict], object]]] = {  # key → what of, and whether it is
    **dict.fromkeys(
        ("optimizer.beta1", "optimizer.beta2", "optimizer.epsilon"),
        (ADAM, lambda config: config.optimizer.name == "adamw"),
    ),
    "optimizer.momentum": (SGD, lambda config: config.optimizer.name == "sgd"),
    "regularization.epsilon": (
        "regularization.adversarial",
        lambda config: config.regularization.adversarial != "none",
    ),
    **dict.fromkeys(
        ("regularization.step_size", "regularization.steps"),
        (
            f"regularization.adversarial={PGD}",
            lambda config: config.regularization.adversarial in ("pgd", "freelb"),
        ),
    ),
    **dict.fromkeys(
        ("data.window", "data.buffer"),
        ("data.streaming", lambda config: config.data.streaming or config.data.mixture),
    ),
    "data.pack_length": ("data.batching=pack", lambda config: config.data.batching == "pack"),
    "data.buckets": ("data.batching=bucket or pack", lambda config: config.data.batching != "pad"),
    "data.splits.fold": ("data.splits.folds", lambda config: config.data.splits.folds),
    "train.swa_every": ("train.swa_start", lambda config: config.train.swa_start),
}


def unused_keys(config: ConfigDict) -> Iterator[str]:
    """A line on each key that is not at its default and is not read."""
    known, flat = known_options(config), flat_keys(config)
    for key, (owner, reads) in READ.items():
        if flat[key] != known[key].default and not reads(config):
            yield f"{key}={flat[key]!r} is not read: it is of {owner}"
