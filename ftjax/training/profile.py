"""Traces of some steps, and the text of compiled programs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from ftjax.files import write_text

T = TypeVar("T")


class Profiler:
    """Traces a run from one step to another, for TensorBoard or Perfetto.

    Args:
        steps: (first, last), or nothing.
        folder: where the trace goes.
    """

    def __init__(self, steps: Sequence[int], folder: Path) -> None:
        self._steps, self._folder, self._on = tuple(steps), folder, False

    def around(self, take_step: Callable[..., T]) -> Callable[..., T]:
        """A function of a state and a step's number that traces those that are to be traced."""

        def traced(state: Any, step: int) -> T:
            self._at(step)
            return take_step(state, step)

        return traced if self._steps else take_step

    def _at(self, step: int) -> None:
        """Before a step: starts or ends the trace, if it is time."""
        first, last = self._steps
        if not self._on and step == first:
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        elif self._on and step > last:
            self.end()

    def end(self) -> None:
        """Ends a trace that is still on."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False


def dump(program: jax.stages.Compiled, name: str, folder: Path) -> None:
    """Writes a program's optimized text, and beside it what the compiler says of its cost."""
    write_text(folder / f"{name}.hlo.txt", program.as_text())
    costs = {key: value for key, value in program.cost_analysis().items() if "{" not in key}
    sizes = program.memory_analysis()
    names = [name for name in dir(sizes) if name.endswith("_in_bytes")]
    memory = {name: getattr(sizes, name) for name in names}
    text = json.dumps({"cost": costs, "memory": memory}, indent=2)
    write_text(folder / f"{name}.cost.json", text + "\n")
