"""From which checkpoint a run goes on: one decision, told to all hosts."""

import gc
from collections.abc import Callable
from typing import TypeVar

from ftjax.errors import UserError
from ftjax.parallel.agreement import told, worst
from ftjax.training.checkpoints import Checkpoints
from ftjax.training.saved import Damaged

T = TypeVar("T")


def newest(checkpoints: Checkpoints, read: Callable[[int], T]) -> tuple[T | None, list[str]]:
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
    for step in reversed(told(checkpoints.steps())):
        found = problem = None
        try:
            found = read(step)
        except Exception as error:  # raised below, once all hosts know
            problem = error
        verdict = 0 if problem is None else 1 if isinstance(problem, Damaged) else 2
        everywhere = worst(verdict)
        if everywhere == 0:
            checkpoints.set_aside(list(damaged))
            return found, [
                f"{reason}; it is set aside as {checkpoints.folder / f'{at}.unreadable'}"
                for at, reason in damaged.items()
            ]
        if everywhere == 2:
            raise problem if verdict == 2 else UserError(f"another host cannot read step {step}")
        damaged[step] = str(problem or f"checkpoint {step} is damaged, as another host says")
        problem = None
        gc.collect()  # what of it had been read: there may be no room for it and the next
    if damaged:
        raise UserError(
            f"no checkpoint can be read, and all are left as they are: "
            f"{'; '.join(damaged.values())}. Bring one back from a copy, or move "
            f"{checkpoints.folder} away to begin anew"
        )
    return None, []
