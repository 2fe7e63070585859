"""The layout of a step that is predicted to take the least time, found by compiling.

One choice after another, each from the best so far: what layers keep for the backward pass, the
mesh and along which axis chips are neighbours, options of XLA, how feed-forward blocks are cut,
where the vocabulary's kernel is, what is kept gathered, the blocks of attention's scores,
microbatches, and the last layers' policy. What cannot fit by `kept_bytes` is not compiled; what
was compiled before is read from the cache.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ftjax import cache
from ftjax.config.keys import flat_keys
from ftjax.config.load import changed
from ftjax.errors import UserError
from ftjax.forecast.chips import chips_of, topology_devices
from ftjax.forecast.forecast import forecast
from ftjax.forecast.kept import ORDER, device_tokens, kept_bytes
from ftjax.forecast.lowering import abstract_recipe, architecture
from ftjax.parallel.collectives import has_sparse_cores
from ftjax.parallel.mesh import AXES
from ftjax.tuned import Tuned

Changes = dict[str, Any]
FILLED = 0.97  # of a chip's memory, that a layout may take
RULES = 4  # of the time model, and of our programs: what was kept by others is compiled again
WHOLE = (("key", "value"), ("query", "output"), ("up", "gate", "down"))  # the smallest first
# Options of XLA that are tried: gathers beside computation, which is not the default for each chip
# (those with sparse cores have these for it), and more of the chip's own memory for fusions.
GATHERS = (
    "xla_tpu_enable_async_collective_fusion=true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "xla_tpu_overlap_compute_collective_tc=true",
    "xla_enable_async_all_gather=true",
)
WIDE = ("xla_tpu_scoped_vmem_limit_kib=98304",)
WIDE_V5P = ("xla_tpu_scoped_vmem_limit_kib=65536",)  # which has less of it
# What keeps more moves more between memories, and is compiled longer: all that is tried at the end.
FIRST = ORDER.index("dots_context")


@dataclass(frozen=True)
class Trial:
    """A layout and what was found of it.

    Attributes:
        changes: key of the configuration → value.
        figures: of `forecast`; empty where the program cannot be.
    """

    changes: Changes
    figures: Mapping[str, Any]

    @property
    def fits(self) -> bool:
        memory = self.figures.get("memory")
        return bool(memory) and self.figures["fits"] and _room(self.figures) >= 0

    @property
    def seconds(self) -> float:
        return self.figures["predicted"]["seconds"] if self.fits else math.inf

    def __str__(self) -> str:
        words = " ".join(f"--config.{key}={_text(value)}" for key, value in self.changes.items())
        if not self.figures.get("memory"):
            return f"{words}: {self.figures.get('reason', 'does not fit')}"
        size = max(self.figures["memory"]["sum"], self.figures["memory"]["resume"]) / 2**30
        took = f"{1e3 * self.figures['predicted']['seconds']:,.1f} ms"
        return f"{words}: {took if self.fits else 'does not fit'}, {size:.2f} GiB"


class Search:
    """The layouts that were tried for a configuration on a topology.

    Args:
        config: of the run.
        topology, slices: as `forecast` takes them.
        minutes: after which nothing more is compiled.
        say: is told of each trial.
    """

    def __init__(
        self,
        config: ConfigDict,
        topology: str,
        slices: int = 1,
        minutes: float = 10.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self._config, self._topology, self._slices, self._say = config, topology, slices, say
        self._end = time.monotonic() + 60 * minutes
        chip, devices = topology_devices(topology, slices)
        self._memory = FILLED * chip.memory
        self._sparse = has_sparse_cores(devices)
        self.trials: list[Trial] = []

    def run(self) -> Trial:
        """The fastest layout that fits.

        Raises:
            UserError: none that was tried fits.
        """
        best = self._first()
        for choose in (
            self._meshes,
            self._order,
            self._compiler,
            self._cuts,
            self._gathered,
            self._attention,
            self._microbatches,
            self._shares,
            self._most,
        ):
            for changes in choose(best):
                best = self._better(best, best.changes | changes)
        if not best.fits:
            raise UserError(
                f"nothing that was tried of {self._config.model.path} fits {self._topology}: more "
                "chips, or a method that trains less"
            )
        return best

    def _first(self) -> Trial:
        """From the policy on that keeps all products, the first layout that fits."""
        start: Changes = {}
        if self._config.mesh.data != 1 or self._config.mesh.fsdp != -1:
            start |= {"mesh.data": self._slices, "mesh.fsdp": -1}
        start |= _start(self._applied(start))
        try:
            model, tokens = self._model(start)
        except UserError:  # the model has no parts, or the method changes what is in them
            start["model.parts"] = 1
            model, tokens = self._model(start)
        best = Trial(start, {})
        for policy in ORDER[FIRST:]:
            trial_changes = start | {"model.remat": policy}
            need = kept_bytes(model, policy, tokens)
            if need > self._memory and policy != ORDER[-1]:
                continue
            trial = self.trial(trial_changes)
            if trial.fits:
                return trial
            best = trial
        return best

    def _better(self, best: Trial, changes: Changes) -> Trial:
        trial = self.trial(changes) if changes != best.changes else best
        return trial if trial.seconds < best.seconds else best

    def trial(self, changes: Changes) -> Trial:
        """A layout, compiled unless that was done before or the time is over."""
        for known in self.trials:
            if known.changes == changes:
                return known
        name = self._name(changes)
        figures = _cached(name)
        if figures is None:
            if time.monotonic() > self._end and any(trial.fits for trial in self.trials):
                return Trial(changes, {})
            try:
                figures = forecast(self._applied(changes), self._topology, self._slices)
            except (UserError, jax.errors.JaxRuntimeError) as error:  # it does not divide so, or
                # the compiler has no such option
                figures = {"fits": False, "reason": str(error).strip().splitlines()[0]}
            cache.write("forecasts", name, lambda file: file.write(json.dumps(figures).encode()))
        trial = Trial(changes, figures)
        self.trials.append(trial)
        self._say(str(trial))
        return trial

    def _shares(self, best: Trial) -> Iterator[Changes]:
        """For the last layers the policy of next more memory, in as many as there is memory for."""
        policy = best.changes.get("model.remat", self._config.model.remat)
        if not best.fits or not isinstance(policy, str) or policy not in ORDER[1:]:
            return
        model, tokens = self._model(best.changes)
        layers = max((model.shapes[path].shape[0] for path in _stacked(model)), default=0)
        for more in reversed(ORDER[1 : ORDER.index(policy)]):
            extra = kept_bytes(model, more, tokens) - kept_bytes(model, policy, tokens)
            count = int(_room(best.figures) / extra * layers) if extra > 0 else 0
            if 0 < count < layers:
                lengths = (layers - count, count)
                yield {"model.segments": lengths, "model.remat": (policy, more)}
                return

    def _cuts(self, best: Trial) -> Iterator[Changes]:
        """Parts of feed-forward blocks, and where the vocabulary's kernel is."""
        model = self._applied(best.changes).model
        if model.parts > 1:
            yield from ({"model.parts": parts} for parts in sorted({1, 4} - {model.parts}))
        yield {"model.gather_head": not model.gather_head}

    def _gathered(self, best: Trial) -> Iterator[Changes]:
        """Kernels that lie whole on every chip, from the smallest on, as far as memory goes."""
        config, (model, _) = self._applied(best.changes), self._model(best.changes)
        whole, need = tuple(config.model.whole), 0.0
        for names in WHOLE if config.method.name != "full" and _sends(best) else ():
            paths = [
                path for path in model.shapes if path.split("/")[-2:-1] in [[n] for n in names]
            ]
            need += sum(model.shapes[p].size * jnp.dtype(model.dtype(p)).itemsize for p in paths)
            whole = (*whole, *names)
            if paths and need < _room(best.figures):
                yield {"model.whole": whole}

    def _attention(self, best: Trial) -> Iterator[Changes]:
        yield {"model.attention_fused": True}
        if self._config.data.max_length > 2048:
            yield {"model.attention_block": 2048}

    def _meshes(self, best: Trial) -> Iterator[Changes]:
        """Copies of parameters over parts of the chips, or on each; or features over some chips."""
        if best.fits and 4 * best.figures["memory"]["start"] < _room(best.figures):
            yield {"mesh.data": 2 * self._applied(best.changes).mesh.data}
        yield from self._copies(best)
        yield {"mesh.tensor": 2}

    def _order(self, best: Trial) -> Iterator[Changes]:
        """Neighbours along another axis, where chips are cut along several."""
        axes = [axis for axis in AXES if best.fits and best.figures["mesh"][axis] > 1]
        yield from ({"mesh.near": (axis,)} for axis in axes[:-1])

    def _copies(self, best: Trial) -> Iterator[Changes]:
        """All parameters on each chip, under the first policy that there is memory for."""
        if not best.fits:
            return
        start = best.figures["memory"]["start"] * best.figures["mesh"]["fsdp"]  # at most
        copies = {"mesh.data": -1, "mesh.fsdp": 1}
        for policy in ORDER[FIRST:]:
            changes = copies | {"model.remat": policy}
            model, tokens = self._model(best.changes | changes)
            if start + kept_bytes(model, policy, tokens) < self._memory:
                yield changes
                if self.trial(best.changes | changes).fits:
                    return

    def _compiler(self, best: Trial) -> Iterator[Changes]:
        before = self._applied(best.changes).train.compiler
        if _sends(best) and self._sparse:
            yield {"model.sparse_cores": True}
        elif _sends(best):
            yield {"train.compiler": (*before, *GATHERS)}
        wide = WIDE_V5P if self._topology.startswith("v5p") else WIDE
        yield {"train.compiler": (*before, *wide)}

    def _microbatches(self, best: Trial) -> Iterator[Changes]:
        """Smaller ones of which more is kept; or what is kept, in the machine's memory."""
        config = self._applied(best.changes)
        if config.model.remat not in ORDER[:3]:
            parts = 2 * config.train.accumulation
            yield {"train.accumulation": parts, "model.remat": "dots_context"}
            yield {"model.remat": "offload"}

    def _most(self, best: Trial) -> Iterator[Changes]:
        """All kept, where there is memory for it."""
        model, tokens = self._model(best.changes)
        if best.fits and kept_bytes(model, ORDER[0], tokens) < self._memory:
            yield {"model.segments": "scan", "model.remat": ORDER[0]}

    def _applied(self, changes: Changes) -> ConfigDict:
        return changed(self._config.copy_and_resolve_references(), list(changes.items()))

    def _model(self, changes: Changes) -> tuple[Tuned, float]:
        """The model, and tokens of one device at a time."""
        config, recipe = self._applied(changes), abstract_recipe(self._applied(changes), "tpu")
        chips = self._slices * chips_of(self._topology)
        return recipe.tuned, device_tokens(config, chips) * recipe.task.group

    def _name(self, changes: Changes) -> str:
        """Of a trial in the cache: by all that its program depends on."""
        about = {
            "config": {k: _text(v) for k, v in flat_keys(self._applied(changes)).items()},
            "model": architecture(self._config.model.path),  # a folder may have another by now
            "machine": [self._topology, self._slices],
            "rules": RULES,
            "versions": [version(name) for name in ("ftjax", "jax", "libtpu")],
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def fastest(config: ConfigDict, topology: str, slices: int = 1, **settings: Any) -> Trial:
    """The fastest layout of a configuration on a topology; arguments as those of `Search`."""
    return Search(config, topology, slices, **settings).run()


def _start(config: ConfigDict) -> Changes:
    """What is better by what is sent alone, before anything is compiled."""
    words = architecture(config.model.path).get("vocab_size", math.inf)
    return {
        "model.segments": "scan",
        "model.parts": 2,
        "model.attention_block": 1024,
        "model.gather_head": config.data.max_length * config.train.batch_size > words,
        "train.accumulation": 1,
    }


def _sends(best: Trial) -> bool:
    """Whether parameters are gathered."""
    return best.fits and best.figures["mesh"]["fsdp"] > 1


def _stacked(model: Tuned) -> list[str]:
    return [path for path, axes in model.axes.items() if "layers" in axes]


def _room(figures: Mapping[str, Any]) -> float:
    """Bytes that a layout leaves of what it may take."""
    memory = figures["memory"]
    return FILLED * figures["chip_memory"] - max(memory["sum"], memory["resume"])


def _cached(name: str) -> dict[str, Any] | None:
    kept = cache.read("forecasts", name)
    return None if kept is None else json.loads(bytes(kept))


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
