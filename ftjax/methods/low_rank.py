"""Low-rank updates x A B: their ranks and factors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax

from ftjax.base_model import Base
from ftjax.errors import UserError, nearest, require
from ftjax.leaf import leaf
from ftjax.methods.additive import Additive, Shape
from ftjax.methods.initializers import Init
from ftjax.options import Positive, Regex
from ftjax.parallel.product import matmul
from ftjax.paths import expand


@dataclass(frozen=True)
class LowRank(Additive):
    """A method whose update of each module has a rank r and a factor α.

    Attributes:
        rank: r.
        alpha: α.
        rank_pattern: (pattern, r) of modules whose rank is another, by our names or Hugging
            Face's. As in `peft`, a pattern is a regular expression that must match the last
            dotted parts of a name, and the first that does decides.
        alpha_pattern: the same of α.
    """

    rank: Positive = 8
    alpha: float = 8.0
    rank_pattern: tuple[tuple[Regex, Positive], ...] = ()
    alpha_pattern: tuple[tuple[Regex, float], ...] = ()

    embeddings: ClassVar[bool] = False  # whether words' table and head may be targets

    @property
    def scale(self) -> float:
        """s, what the update is multiplied by."""
        return self.alpha / self.rank

    def selected(self, base: Base) -> Mapping[str, Shape]:
        """See `Additive.selected`.

        Raises:
            UserError: a pattern of ranks or alphas is of none.
        """
        selected = base.match(self.targets or base.default_targets, self.embeddings)
        for key in ("rank_pattern", "alpha_pattern"):
            for pattern, _ in getattr(self, key):
                known = any(base.value_at(module, ((pattern, True),)) for module in selected)
                names = {name for module in selected for name in base.names_of(expand(module)[0])}
                hint = nearest(pattern, {name.rpartition(".")[2] for name in names})
                require(known, f"method.{key}: {pattern!r} matches none of method.targets{hint}")
        return selected

    def check(self, module: str, shape: Shape) -> None:
        if self.rank > max(shape):
            raise UserError(f"method.rank={self.rank} exceeds both sides of {module!r} {shape}")

    def of(self, base: Base, module: str) -> Self:
        """The method with the module's own r and α.

        Raises:
            UserError: layers of a scanned segment have different ones.
        """
        if not (self.rank_pattern or self.alpha_pattern):
            return self
        rank = base.value_at(module, self.rank_pattern) or self.rank
        alpha = base.value_at(module, self.alpha_pattern)
        alpha = self.alpha if alpha is None else alpha
        return replace(self, rank=rank, alpha=alpha, rank_pattern=(), alpha_pattern=())


def pair(
    module: nn.Module, sizes: tuple[int, int, int], init_a: Init, init_b: Init
) -> tuple[jax.Array, jax.Array]:
    """A and B of a module, of sizes (in, r, out)."""
    size, rank, features = sizes
    into, out = module.axes
    a = leaf(module, "lora_a", init_a, (size, rank), (into, "rank"))
    return a, leaf(module, "lora_b", init_b, (rank, features), ("rank", out))


def product(module: nn.Module, x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """x A B in x's dtype, through the low rank."""
    into, out = module.axes
    return matmul(matmul(x, a, (into, "rank")), b, ("rank", out))


def each_matrix(function: Callable[[jax.Array], Any], x: jax.Array) -> Any:
    """What `function` gives of each matrix of x (..., m, n), stacked as they were.

    One after the other: a batch's factorization waits for threads which, on a mesh of virtual
    devices, wait for it.
    """
    results = jax.lax.map(function, x.reshape(-1, *x.shape[-2:]))
    return jax.tree.map(lambda y: y.reshape(*x.shape[:-2], *y.shape[1:]), results)
