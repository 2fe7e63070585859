"""Several methods at once, as any two that touch different parameters may be."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import flax.linen as nn
import jax
from flax.errors import NameInUseError

from ftjax import methods
from ftjax.base_model import Base
from ftjax.errors import UserError, require
from ftjax.methods.additive import Additive
from ftjax.methods.interception import ROOT, Interceptor, at, nested
from ftjax.methods.method import FREEZE_REST, Method, Transform
from ftjax.methods.qlora import QLora
from ftjax.partition import Rules, is_frozen, selecting
from ftjax.paths import Flat, expand

Part = Method | Mapping[str, Any] | str
HEAD = "head"  # the group that every part may train


def created(part: Part) -> Method:
    """A part from {"name": ..., hyperparameter: value, ...} or from a name alone."""
    if isinstance(part, Method):
        return part
    part = {"name": part} if isinstance(part, str) else part
    named = isinstance(part, Mapping) and "name" in part
    require(named, f"method.parts: {part!r} is neither a method's name nor has one")
    return methods.create(part)


@dataclass(frozen=True)
class Combination(Method):
    """What trains is the union of what the parts train; each part adds what it adds.

    Interceptors are nested, the first part innermost; merges are done in turn. A part's groups
    have its number, "0_lora", but the head's, which is trained as the first part has it.

    Attributes:
        parts: settings of methods, {"name": ..., hyperparameter: value, ...}, or names alone.
    """

    parts: tuple[Part, ...] = ("lora", "layer_norm")

    non_identity: ClassVar = {"parts": ({"name": "lora", "init": "random"}, "layer_norm")}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.parts) > 1, f"method.parts={self.parts!r} must be two methods or more")
        object.__setattr__(self, "parts", tuple(map(created, self.parts)))
        for part in self.parts:
            require(part.trains, f"method.parts: {methods.name_of(part)} trains nothing")

    @property
    def identity(self) -> bool:
        return all(part.identity for part in self.parts)

    @property
    def names(self) -> str:
        return " and ".join(map(methods.name_of, self.parts))

    def rules(self, base: Base) -> Rules:
        """The parts' own in turn, then what freezes the rest.

        Raises:
            UserError: two parts select a parameter of the base, for different groups.
        """
        paths = [name for path in base.shapes for name in expand(path)]
        taken: dict[str, tuple[str, str]] = {}  # path → the group and the part that have it
        added: dict[str, str] = {}  # pattern → group, of what parts add
        union: dict[str, str] = {}
        for number, part in enumerate(self.parts):
            for pattern, group in selecting(part.rules(base)):
                selected = [path for path in paths if re.fullmatch(pattern, path)]
                for path in selected:
                    other, owner = taken.get(path, (group, ""))
                    clash = f"method.parts: {owner} and {methods.name_of(part)} both train {path!r}"
                    require(other == group, clash)
                new = [path for path in selected if path not in taken]
                taken |= dict.fromkeys(new, (group, methods.name_of(part)))
                if new or not selected:  # else all it selects is an earlier part's
                    name = group if group == HEAD else f"{number}_{group}"
                    (union if new else added).setdefault(pattern, name)
        return (*added.items(), *union.items(), FREEZE_REST)

    def interceptor(self, base: Base) -> Interceptor | None:
        """See `Method.interceptor`.

        Raises:
            UserError: two parts add the same parameter, or one reads weights that an earlier one
                changes, or trains what another quantizes.
        """
        for part in (part for part in self.parts if isinstance(part, QLora)):
            self._check_quantized(base, part)
        changed: dict[str, Method] = {}
        parts = (getattr(part, "inner", part) for part in self.parts)
        for part in (part for part in parts if isinstance(part, Additive)):
            matched, its = part.matched(base), methods.name_of(part)
            for module in matched.keys() & changed.keys() if part.reads_weights else ():
                raise UserError(
                    f"method.parts: {its} reads the weights of {module!r} that "
                    f"{methods.name_of(changed[module])} changes; name {its} first"
                )
            changed |= dict.fromkeys(matched, part)
        return nested(*(part.interceptor(base) for part in self.parts), at(ROOT, self.guarded))

    def _check_quantized(self, base: Base, part: QLora) -> None:
        inside = "use method.name=qlora, with method.over.name=combination"
        for other in (other for other in self.parts if other is not part):
            require(not isinstance(other, QLora), f"method.parts: qlora is there twice; {inside}")
            rules, name = other.rules(base), methods.name_of(other)
            for path in sorted(part.kernels(base)):
                clash = f"method.parts: {name} trains {path!r}, which qlora stores; {inside}"
                require(is_frozen(rules, f"{path}/kernel"), clash)

    def guarded(self, module: nn.Module, call: Callable, *args: Any, **kwargs: Any) -> Any:
        """The model's call, in which no two parts may add the same parameter."""
        try:
            return call(*args, **kwargs)
        except NameInUseError as error:
            same = f"method.parts: {self.names} add the same parameter: {error}"
            raise UserError(same) from error

    def disabled(self, base: Base) -> Interceptor | None:
        return nested(*(part.disabled(base) for part in self.parts))

    @property
    def columns(self) -> int:
        return sum(part.columns for part in self.parts)

    @property
    def inserted(self) -> int:
        return sum(part.inserted for part in self.parts)

    def cuts(self, layers: int) -> tuple[int, ...]:
        return tuple(sorted({cut for part in self.parts for cut in part.cuts(layers)}))

    def stored(self, base: Base, path: str, array: jax.Array) -> Any:
        for part in self.parts:
            array = part.stored(base, path, array)
        return array

    def initialize(self, base: Base, params: Flat, key: jax.Array) -> Flat:
        started: Flat = {}
        for number, part in enumerate(self.parts):
            started |= part.initialize(base, params | started, jax.random.fold_in(key, number))
        return started

    def at_step(self, step: int, base: Base) -> Method:
        return replace(self, parts=tuple(part.at_step(step, base) for part in self.parts))

    def rate_of(self, base: Base, path: str) -> float:
        return math.prod(part.rate_of(base, path) for part in self.parts)

    def penalty(self, base: Base, params: Flat) -> jax.Array | None:
        terms = [part.penalty(base, params) for part in self.parts]
        penalties = [penalty for penalty in terms if penalty is not None]
        return sum(penalties) if penalties else None

    def optimizer(self, base: Base, group: str, *others: Any) -> Transform:
        number, _, name = ("0", "", HEAD) if group == HEAD else group.partition("_")
        return self.parts[int(number)].optimizer(base, name, *others)

    def report(self, base: Base, params: Flat) -> dict[str, Any]:
        """The parts' own; with a part's number where several report the same."""
        result: dict[str, Any] = {}
        for number, part in enumerate(self.parts):
            for key, value in part.report(base, params).items():
                result[f"{number}_{key}" if key in result else key] = value
        return result

    def merge(self, base: Base, params: Flat) -> Flat:
        for part in self.parts:
            params = part.merge(base, params)
        return params
