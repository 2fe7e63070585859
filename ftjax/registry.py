"""By which names methods, tasks, families, optimizers and preparation steps are found.

A name is built in (a line of a table here), or an entry point of an installed package, or dotted:
MODULE:CLASS of whatever can be imported. A new table has all three by being a `Registry`.
"""

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ml_collections import ConfigDict

from ftjax.errors import UserError, nearest, summary
from ftjax.options import options

# name → (module, class, what it is); a family is the module itself: (module, what it is)
Table = Mapping[str, tuple[str, ...]]


class NotFound(UserError):
    """A name that is none, or of what cannot be imported here, where elsewhere it may be."""


@dataclass(frozen=True, eq=False)
class Registry:
    """A table of what is built in, and the ways to what is not.

    Attributes:
        place: how messages say where an entry is named, as "method.name={!r}".
        package: that the modules of the table are in.
        table: what is built in; imported when asked for, so that listing needs no JAX.
        group: of the entry points of other packages.
        base: MODULE:CLASS that an entry's class is of; empty: none in particular.
        needs: what an entry has.
    """

    place: str
    package: str
    table: Table
    group: str
    base: str = ""
    needs: Collection[str] = ()

    @property
    def words(self) -> str:
        """What a name may be."""
        listed = f"a name of `ftjax list {self.group.rpartition('.')[2]}`"
        few = f"one of {', '.join(self.table)}" if len(self.table) < 10 else listed
        return f"{few}, or MODULE:CLASS of one's own"

    def find(self, name: str) -> Any:
        """The class, or module, of that name.

        Raises:
            UserError: there is none, and the nearest is named; or it is none of its kind.
        """
        where = self.place.format(name)
        try:
            self.require(name)
        except ValueError as error:
            raise NotFound(f"{where} {error}") from None
        if name in self.table:
            module, *attribute, _ = self.table[name]
            entry = importlib.import_module(f"{self.package}.{module}")
            return getattr(entry, attribute[0]) if attribute else entry
        entry = _imported(where, name if _is_dotted(name) else self._entry_points()[name][0].value)
        self._check(where, entry)
        return entry

    def require(self, name: Any) -> None:
        """Raises ValueError for a name that is not built in, dotted or the entry point of one
        package."""
        if not isinstance(name, str):
            raise ValueError("is no name")
        if name in self.table or _is_dotted(name):
            return
        own = self._entry_points()
        if name not in own:
            raise ValueError(f"is not known{nearest(name, [*self.table, *own])}")
        if len(own[name]) > 1:
            raise ValueError(self._refusal(name, map(_package, own[name])))

    def entries(self) -> dict[str, str]:
        """Name → what it is, also of other packages'; of one that cannot be used, why."""
        texts = {name: entry[-1] for name, entry in self.table.items()}
        for name, points in self._entry_points().items():
            if name in self.table:
                why = self._refusal(name, ["ftjax", *map(_package, points)])
                texts |= {
                    point.value: f"cannot be used as {name!r}, which {why}" for point in points
                }
                continue
            try:
                texts[name] = self.text(name)
            except UserError as error:
                texts[name] = f"cannot be used: {error}"
        return texts

    def text(self, name: str) -> str:
        """What an entry is: of one that is not built in, the first line of its docstring.

        Raises:
            UserError: as of `find`.
        """
        if name in self.table:
            return self.table[name][-1]
        return (inspect.getdoc(self.find(name)) or "").partition("\n")[0].removesuffix(".")

    def create(self, settings: Mapping[str, Any]) -> Any:
        """An object from {"name": ..., option: value, ...}.

        Raises:
            UserError: an unknown name or option, or a value out of range.
        """
        values = {
            key: value.to_dict() if isinstance(value, ConfigDict) else value
            for key, value in settings.items()
            if key != "name"
        }
        cls, section = self.find(settings["name"]), self.place.partition(".")[0]
        known = options(cls)
        for key in values:
            if key not in known:
                raise UserError(
                    f"{section}.{key} is not an option of {settings['name']!r}{nearest(key, known)}"
                )
        return cls(**values)

    def name_of(self, cls: type) -> str:
        """What a class is registered as; one that is not built in by its dotted name."""
        for name, (module, attribute, _) in self.table.items():
            if (cls.__module__, cls.__qualname__) == (f"{self.package}.{module}", attribute):
                return name
        return f"{cls.__module__}:{cls.__qualname__}"

    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        """Of other packages, by name, which is one package's unless it cannot be used."""
        points: dict[str, dict[str, EntryPoint]] = {}
        for point in _installed(self.group, tuple(sys.path)):
            points.setdefault(point.name, {}).setdefault(_package(point), point)
        return {name: [*of_name.values()] for name, of_name in points.items()}

    def _refusal(self, name: str, packages: Iterable[str]) -> str:
        return (
            f"is an entry point of {self.group} in each of {', '.join(packages)}: rename {name!r} "
            "in the pyproject.toml of one and install it again, uninstall one, or name MODULE:CLASS"
        )

    def _check(self, where: str, entry: Any) -> None:
        """Raises UserError for what is not of the kind that the registry holds."""
        if lacks := [name for name in self.needs if not hasattr(entry, name)]:
            raise UserError(f"{where}: {entry!r} lacks {', '.join(lacks)}")
        if self.base:
            module, _, name = self.base.partition(":")
            base = getattr(importlib.import_module(module), name)
            if not (isinstance(entry, type) and issubclass(entry, base)):
                raise UserError(f"{where}: {entry!r} is no subclass of {module}.{name}")
        if not isinstance(entry, type):
            return  # a family's module
        if "__dataclass_fields__" not in vars(entry):
            raise UserError(f"{where}: decorate {entry.__name__} with @dataclass(frozen=True)")
        try:
            known = options(entry)
        except Exception as error:  # annotations are evaluated, and may name what is not there
            raise UserError(f"{where}: an annotation of its fails: {summary(error)}") from error
        for name, option in known.items():
            if option.default is dataclasses.MISSING:
                raise UserError(f"{where}: its option {name!r} has no default")


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module


def _is_dotted(name: str) -> bool:
    return ":" in name or "." in name


@cache
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Entry points of what is on the path that modules are found on."""
    return tuple(entry_points(group=group))


def _imported(where: str, name: str) -> Any:
    """What MODULE:NAME, or MODULE, is.

    Raises:
        UserError: there is no such module, it fails, or has nothing of that name.
    """
    module, _, attribute = name.partition(":")
    if not module or module.startswith("."):
        raise NotFound(f"{where} is neither MODULE:CLASS nor MODULE")
    try:
        entry = importlib.import_module(module)
    except ModuleNotFoundError as error:
        lacks = f"no module {error.name!r} is installed"
        mend = "install its package here, or put its folder on PYTHONPATH"
        raise NotFound(f"{where}: {lacks}; {mend}") from error
    except (Exception, SystemExit) as error:
        how = f'python -c "import {module}" shows where'
        raise NotFound(f"{where}: {module} fails: {summary(error)}; {how}") from error
    for part in filter(None, attribute.split(".")):
        if not hasattr(entry, part):
            raise NotFound(f"{where}: {module} has no {attribute!r}{nearest(part, dir(entry))}")
        entry = getattr(entry, part)
    return entry


def as_tuples(value: Any) -> Any:
    """Sequences within sequences as tuples, whatever a file made of them."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value
