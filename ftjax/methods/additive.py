"""Methods that add parameters to modules of the base, by a formula that can be merged."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import jax

from ftjax.base_model import Base
from ftjax.errors import UserError, nearest, require
from ftjax.methods.base import FREEZE_REST, Method, head_rule
from ftjax.methods.factors import weight_of
from ftjax.options import Positive, Regex
from ftjax.partition import Rules
from ftjax.paths import Flat, expand


def leaves_of(modules: Collection[str], *names: str) -> str:
    """The pattern of leaves of these names in modules, by unrolled path."""
    unrolled = (re.escape(name) for path in modules for name in expand(path))
    return rf"({'|'.join(unrolled)})/({'|'.join(names)})"


@dataclass(frozen=True)
class Additive(Method):
    """Adds leaves to the modules that it targets; merged, each is a plain module again.

    What the method is on, `matched`, is the one source of what is called differently, trained and
    merged, so that several such methods share a model. A head that a task has is trained too.

    Attributes:
        targets: names of projections, as "query,value", or "all-linear", or a pattern of names;
            empty for the family's default.
    """

    targets: str | tuple[str, ...] = ()

    group: ClassVar[str]  # of what trains
    leaves: ClassVar[tuple[str, ...]]  # all that a module may be given
    fixed: ClassVar[tuple[str, ...]] = ()  # those of `leaves` that do not train
    shared: ClassVar[tuple[str, ...]] = ()  # leaves of the model itself, which do not train
    reads_weights: ClassVar[bool] = False  # of its modules, as the base has them

    def matched(self, base: Base) -> dict[str, tuple[int, int]]:
        """Module paths of what the method is on → (in, out)."""
        return base.match(self.targets or base.default_targets)

    def of(self, base: Base, module: str) -> Self:
        """The method as it is on one of its modules."""
        return self

    def rules(self, base: Base) -> Rules:
        trained = (name for name in self.leaves if name not in self.fixed)
        return ((leaves_of(self.matched(base), *trained), self.group), head_rule(base), FREEZE_REST)

    def added(self, base: Base, params: Mapping[str, Any]) -> dict[str, Flat]:
        """Module path → those of its leaves that `params` has, by name."""
        found = {
            module: {n: params[f"{module}/{n}"] for n in self.leaves if f"{module}/{n}" in params}
            for module in self.matched(base)
        }
        return {module: leaves for module, leaves in found.items() if leaves}

    def merge(self, base: Base, params: Flat) -> Flat:
        """Module by module, of all layers at once where layers are stacked."""
        merged = dict(params)
        shared = {name: merged.pop(name) for name in self.shared if name in merged}
        for module, leaves in self.added(base, params).items():
            for name in leaves:
                del merged[f"{module}/{name}"]
            method, leaves = self.of(base, module), {**leaves, **shared}
            weight = weight_of(module, merged)
            merged[weight] = method.merged(merged[weight], **leaves).astype(merged[weight].dtype)
            before = merged.get(f"{module}/bias")
            bias = None if before is None else method.merged_bias(before, **leaves)
            if bias is not before:
                merged[f"{module}/bias"] = bias.astype(before.dtype)
        return merged

    def merged(self, kernel: jax.Array, **leaves: jax.Array) -> jax.Array:
        """The weights (..., in, out) of the plain module that computes the same."""
        raise NotImplementedError

    def merged_bias(self, bias: jax.Array, **leaves: jax.Array) -> jax.Array:
        """Its bias (..., out)."""
        return bias


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

    def matched(self, base: Base) -> dict[str, tuple[int, int]]:
        """See `Additive.matched`.

        Raises:
            UserError: a rank exceeds both sides of a module, or a pattern is of none.
        """
        matched = base.match(self.targets or base.default_targets, self.embeddings)
        for key in ("rank_pattern", "alpha_pattern"):
            for pattern, _ in getattr(self, key):
                known = any(base.value_at(module, ((pattern, 1),)) for module in matched)
                names = {name for module in matched for name in base.names_of(expand(module)[0])}
                hint = nearest(pattern, {name.rsplit(".", 1)[-1] for name in names})
                require(known, f"method.{key}: {pattern!r} matches none of method.targets{hint}")
        for path, shape in matched.items():
            rank = self.of(base, path).rank
            if rank > max(shape):
                raise UserError(f"method.rank={rank} exceeds both sides of {path!r} {shape}")
        return matched

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

    def variants(self, base: Base) -> Iterator[tuple[Self, frozenset[str]]]:
        """The method with each r and α that modules have, and those modules."""
        modules: dict[Self, set[str]] = {}
        for module in self.matched(base):
            modules.setdefault(self.of(base, module), set()).add(module)
        return ((method, frozenset(its)) for method, its in modules.items())
