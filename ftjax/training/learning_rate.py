"""The learning rate of a run."""

import math
from collections.abc import Iterator

from ml_collections import ConfigDict

from ftjax.methods.rates import FAR, OPTIMIZERS, TASKS, rates_of
from ftjax.tuned import Tuned


def peak_rate(config: ConfigDict, tuned: Tuned) -> float:
    """`optimizer.learning_rate`, or the one that suits the method and the size of the model."""
    rate = config.optimizer.learning_rate
    return usual_rate(config, tuned) if rate == "auto" else rate


def usual_rate(config: ConfigDict, tuned: Tuned) -> float | None:
    """The rate of `ftjax.methods.rates`; None for an optimizer that has none there."""
    factor = OPTIMIZERS.get(config.optimizer.name)
    if factor is None:
        return None
    factor *= TASKS.get(config.task.name, 1.0)
    _, rates = rates_of(config.method, bool(config.model.new))
    return float(f"{factor * rates.at(model_size(tuned)):.2g}")


def model_size(tuned: Tuned) -> int:
    """Parameters of the model without what the method adds."""
    return sum(math.prod(leaf.shape) for leaf in tuned.base.shapes.values())


def rate_notes(config: ConfigDict, tuned: Tuned) -> Iterator[str]:
    """What is said of a run's learning rate: which auto is, or that one given is far from it."""
    usual, rate = usual_rate(config, tuned), config.optimizer.learning_rate
    name, rates = rates_of(config.method, bool(config.model.new))
    size = model_size(tuned)
    if rate == "auto":
        yield (
            f"optimizer.learning_rate=auto: {usual:g}, for {name} and "
            f"{size:,} parameters ({rates.source_at(size)}; ftjax list rates)"
        )
    elif usual and not usual / FAR <= rate <= usual * FAR:
        ratio = max(rate, usual) / min(rate, usual)
        ratio = f"{ratio:,.0f}" if ratio < 1e9 else f"{ratio:.1e}"
        times = f"{ratio} times" if rate > usual else f"1/{ratio} of"
        yield (
            f"warning: optimizer.learning_rate={rate:g} is {times} the {usual:g} that suits "
            f"{name} on {size:,} parameters (ftjax list rates); auto takes that"
        )
