"""Schemes of tags: what the tags of a row say of entities, and what each scheme allows."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

Entity = tuple[str, int, int]  # type, first word, word after the last


class Scheme(NamedTuple):
    """A scheme in which an entity is begun, gone on with, and perhaps ended.

    Attributes:
        prefixes: that tags have.
        starts: of those, which can be an entity's first.
        leaves_open: after which an entity may go on.
        goes_on: which can go on with one.
        ended: whether an entity that is left open must go on.
    """

    prefixes: str
    starts: str
    leaves_open: str
    goes_on: str
    ended: bool


# IOB1 and IOE1 write B and E only between neighbours of one type: see `_neighbours`.
SCHEMES = {
    "IOB1": Scheme("BI", "BI", "BI", "I", False),
    "IOB2": Scheme("BI", "B", "BI", "I", False),
    "IOE1": Scheme("IE", "IE", "IE", "IE", False),
    "IOE2": Scheme("IE", "IE", "I", "IE", True),
    "BIOES": Scheme("BIES", "BS", "BI", "IE", True),
    "BILOU": Scheme("BILU", "BU", "BI", "IL", True),
}
NAMES = ("auto", *SCHEMES, "none")
PREFIXES = "BIESLU"


def scheme_of(tags: Collection[str]) -> str:
    """The scheme of tags by their prefixes: IOB2, IOE2, BIOES, BILOU, or none.

    IOB1 and IOE1 look like IOB2 and IOE2.
    """
    prefixes = {
        tag[0] for tag in tags if tag != "O" and tag[0] in PREFIXES and tag[1:2] in ("", "-")
    }
    if not prefixes:
        return "IOB2" if set(tags) <= {"O"} else "none"
    if prefixes & {*"LU"}:
        return "BILOU"
    if prefixes & {*"ES"}:
        return "IOE2" if prefixes <= {*"IE"} else "BIOES"
    return "IOB2"


def check_tags(tags: Sequence[str], scheme: str) -> None:
    """Raises ValueError for a row whose tags are none of a scheme, or of any by "auto"."""
    name = scheme_of(tags) if scheme == "auto" else scheme
    if name == "none":
        return
    try:
        _check_each(tags, name)
        if name == "IOB1":
            _neighbours(tags, "B")
        if name == "IOE1":
            _neighbours(tags[::-1], "E")
    except ValueError as error:
        note = f" (read as {name}; task.scheme names others)" if scheme == "auto" else ""
        raise ValueError(f"{error}{note}") from None


def _check_each(tags: Sequence[str], name: str) -> None:
    allowed, before = SCHEMES[name], "O"
    prefixes = ", ".join(f"{prefix}-" for prefix in allowed.prefixes)
    for number, tag in enumerate([*tags, "O"], 1):
        prefix, dash, kind = tag.partition("-")
        known = len(prefix) == 1 and prefix in allowed.prefixes
        if tag != "O" and not (known and dash and kind):
            raise ValueError(f"tag {number}, {tag!r}, is not O, or {prefixes} and a type")
        inside = before != "O" and before[0] in allowed.leaves_open
        on = inside and tag != "O" and prefix in allowed.goes_on and before[2:] == kind
        if tag != "O" and prefix not in allowed.starts and not on:
            raise ValueError(f"tag {number}, {tag!r}, does not go on from {before!r}")
        if allowed.ended and inside and not on:
            raise ValueError(f"tag {number}, {tag!r}, comes before the entity of {before!r} ends")
        before = tag


def _neighbours(tags: Sequence[str], prefix: str) -> None:
    """Raises ValueError for a tag with a prefix that does not follow one of its type."""
    for before, tag in zip(["O", *tags], tags, strict=False):
        if tag[0] == prefix and before[2:] != tag[2:]:
            raise ValueError(f"tag {tag!r} is not between two entities of a type")


def strictly(scheme: str) -> dict[str, Any]:
    """Arguments of seqeval's metrics for a scheme; none for "auto", which counts BIO as conlleval
    does."""
    if scheme == "auto":
        return {}
    from seqeval import scheme as schemes

    return {"mode": "strict", "scheme": getattr(schemes, scheme.replace("BIOES", "IOBES"))}


def entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """Entities as seqeval reads them; none without a scheme."""
    if scheme == "none":
        return []
    if scheme == "auto":
        from seqeval.metrics.sequence_labeling import get_entities

        return [(kind, first, last + 1) for kind, first, last in get_entities(list(tags))]
    from seqeval.scheme import Tokens

    return [
        (e.tag, e.start, e.end) for e in Tokens(list(tags), strictly(scheme)["scheme"]).entities
    ]
