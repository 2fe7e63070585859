"""Which of the names that a source has are its training, validation and test splits."""

from collections.abc import Collection, Mapping

from ftjax.errors import UserError, nearest

SPLITS = {  # split → names of its file
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test",),
}


def choose(available: Collection[str], named: Mapping[str, str], place: str) -> dict[str, str]:
    """Split → its name, of those that are there.

    Args:
        available: names.
        named: `data.split_names`; empty for the usual ones.
        place: what has the names, for messages.

    Raises:
        UserError: a name that is asked for is not there, or twice.
    """
    chosen = {split: name for split, name in named.items() if name}
    for split, name in chosen.items():
        if name not in available:
            raise UserError(
                f"data.split_names.{split}={name!r} is not in {place}{nearest(name, available)}"
            )
        if sum(name == other for other in chosen.values()) > 1:
            raise UserError(f"data.split_names: {name!r} cannot be two splits")
    for split, names in SPLITS.items():
        free = [name for name in names if name in available and name not in chosen.values()]
        if split not in chosen and free:
            chosen[split] = free[0]
    return {split: chosen[split] for split in SPLITS if split in chosen}


def unused(available: Collection[str], chosen: Collection[str], place: str) -> tuple[str, ...]:
    """A note on the names that are not used, where there are such."""
    others = [name for name in available if name not in chosen]
    note = f"{place}: not used: {', '.join(sorted(others))} (data.split_names)"
    return (note,) if others else ()
