"""What happens to rows before they are encoded: clean, then split. Every step is counted."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ftjax.data.sources import Split
from ftjax.errors import UserError, nearest

Splits = dict[str, Split]
Report = list[dict[str, Any]]
ORDER = ("test", "validation", "train")  # a text in two splits stays in the first of these


def _key(row: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(" ".join(text.lower().split()) for text in row)


def drop_duplicates(splits: Splits) -> Splits:
    """Keeps each text once, over all splits, whatever its case and spacing.

    Held-out splits keep theirs, so that nothing that is trained on is tested on. Of texts that
    are given different labels the first is kept.
    """
    seen: set[tuple[str, ...]] = set()
    kept = {}
    for name in (name for name in ORDER if name in splits):
        rows = splits[name].rows
        columns = [splits[name].column(c) for c in ("text", "text_pair") if c in rows.column_names]
        unique = []
        for i, row in enumerate(zip(*columns, strict=True)):
            if (key := _key(row)) not in seen:
                seen.add(key)
                unique.append(i)
        kept[name] = replace(splits[name], rows=rows.select(unique))
    return {name: kept[name] for name in splits}


STEPS: dict[str, Callable[[Splits], Splits]] = {"drop_duplicates": drop_duplicates}


def prepare(splits: Splits, settings: Mapping[str, Any]) -> tuple[Splits, Report]:
    """Runs `data.prepare`'s steps and draws the splits that the source lacks.

    Returns:
        The splits, and one {"step", "split", "rows_in", "rows_out"} a step and split.

    Raises:
        UserError: an unknown step, or more rows asked for than there are.
    """
    report: Report = []
    for step in settings["prepare"]:
        if step not in STEPS:
            raise UserError(f"data.prepare: {step!r} is not known{nearest(step, STEPS)}")
        after = STEPS[step](splits)
        for name in splits:
            counts = {"rows_in": len(splits[name].rows), "rows_out": len(after[name].rows)}
            report.append({"step": step, "split": name, **counts})
        splits = after
    drawn = draw(splits, settings["splits"], settings["split_seed"])
    for name, split in drawn.items():
        came = len(splits[name].rows) if name in splits else 0
        report.append(
            {"step": "split", "split": name, "rows_in": came, "rows_out": len(split.rows)}
        )
    return drawn, report


def draw(splits: Splits, sizes: Mapping[str, float], seed: int) -> Splits:
    """Takes test and validation rows out of `train` where they are lacking, then trims `train`.

    Args:
        splits: what the source has.
        sizes: rows (1 or more) or a share of `train`'s rows (below 1); 0 takes none, and leaves
            `train` the rest.
        seed: of the one permutation that all are drawn from.
    """
    if "train" not in splits:
        return splits
    train = splits["train"]
    total = len(train.rows)
    order = np.random.default_rng(seed).permutation(total)
    result, start = dict(splits), 0
    for name in ("test", "validation"):
        size = sizes[name]
        count = round(size * total) if size < 1 else int(size)
        if name in splits or not count:
            continue
        chosen = order[start : start + count]
        result[name] = replace(train, rows=train.rows.select(np.sort(chosen)))
        start += count
    size = sizes["train"]
    count = (total - start) if not size else round(size * total) if size < 1 else int(size)
    if count < 1 or start + count > total:
        raise UserError(
            f"{train.file} has {total} rows for training: too few for data.splits "
            f"(held out {start}, training {count})"
        )
    if start or count < total:
        chosen = np.sort(order[start : start + count])
        result["train"] = replace(train, rows=train.rows.select(chosen))
    return result
