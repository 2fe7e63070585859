"""Methods that add nothing: they choose which of the model's own parameters to train."""

from dataclasses import dataclass

from ftjax.errors import require
from ftjax.methods.base import FREEZE_REST, Method, head_rule
from ftjax.partition import Rules
from ftjax.paths import Base, Flat


class Selection(Method):
    """A method without parameters of its own is merged as it is."""

    def merge(self, params: Flat) -> Flat:
        return dict(params)


@dataclass(frozen=True)
class Full(Selection):
    """Trains every parameter: the reference that the others are measured against."""

    def rules(self, base: Base) -> Rules:
        return ((r".*", "backbone"),)


@dataclass(frozen=True)
class Head(Selection):
    """Trains the task head over a frozen backbone.

    Attributes:
        train_pooler: also train BERT's pooler, where the pooling uses it.
    """

    train_pooler: bool = True

    def rules(self, base: Base) -> Rules:
        return (head_rule(base, *(["pooler"] if self.train_pooler else [])), FREEZE_REST)


@dataclass(frozen=True)
class TopK(Selection):
    """Trains the last k layers, the final norm, the pooler and the head.

    Attributes:
        k: how many layers; negative for the first |k| instead.
    """

    k: int = 2

    def cuts(self, layers: int) -> tuple[int, ...]:
        require(0 < abs(self.k) <= layers, f"method.k={self.k}: the model has {layers} layers")
        return (layers - self.k,) if self.k > 0 else (-self.k,)

    def rules(self, base: Base) -> Rules:
        (cut,) = self.cuts(base.layers)
        chosen = range(cut, base.layers) if self.k > 0 else range(cut)
        names = "|".join(map(str, chosen))
        return (
            (rf"(.*/)?layer_({names})/.*", "backbone"),
            head_rule(base, "pooler", "final_norm"),
            FREEZE_REST,
        )


@dataclass(frozen=True)
class BitFit(Selection):
    """Trains every bias and the head (Ben Zaken et al. 2022).

    BERT-base: 102,912 biases, without the head. It selects the biases a model has; libraries
    that add new biases do something else.
    """

    def rules(self, base: Base) -> Rules:
        return (head_rule(base), (r".*/bias", "bias"), FREEZE_REST)
