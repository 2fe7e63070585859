"""The one idea: a method is a selection of a trainable subtree of the parameters.

A `Partition` labels every leaf "frozen" or with the name of a trainable group. Gradients,
clipping, weight decay, optimizer memory, dtypes, donation, sharding, checkpoints, exports and
counts are all derived from it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftjax.errors import UserError, nearest
from ftjax.paths import Flat, expand

FROZEN = "frozen"
Rules = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Partition:
    """The label of every parameter path.

    Attributes:
        labels: path → `FROZEN` or a group's name.
    """

    labels: Mapping[str, str]

    @classmethod
    def of(cls, paths: Sequence[str], rules: Rules, trains: bool = True) -> "Partition":
        """Labels each path with the group of the first rule whose pattern matches it in full.

        Patterns see unrolled names (`layer_3`), also where layers are scanned. `trains` says that
        something must be left to train.

        Raises:
            UserError: a path that no rule matches, a rule that matches no path, a scanned
                segment of which rules select only some layers, or nothing left to train.
        """
        used = set()

        def label(path: str) -> str:
            for number, (pattern, group) in enumerate(rules):
                if re.fullmatch(pattern, path):
                    used.add(number)
                    return group
            raise UserError(f"no rule says whether parameter {path!r} is trained")

        labels = {}
        for path in paths:
            groups = {label(name) for name in expand(path)}
            if len(groups) > 1:
                raise UserError(
                    f"rules give layers of the scanned parameter {path!r} different groups "
                    f"{sorted(groups)}; cut model.segments there"
                )
            labels[path] = groups.pop()
        for number, (pattern, group) in enumerate(rules):
            if number not in used and group != FROZEN:
                raise UserError(
                    f"pattern {pattern!r} (group {group!r}) matches no parameter that an earlier "
                    f"pattern left{nearest(pattern, paths)}"
                )
        if trains and set(labels.values()) <= {FROZEN}:
            raise UserError("the method trains no parameter")
        return cls(labels)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the trainable groups."""
        return tuple(sorted(set(self.labels.values()) - {FROZEN}))

    def is_trainable(self, path: str) -> bool:
        return self.labels[path] != FROZEN

    def split(self, params: Mapping[str, Any]) -> tuple[Flat, Flat]:
        """Flat parameters → (trainable, frozen), each flat."""
        trainable = {path: leaf for path, leaf in params.items() if self.is_trainable(path)}
        return trainable, {path: leaf for path, leaf in params.items() if path not in trainable}

    def counts(self, shapes: Mapping[str, Any]) -> tuple[int, int]:
        """Numbers of trainable and of all parameters, from anything with shapes."""
        sizes = {path: math.prod(leaf.shape) for path, leaf in shapes.items()}
        return sum(n for path, n in sizes.items() if self.is_trainable(path)), sum(sizes.values())


def merge(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> Flat:
    """The inverse of `Partition.split`."""
    return {**frozen, **trainable}


def selecting(rules: Rules) -> Rules:
    """The rules that train something, so that each matches what it gets where all are tried."""
    trained, before = [], ""
    for pattern, group in rules:
        if group != FROZEN:
            trained.append((f"{before}(?:{pattern})", group))
        before += rf"(?!(?:{pattern})\Z)"
    return trained


def is_frozen(rules: Rules, path: str) -> bool:
    """Whether no layer of a parameter trains."""

    def group(name: str) -> str:
        return next(group for pattern, group in rules if re.fullmatch(pattern, name))

    return {group(name) for name in expand(path)} == {FROZEN}
