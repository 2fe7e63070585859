"""What the configurations of all families say, and where a family's modules are stored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Self

import jax

from ftjax.models.heads import Head
from ftjax.models.layers import Dense, Dropout, Options
from ftjax.names import Part

Table = Mapping[str, str | Part]
QKV = ("attention/query", "attention/key", "attention/value")
# Projection → the kind in `Config.biases`, where that is not its own name.
KINDS = {
    **dict.fromkeys(("query", "key", "value", "position_query", "position_key"), "qkv"),
    **dict.fromkeys(("up", "gate", "down"), "ffn"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """An architecture, as far as all families have one.

    Attributes:
        num_hidden_layers: of the one stack, or of the encoder.
        gated: feed-forward is down(act(gate(x)) · up(x)), else down(act(up(x))).
        biases: which projections have one: "qkv", "output", "ffn", or others by name.
        dropout: of what sub-layers give.
        attention_dropout: of the weights.
        activation_dropout: between the projections of feed-forward.
        residual_range: of initial kernels whose outputs are added up; None for
            `initializer_range`.
        tied: words are read off by their table.
        heads: by kind, as the family has them.
        modules: our module path → where it is stored, without the prefix. "{}" is the number of
            an unrolled layer; a size of a `Part` may be called as it is here.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    hidden_act: str
    gated: bool = False
    biases: tuple[str, ...] = ("qkv", "output", "ffn")
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    initializer_range: float = 0.02
    residual_range: float | None = None
    tied: bool = True
    heads: Mapping[str, Head] = field(default_factory=dict, hash=False)
    modules: Table = field(default_factory=dict, hash=False)
    options: Options = field(default_factory=Options)

    @property
    def depths(self) -> dict[str, tuple[int, ...]]:
        """First part of a layer's path → how far each of its numbers counts."""
        return dict.fromkeys(("encoder", "decoder"), (self.num_hidden_layers,))

    def dense(
        self,
        features: int,
        axes: tuple[str | None, str | None],
        name: str,
        cls: type[Dense] = Dense,
    ) -> Dense:
        """The projection of this name."""
        if name in self.options.whole:
            axes = tuple(None if axis == "embed" else axis for axis in axes)
        bias = KINDS.get(name, name) in self.biases
        return cls(features, axes, bias, self.options.dtype, self.stddev(name), name=name)

    def project_context(self, context: jax.Array) -> jax.Array:
        """What attention gives (batch, length, hidden) of its heads' context, before the residual.

        Args:
            context: (batch, length, heads, d).
        """
        flat = context.reshape(*context.shape[:-2], -1)
        out = self.dense(self.hidden_size, ("heads", "embed"), "output")(flat)
        return Dropout(self.dropout, name="dropout")(out)

    def stddev(self, name: str) -> float:
        """Of the initial kernel of a projection."""
        is_residual = name in ("output", "down") and self.residual_range is not None
        return self.residual_range if is_residual else self.initializer_range

    def segmented(self) -> Self:
        """With segments, which are of one layer each where nothing is said."""
        segments = self.options.segments or (1,) * self.num_hidden_layers
        return replace(self, options=replace(self.options, segments=segments))

    def unrolled_modules(self) -> dict[str, str | Part]:
        """`modules` with a row for each layer, and all sizes in numbers."""
        return {
            path.format(*numbers): self._numbered(part, numbers)
            for path, part in self.modules.items()
            for numbers in self._numbers(path)
        }

    def _numbers(self, path: str) -> Iterator[tuple[int, ...]]:
        depths = self.depths[path.split("/")[0]] if "{}" in path else ()
        return product(*map(range, depths))

    def _numbered(self, part: str | Part, numbers: tuple[int, ...]) -> str | Part:
        if isinstance(part, str):
            return part.format(*numbers)

        def number(size: int | str) -> int:
            return getattr(self, size) if isinstance(size, str) else size

        sizes, shape = (tuple(map(number, axes)) for axes in (part.sizes, part.shape))
        name, stack = part.name.format(*numbers), number(part.stack)
        return replace(part, name=name, sizes=sizes, shape=shape, stack=stack)


def inside(ours: str, theirs: str, table: Table) -> dict[str, str | Part]:
    """A table of what is inside a module: with our path of it and their name in front."""

    def named(part: str | Part) -> str | Part:
        if isinstance(part, str):
            return f"{theirs}.{part}"
        return replace(part, name=f"{theirs}.{part.name}")

    return {f"{ours}/{path}": named(part) for path, part in table.items()}


def fused(theirs: str, sizes: Mapping[str, int | str], transposed: bool = False) -> dict[str, Part]:
    """A table of projections that are stored as one, of their output features, in order."""
    features = tuple(sizes.values())
    return {path: Part(theirs, features, i, transposed) for i, path in enumerate(sizes)}
