"""What an option is: a field of a dataclass, whose annotation says what it may be.

`rank: Positive = 8`, `init: Literal["zero", "random"] = "zero"`, `decay: Annotated[float, "(0, 1]"]
= 0.9`, `Annotated[str, names]` (`Names`). The `Attributes` of the class's docstring say what it
means. From these come the check of a value, the message about a bad one, and what is written of
options elsewhere.
"""

import ast
import dataclasses
import inspect
import math
import re
import types
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from ftjax.errors import UserError, nearest

Natural = Annotated[int, "[0, inf)"]
Positive = Annotated[int, "[1, inf)"]
Count = Annotated[int, "[-1, inf)"]  # -1: as many as there are
NotNegative = Annotated[float, "[0, inf)"]
Above0 = Annotated[float, "(0, inf)"]
Regex = Annotated[str, "regex"]
Encoding = Annotated[str, "encoding"]  # Python's name of one, or "auto"
Seed = Annotated[int, "[0, 2147483647]"]
Inside = Annotated[float, "(0, 1)"]
Portion = Annotated[float, "(0, 1]"]
Share = Annotated[float, "[0, 1)"]  # as of what a dropout takes away
# Of models that others describe; far above any, and small enough to be counted up to.
Size = Annotated[int, "[1, 1000000000]"]
Layers = Annotated[int, "[1, 10000]"]
LONGEST = 200  # characters of a value in a message
WORDS = {"[0, inf)": "must not be negative", "[1, inf)": "must be positive"}
WORDS |= {"(0, inf)": "must be positive"}
NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
NAMES |= {Any: "anything", type(None): "none"}
NAMES |= {"regex": "a regular expression", "encoding": "auto or the name of an encoding"}


class Names(Protocol):
    """Names that a text may be: a `Registry`.

    Attributes:
        words: what they are.
    """

    words: str

    def require(self, name: str) -> None:
        """Raises ValueError for another, with what it must be."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a class.

    Attributes:
        kind: its annotation.
        default: where it is not given.
        meaning: a sentence, without its full stop.
    """

    kind: Any
    default: Any
    meaning: str

    def read(self, key: str, value: Any) -> Any:
        """`value`, also as a command line or a file has it, as what the option holds.

        Args:
            key: what messages call the option.
            value: numbers may be of numpy, whole where they need not, or 1e3 where they are,
                sequences of any type or "a,b", None the choice "none".

        Raises:
            UserError: another type, or a value that it may not be.
        """
        if hasattr(value, "tolist"):  # of numpy, as one of np.logspace(-5, -3, 5)
            value = value.tolist()
        try:
            return _read(self.kind, value)
        except TypeError as error:
            what = f"{error} expected, as in {self.default!r}"
            raise UserError(f"{key}={shown(value)} has the wrong type: {what}") from None
        except ValueError as error:
            raise UserError(f"{key}={shown(value)} {error}") from None

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        return _words(self.kind)


@cache
def options(cls: type) -> Mapping[str, Option]:
    """The options of a dataclass by name."""
    kinds, texts = get_type_hints(cls, include_extras=True), meanings(cls)
    return {
        field.name: Option(kinds[field.name], field.default, texts.get(field.name, ""))
        for field in dataclasses.fields(cls)
    }


def defaults(cls: type) -> dict[str, Any]:
    """Names and defaults of a dataclass's options."""
    return {name: option.default for name, option in options(cls).items()}


def conform(settings: Any, prefix: str = "") -> None:
    """Makes the options of a dataclass's new object what their annotations say.

    Args:
        settings: the object, which may be frozen.
        prefix: of the keys, as "method.".

    Raises:
        UserError: one is of another type, or may not be what it is.
    """
    for name, option in options(type(settings)).items():
        value = option.read(prefix + name, getattr(settings, name))
        object.__setattr__(settings, name, value)


def _read(kind: Any, value: Any) -> Any:
    """Raises TypeError with what was expected, or ValueError with what it must be."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        value = _read(inner[0], value)
        if not isinstance(inner[1], str):
            inner[1].require(value)
        elif inner[1] == "regex":
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"is not a regular expression: {error}") from None
        elif inner[1] == "encoding":
            _require_encoding(value)
        elif not _within(value, inner[1]):
            raise ValueError(WORDS.get(inner[1], f"must be in {inner[1]}"))
        return value
    if origin is Literal:
        value = "none" if value is None else value
        if value not in inner:
            near = nearest(value, map(str, inner)) if isinstance(value, str) else ""
            near = near if "did you mean" in near else ""
            raise ValueError(f"must be one of {', '.join(map(str, inner))}{near}")
        return value
    if origin in (Union, types.UnionType):
        return _read_any(inner, value)
    if origin is tuple:
        return _read_tuple(inner, value)
    if origin is list and isinstance(value, list):
        if inner[0] is str and not all(isinstance(item, str) for item in value):
            raise TypeError("texts")
        return [_read(inner[0], item) for item in value]
    if origin is dict and isinstance(value, dict):
        return {key: _read(inner[1], item) for key, item in value.items()}
    if kind is Any or (kind is type(None) and value is None):
        return value
    if kind is str:
        return str(value) if isinstance(value, str | int | float) else _wrong(kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float:
        if number and not -math.inf < value < math.inf:
            raise ValueError("must be finite")
        try:
            return float(value) if number else _wrong(kind)
        except OverflowError:
            raise ValueError("must be finite") from None
    if kind is int:
        return int(value) if number and value == value // 1 else _wrong(kind)
    return value if isinstance(value, origin or kind) else _wrong(origin or kind)


def shown(value: Any) -> str:
    """A value as messages have it, which is not longer than a line or two."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _require_encoding(name: str) -> None:
    """Raises ValueError for a name that is neither "auto" nor an encoding of text."""
    try:
        "" if name == "auto" else "".encode(name)
    except (LookupError, ValueError):
        raise ValueError("is no encoding that Python knows, as utf-8 or cp1252") from None


def _wrong(kind: Any) -> Any:
    raise TypeError(NAMES.get(kind, kind.__name__))


def _read_any(kinds: tuple, value: Any) -> Any:
    """By the first of several types that takes it; texts with commas are sequences first."""
    kinds = tuple(kind for kind in kinds if kind is not type(None) or value is None)
    if len(kinds) == 1:
        return _read(kinds[0], value)
    listed = isinstance(value, str) and "," in value
    for kind in sorted(kinds, key=lambda kind: get_origin(kind) is not tuple) if listed else kinds:
        if kind is str and not isinstance(value, str):
            continue  # another of the types may hold it as it is
        with suppress(TypeError, ValueError):
            return _read(kind, value)
    raise ValueError(f"must be {_words(Union[kinds])}")  # noqa: UP007


def _read_tuple(kinds: tuple, value: Any) -> tuple:
    if isinstance(value, Mapping):  # one of several, or pairs
        single = Mapping in map(get_origin, (kinds[0], *get_args(kinds[0])))
        if not single and get_origin(kinds[0]) is not tuple:
            raise TypeError("a list")
        value = (value,) if single else tuple(value.items())
    if isinstance(value, str):
        value = [_literal(part.strip()) for part in value.split(",") if part.strip()]
    items = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(kinds) == 2 and kinds[1] is ...:
        return tuple(_read(kinds[0], item) for item in items)
    if len(items) != len(kinds):
        raise TypeError(f"{len(kinds)} values")
    return tuple(map(_read, kinds, items))


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _words(kind: Any) -> str:
    """What an annotation allows, as messages and lists of options say it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        named = NAMES.get(inner[1]) if isinstance(inner[1], str) else inner[1].words
        return named or _between(*inner)
    if origin is Literal:
        return " or ".join(map(str, inner)) if len(inner) < 3 else f"one of {', '.join(inner)}"
    if origin in (Union, types.UnionType):
        tuples = [kind for kind in inner if get_origin(kind) is tuple and kind.__args__[0] in inner]
        rest = [kind for kind in inner if kind not in {sequence.__args__[0] for sequence in tuples}]
        return " or ".join(map(_words, rest))
    if origin is tuple and inner[-1] is ...:
        return f"{_words(inner[0])}, or several with commas between"
    if origin is tuple:
        return f"({', '.join(map(_words, inner))})"  # of a fixed length
    if issubclass(origin or kind, Mapping):
        return "a mapping"
    return NAMES.get(kind, kind.__name__)


def _between(kind: type, interval: str) -> str:
    low, high = interval[1:-1].split(", ")
    if high != "inf":
        return f"{_words(kind)} in {interval}"
    return f"{_words(kind)} {'above' if interval[0] == '(' else 'of at least'} {low}"


def _within(number: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    return above and (number < high if interval[-1] == ")" else number <= high)


def meanings(cls: type) -> dict[str, str]:
    """Name → what the docstrings of a class and those before it say of it under `Attributes`."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, listed = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:")
        listed = re.split(r"\n(?=\S)", listed)[0]  # to the next section
        for entry in filter(None, re.split(r"\n {4}(?=\w+: )", listed)):
            name, _, meaning = entry.partition(": ")
            texts[name] = " ".join(meaning.split()).removesuffix(".")
    return texts
