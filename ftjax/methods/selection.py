"""Methods that add nothing: they choose which of the model's own parameters to train."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ftjax.base_model import Base
from ftjax.errors import UserError, require
from ftjax.methods.layers import layers_of
from ftjax.methods.method import FREEZE_REST, Method, head_rule
from ftjax.options import Regex
from ftjax.partition import Rules
from ftjax.paths import Flat, expand


class Selection(Method):
    """A method without parameters of its own is merged as it is."""

    def merge(self, base: Base, params: Flat) -> Flat:
        return dict(params)


def layer_rule(layers: Iterable[str], group: str = "backbone") -> tuple[str, str]:
    """The rule that trains whole layers."""
    return (rf"({'|'.join(map(re.escape, layers))})/.*", group)


TOP = ("pooler", "final_norm", "decoder/final_norm")  # between the last layer and the head


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
        more = ("pooler",) if self.train_pooler else ()
        return (head_rule(base, *base.head, *more), FREEZE_REST)


@dataclass(frozen=True)
class TopK(Selection):
    """Trains the last k layers, the final norm, the pooler and the head.

    An encoder-decoder's layers are counted from the encoder's first to the decoder's last.

    Attributes:
        k: how many layers; negative for the first |k| instead.
    """

    k: int = 2

    def cuts(self, layers: int) -> tuple[int, ...]:
        require(0 < abs(self.k) <= layers, f"method.k={self.k}: the model has {layers} layers")
        return (layers - self.k,) if self.k > 0 else (-self.k,)

    def rules(self, base: Base) -> Rules:
        layers = layers_of(base)
        (cut,) = self.cuts(len(layers))
        chosen = layers[cut:] if self.k > 0 else layers[:cut]
        return (layer_rule(chosen), head_rule(base, *TOP), FREEZE_REST)


@dataclass(frozen=True)
class BitFit(Selection):
    """Trains every bias and the head (Ben Zaken et al. 2022).

    BERT-base: 102,912 biases, without the head. It selects the biases a model has; libraries
    that add new biases do something else. T5 and Llama have none.
    """

    def rules(self, base: Base) -> Rules:
        biases = any(path.endswith("/bias") for path in base.shapes)
        require(biases, "bitfit trains biases, and this model has none")
        return (head_rule(base), (r".*/bias", "bias"), FREEZE_REST)


@dataclass(frozen=True)
class LayerNorm(Selection):
    """Trains the scales and biases of norms, and the head (Zhao et al. 2023).

    BERT-base: 38,400, without the head. Equal to `peft`'s LNTuningConfig over the same norms.

    Attributes:
        targets: which norms, by names or a pattern of names; empty for all.
    """

    targets: str | tuple[str, ...] = ()

    def rules(self, base: Base) -> Rules:
        norms = base.norms()
        chosen = base.select(self.targets, norms, "norm") if self.targets else norms
        paths = "|".join(re.escape(name) for path in chosen for name in expand(path))
        return (head_rule(base), (rf"({paths})/(scale|bias)", "norm"), FREEZE_REST)


@dataclass(frozen=True)
class Regex(Selection):
    """Trains what the user's own rules select.

    Attributes:
        patterns: (pattern, group) pairs over unrolled paths, as "encoder/layer_3/ffn/up/kernel",
            matched in full; first match wins, group "frozen" freezes, and what none matches is
            frozen. The default trains attention and the classifier.
    """

    patterns: tuple[tuple[Regex, str], ...] = (
        (r".*/attention/.*", "attention"),
        (r"classifier/.*", "head"),
    )

    def rules(self, base: Base) -> Rules:
        for rule in self.patterns:
            pair = isinstance(rule, list | tuple) and len(rule) == 2
            require(pair, f"method.patterns: {rule!r} is not a pair (pattern, group)")
            try:
                re.compile(rule[0])
            except re.error as error:
                raise UserError(
                    f"method.patterns: {rule[0]!r} is not a regular expression: {error}"
                ) from error
        return (*(tuple(rule) for rule in self.patterns), FREEZE_REST)
