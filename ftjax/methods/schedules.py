"""Selections that differ by layer or change during training."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.methods.layers import layers_of
from ftjax.methods.method import FREEZE_REST, Method, head_rule
from ftjax.methods.selection import TOP, Selection
from ftjax.options import Positive, Seed
from ftjax.partition import Rules


def each_layer(base: Base, chosen: tuple[int, ...]) -> Rules:
    """Rules that train layers by number, each a group of its own, with moments of its own."""
    layers = layers_of(base)
    return tuple((rf"{layers[number]}/.*", f"layer_{number}") for number in chosen)


@dataclass(frozen=True)
class Layers(Selection):
    """What a schedule trains at a step.

    Attributes:
        chosen: numbers of layers.
        embeddings: whether everything below, and between, the layers trains too.
    """

    chosen: tuple[int, ...]
    embeddings: bool

    def rules(self, base: Base) -> Rules:
        rest = (r"(?!(.*/)?layers?_\d).*", "embeddings") if self.embeddings else FREEZE_REST
        rules = (*each_layer(base, self.chosen), head_rule(base, *TOP), rest)
        return rules if rest is FREEZE_REST else (*rules, FREEZE_REST)


class Scheduled(Selection):
    """A schedule over layers, which must be unrolled; it may train every parameter in time."""

    def cuts(self, layers: int) -> tuple[int, ...]:
        return tuple(range(1, layers))

    def rules(self, base: Base) -> Rules:
        return Layers(tuple(range(len(layers_of(base)))), True).rules(base)


@dataclass(frozen=True)
class GradualUnfreezing(Scheduled):
    """First the head, then one more layer from the top every n steps (ULMFiT, Howard 2018, §3.3).

    With the last layer come the pooler's neighbours below: the embeddings train n steps after the
    first layer. What trains already keeps its optimizer state; the learning rate follows one
    schedule. Trains all parameters in the end.

    Attributes:
        every: n.
    """

    every: Positive = 100

    def at_step(self, step: int, base: Base) -> Method:
        layers = len(layers_of(base))
        thawed = min(step // self.every, layers + 1)
        return Layers(tuple(range(max(layers - thawed, 0), layers)), thawed > layers)


@dataclass(frozen=True)
class Lisa(Scheduled):
    """Embeddings, head, and a few layers drawn anew every T steps (Pan et al. 2024, alg. 1).

    Layers that are not drawn have no optimizer state, and start with fresh moments when drawn
    again.

    Attributes:
        layers: how many at a time.
        every: T.
        seed: of the draws.
    """

    layers: Positive = 2
    every: Positive = 20
    seed: Seed = 0

    def at_step(self, step: int, base: Base) -> Method:
        count = len(layers_of(base))
        require(self.layers <= count, f"method.layers={self.layers}: the model has {count} layers")
        random = np.random.default_rng([self.seed, step // self.every])
        drawn = random.choice(count, self.layers, replace=False)
        return Layers(tuple(sorted(map(int, drawn))), True)


@dataclass(frozen=True)
class LayerwiseLrDecay(Selection):
    """Trains all, the lower a layer the slower (Howard and Ruder 2018; Sun et al. 2019, §5.4.3).

    Layer l of L, from 0, learns at rate · γ^(L − l), what is below them at rate · γ^(L + 1), and
    what is above at the rate itself.

    Attributes:
        decay: γ.
    """

    decay: Annotated[float, "(0, 1]"] = 0.9

    def rules(self, base: Base) -> Rules:
        layers_of(base)
        return ((r".*", "backbone"),)

    def rate_of(self, base: Base, path: str) -> float:
        layers = base.layers
        for number, layer in enumerate(layers):
            if path.startswith(f"{layer}/"):
                return self.decay ** (len(layers) - number)
        above = path.startswith(tuple(f"{name}/" for name in (*base.head, *TOP)))
        return 1.0 if above else self.decay ** (len(layers) + 1)
