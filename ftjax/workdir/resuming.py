"""From which checkpoint a run goes on, and which is its best: one decision, told to all hosts."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ftjax.errors import UserError
from ftjax.parallel.agreement import broadcast, worst
from ftjax.paths import Flat
from ftjax.training.memory import free
from ftjax.training.progress import Best, Progress
from ftjax.training.step import State
from ftjax.workdir.checkpoints import Checkpoints
from ftjax.workdir.checksums import differing
from ftjax.workdir.restore import Damaged, not_as_written, summed

T = TypeVar("T")
Read = tuple[State, dict[str, Any], Progress]


def newest(checkpoints: Checkpoints, read: Callable[[int], Read]) -> tuple[Read | None, list[str]]:
    """What is read of the newest checkpoint that can be; later ones are damaged, and set aside.

    A checkpoint is damaged for all hosts or for none, whichever of them found it so.

    Args:
        checkpoints: of the run.
        read: what there is to read of a step; it changes nothing that outlives a failure.

    Returns:
        What was read, None where there is no checkpoint; and lines on those set aside.

    Raises:
        UserError: there are checkpoints and none can be read, or one cannot for another reason
            than damage, as for want of memory.
    """
    damaged: dict[int, str] = {}
    for step in reversed(broadcast(checkpoints.steps())):
        value, reason = _together(checkpoints, step, read, lambda value: summed(value[0]))
        if not reason:
            return value, _set_aside(checkpoints, damaged)
        damaged[step] = reason
        gc.collect()  # what of it had been read: there may be no room for it and the next
    if damaged:
        raise UserError(
            f"no checkpoint can be read, and all are left as they are: "
            f"{'; '.join(damaged.values())}. Bring one back from a copy, or move "
            f"{checkpoints.folder} away to begin anew"
        )
    return None, []


def best(
    checkpoints: Checkpoints,
    noted: Best,
    like: Flat,
    judge: Callable[[Flat, int, Best], None],
) -> tuple[Flat, list[str]]:
    """The trainable leaves of a run's best step; where it is damaged, of the best of the others.

    Then it is set aside, and the other is what is noted as the best.

    Args:
        checkpoints: of the run, the newest among them.
        noted: the run's best so far.
        like: shapes, dtypes and shardings of the leaves.
        judge: notes, in a `Best`, what the leaves of a step score on validation.

    Returns:
        The leaves; and lines on what was set aside.

    Raises:
        UserError: none can be read, or one cannot for another reason than damage.
    """
    best_step, others, chosen = noted.step, Best(), None
    read = partial(
        _together,
        checkpoints,
        read=partial(checkpoints.params, like=like),
        arrays=lambda leaves: {"params": leaves},
    )
    leaves, reason = read(best_step)
    if not reason:
        return leaves, []
    steps = broadcast(checkpoints.steps())
    for step in (step for step in steps if step != best_step):
        leaves, damage = read(step)
        if damage:
            continue
        judge(leaves, step, others)
        if others.step == step:
            leaves, chosen = chosen, leaves
        free(leaves)  # the worse of both
    if chosen is None:
        raise UserError(
            f"{reason}, nor is there another that can be scored. Bring it back from a copy; "
            "the same command goes on"
        )
    notes = _set_aside(checkpoints, {best_step: reason} if best_step in steps else {})
    noted.score, noted.step, noted.metrics = others.score, others.step, others.metrics
    return chosen, [*(notes or [reason]), f"of those left, the best is of step {others.step}"]


def _together(
    checkpoints: Checkpoints,
    step: int,
    read: Callable[[int], T],
    arrays: Callable[[T], dict[str, Any]],
) -> tuple[T | None, str]:
    """What is read of a step, whose `arrays` are summed; or why it is damaged, on any host."""
    value = problem = None
    try:
        value, sums = read(step), checkpoints.sums(step)
    except Exception as error:  # raised below, once all hosts know
        problem = error
    verdict = 0 if problem is None else 1 if isinstance(problem, Damaged) else 2
    everywhere = worst(verdict)
    if everywhere == 2:
        raise problem if verdict == 2 else UserError(f"another host cannot read step {step}")
    if everywhere == 1:
        return None, str(problem or f"checkpoint {step} is damaged, as another host says")
    if paths := differing(sums, arrays(value)):
        return None, not_as_written(checkpoints, step, paths)
    return value, ""


def _set_aside(checkpoints: Checkpoints, damaged: dict[int, str]) -> list[str]:
    """Sets damaged checkpoints aside; lines on them, of why each is."""
    checkpoints.set_aside(list(damaged))
    return [
        f"{reason}; it is set aside as {checkpoints.folder / f'{step}.unreadable'}"
        for step, reason in damaged.items()
    ]
