"""What a program compiled ahead of time says of a run: memory, work, traffic, time."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import jax
from ml_collections import ConfigDict

from ftjax import quantized_product_tpu
from ftjax.bars import elapsed
from ftjax.config import require_config
from ftjax.errors import UserError
from ftjax.forecast.chips import Chip
from ftjax.forecast.hlo import summarize
from ftjax.forecast.least_work import Least
from ftjax.forecast.lowering import abstract_recipe, abstract_state, compiled, live
from ftjax.forecast.roofline import seconds
from ftjax.forecast.timeline import Machine, timeline
from ftjax.forecast.topologies import devices_of
from ftjax.models import cudnn, splash, triton
from ftjax.parallel.collectives import has_sparse_cores
from ftjax.parallel.mesh import batch_ways, configured_mesh

LONG = 0.05  # of a step, to wait for collectives
SAFE = 0.9  # of a chip's memory, to be advised to use
COMPILERS = {"tpu": "libtpu", "gpu": "jax-cuda12-plugin"}


def forecast(
    config: ConfigDict, topology: str, slices: int = 1, quick: bool = False
) -> dict[str, Any]:
    """Compiles a configuration's first step for a topology, and reads the program.

    All figures are of one chip; bytes and FLOPs are of one step, and tokens are all positions of
    the batch.

    Args:
        config: of a run.
        topology: such as "v5e:8x8" or "h100:8".
        slices: pods of TPUs, or hosts of GPUs, beside each other.
        quick: with less of the compiler's effort: memory is nearly the same, and nothing is said of
            time, which is another program's.

    Raises:
        UserError: an unknown topology, or a mesh or batch that does not fit it.
    """
    require_config(config)
    chip, devices = devices_of(topology, slices)
    mesh = configured_mesh(config.mesh, devices)
    rows = config.train.batch_size // config.train.accumulation
    if rows % batch_ways(mesh):
        raise UserError(
            f"train.batch_size={config.train.batch_size} (a microbatch of {rows} rows) does not "
            f"divide over the {batch_ways(mesh)} parts of the mesh that rows are spread over"
        )
    recipe = abstract_recipe(config, chip.platform)
    trainable, total = recipe.tuned.partition.counts(recipe.tuned.shapes)
    figures = {
        "versions": {name: version(name) for name in ("jax", COMPILERS[chip.platform])},
        "topology": topology,
        "slices": slices,
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "model": config.model.path,
        "method": config.method.name,
        "batch": [config.train.batch_size, config.data.max_length],
        "tokens": config.train.batch_size * config.data.max_length * recipe.task.group,
        "parameters": total,
        "trainable": trainable,
        "chip_memory": chip.memory,
        "platform": chip.platform,
    }
    try:
        with jax_effort(quick), elapsed(f"compiling for {len(devices)} chips of {topology}"):
            program, seconds = compiled(recipe, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**figures, "fits": False, "reason": str(error).strip().splitlines()[0][:300]}
    state, frozen = abstract_state(recipe, mesh)
    last = recipe.state_shapes(state.params, mesh, recipe.total)  # of which more may train
    held = {"start": live(state, frozen), "resume": live(last, frozen)}
    host = len(devices) // slices if chip.platform == "gpu" else None
    read = _figures(program, chip, held, host)
    figures |= {"compile_seconds": round(seconds, 1), **read}
    if not quick and chip.platform == "tpu":
        times = predicted(program.as_text(), Machine.of(topology, chip, mesh))
        figures["predicted"] = times
        long = times["waiting"] > LONG * times["seconds"] and times["overlapped"] < 0.5
        if long and not config.model.sparse_cores and has_sparse_cores(devices):
            figures["waits"] = "model.sparse_cores=True sends beside computation"
    if figures["fits"] and (more := room_for(figures, config)):
        figures["room"] = more
    if quick:
        del figures["seconds"]
        return figures
    least = {kind: count / len(devices) for kind, count in Least(config)().items()}
    step = max(read["seconds"].values())
    bound = sum(least.values()) / chip.flops / step
    return figures | {"least_flops": least, "mfu_bound": bound, **speed(figures, step)}


def predicted(text: str, machine: Machine) -> dict[str, float]:
    """What the time model says of a program, see `ftjax.forecast.timeline`.

    Returns:
        seconds of a step; of them waiting for collectives, and in attention kernels; the share of
        collectives' bytes that are under way while anything is computed.
    """
    times = timeline(text, machine)
    return {
        "seconds": times.seconds,
        "waiting": times.waiting,
        "kernels": times.kernels,
        "overlapped": times.overlapped / times.sent if times.sent else 1.0,
    }


def speed(figures: Mapping[str, Any], step: float) -> dict[str, float]:
    """What a step of at least so many seconds means: tokens a second at most, chip-hours at least.

    Args:
        figures: tokens of a step, and chips.
        step: its seconds.
    """
    rate = figures["tokens"] / step
    return {
        "tokens_per_second": rate,
        "tokens_per_second_per_chip": rate / figures["chips"],
        "chip_hours_per_billion_tokens": figures["chips"] * 1e9 / rate / 3600,
    }


def room_for(figures: Mapping[str, Any], config: ConfigDict) -> str:
    """What to do with memory that is left, in the order of what it gains; empty for nothing.

    Args:
        figures: what a chip has and needs.
        config: of the run.
    """
    memory = figures["memory"]
    left = SAFE * figures["chip_memory"] - max(memory["sum"], memory["resume"])
    times = 1 + left / max(memory["temporaries"], 1)
    if times < 2:
        return ""
    parts, rows = config.train.accumulation, config.train.batch_size
    if config.model.remat not in ("none", "dots", "dots_context"):
        return "model.remat=dots_context computes less twice, in more memory; --fastest tries it"
    if parts > 1:
        return f"train.accumulation={max(int(parts / times), 1)} does the same in larger parts"
    if config.mesh.fsdp != 1 and config.mesh.data == 1:
        return "mesh.data above 1 and a smaller mesh.fsdp send less, if parameters fit"
    return f"train.batch_size={rows * min(2 ** int(math.log2(times)), 64)} fits about, in one step"


def _figures(
    program: jax.stages.Compiled, chip: Chip, held: dict[str, int], host: int | None
) -> dict[str, Any]:
    """Figures of a step's program.

    Args:
        program: of the step.
        chip: that it is for.
        held: bytes that a chip holds before a step, of a new run and of one near its end that goes
            on.
        host: GPUs of each; None for TPUs.
    """
    sizes, work = program.memory_analysis(), summarize(program.as_text(), host)
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
    }
    memory |= {"sum": sum(memory.values()), "peak": sizes.peak_memory_in_bytes, **held}
    kernels = sum(
        times * module.kernel_flops(*kernel)
        for kernel, times in work.kernels.items()
        for module in (splash, cudnn, triton)
    )
    decoded = sum(
        times * quantized_product_tpu.kernel_flops(*kernel)
        for kernel, times in work.kernels.items()
    )
    products = work.flops + decoded
    times = seconds(chip, products + kernels, work.moved, work.sent, work.across)
    estimated = work.cycles / chip.clock + (decoded + kernels) / chip.flops
    return {
        "fits": max(memory["sum"], *held.values()) <= chip.memory,
        "memory": memory,
        "flops": {"dense": products, "kernels": kernels},
        "collectives": {
            "bytes": dict(work.sent),
            "runs": dict(work.counts),
            "between_slices": work.across,
        },
        "seconds": {**times, "compiler": estimated} if work.cycles else times,
    }


@contextmanager
def jax_effort(quick: bool) -> Iterator[None]:
    """Compiles with less effort, if quick."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "O1" if quick else before)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)
