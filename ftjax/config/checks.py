"""What is checked of a configuration before anything is loaded."""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from ftjax.config.keys import flat_keys, known_options, read, set_key, unknown, use_optimizer
from ftjax.data.preparation import steps
from ftjax.errors import UserError, require
from ftjax.methods.rates import OPTIMIZERS
from ftjax.options import shown


def require_config(config: Any) -> None:
    """Raises UserError for what is no configuration, as the name of a page."""
    what = f"not {shown(config)}"
    require(isinstance(config, ConfigDict), f"config must be what ftjax.config(...) gives, {what}")


def check(config: ConfigDict) -> ConfigDict:
    """Checks what can be checked before anything is loaded.

    Raises:
        UserError: a key is missing or unknown, or a value out of range.
    """
    require_config(config)
    known = known_options(config)
    use_optimizer(config, config.optimizer.name)  # a page may have set the name alone
    flat = flat_keys(config)
    for key, value in flat.items():
        if key.startswith("model.new."):
            continue
        if key not in known:
            raise UserError(unknown(key, known))
        held = read(key, known[key], value)
        if held is not value:
            set_key(config, key, held)  # a page may have lists, or whole numbers, or "a,b"
    for key in known:
        if key not in flat:
            raise UserError(f"config lacks {key!r}")
    _check_together(config)
    prepared = steps(config.data.prepare)
    if config.data.streaming or config.data.mixture:
        check_stream(config, prepared)
    return config


def _check_together(config: ConfigDict) -> None:
    """Raises UserError for keys that do not go together."""
    train, splits, warmup = config.train, config.data.splits, config.optimizer.warmup
    if not train.epochs and not train.steps:
        raise UserError("train.epochs and train.steps are both 0: nothing to train")
    if config.model.from_step and not config.model.from_run:
        raise UserError(f"model.from_step={config.model.from_step} is a step of model.from_run")
    if train.average and train.swa_start:
        raise UserError("train.average and train.swa_start are two averages: one must be 0")
    if train.batch_size % train.accumulation:
        raise UserError(
            f"train.accumulation={train.accumulation} does not divide "
            f"train.batch_size={train.batch_size}"
        )
    if config.optimizer.learning_rate == "auto" and config.optimizer.name not in OPTIMIZERS:
        name = config.optimizer.name
        raise UserError(f"optimizer.learning_rate=auto is not for optimizer.name={name}: give one")
    if warmup >= 1 and warmup != int(warmup):
        raise UserError(f"optimizer.warmup={warmup} must be whole steps, or a share below 1")
    if train.steps and warmup > train.steps:
        raise UserError(f"optimizer.warmup={warmup:g} is more than train.steps={train.steps}")
    profiled = tuple(train.profile_steps)
    if profiled and (len(profiled) != 2 or profiled[0] > profiled[1]):
        raise UserError(f"train.profile_steps={profiled} must be two steps, first and last")
    for name, size in splits.items():
        if size >= 1 and size != int(size):
            raise UserError(f"data.splits.{name}={size} must be whole rows, or a share below 1")
    held_out = splits.validation + splits.test
    if max(splits.validation, splits.test) < 1 <= held_out + 1e-9:
        raise UserError(
            f"data.splits.validation + data.splits.test = {held_out:g} leaves no rows to train on"
        )


def check_stream(config: ConfigDict, prepared: Iterable[tuple[str, Any]]) -> None:
    """Raises UserError for what a stream of rows cannot be asked for.

    Args:
        config: the configuration.
        prepared: names and steps of `data.prepare`.
    """
    window, rows = config.data.window, config.train.batch_size
    if window < rows or window % rows:
        raise UserError(f"data.window={window} must be a multiple of train.batch_size={rows}")
    if not config.train.steps:
        raise UserError("train.steps must be positive: a stream of rows has no epochs")
    if config.data.group:
        raise UserError(f"data.group={config.data.group!r}: no splits are drawn from a stream")
    for name, step in prepared:
        if not step.by_row:
            raise UserError(
                f"data.prepare: {name} looks at all rows, and those of a stream are not there at "
                "once; prepare the files before, and leave it out"
            )
