"""What a program compiled ahead of time says of a run: memory, work, traffic, time."""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import jax
from ml_collections import ConfigDict

from ftjax.errors import UserError
from ftjax.models.splash import kernel_flops
from ftjax.parallel.chips import GIB, Chip, topology_devices
from ftjax.parallel.hlo import summarize
from ftjax.parallel.mesh import AXES, batch_ways, make_mesh
from ftjax.parallel.roofline import seconds
from ftjax.training.ahead import abstract_recipe, abstract_state, compiled, live
from ftjax.training.minimum import Least


def forecast(config: ConfigDict, topology: str, slices: int = 1) -> dict[str, Any]:
    """Compiles a configuration's first step for a topology, and reads the program.

    All figures are of one chip; bytes and FLOPs are of one step.

    Raises:
        UserError: an unknown topology, or a mesh or batch that does not fit it.
    """
    chip, devices = topology_devices(topology, slices)
    mesh = make_mesh(**{axis: config.mesh[axis] for axis in AXES}, devices=devices)
    rows = config.train.batch_size // config.train.accumulation
    if rows % batch_ways(mesh):
        raise UserError(
            f"train.batch_size={config.train.batch_size} (a microbatch of {rows} rows) does not "
            f"divide over the {batch_ways(mesh)} parts of the mesh that rows are spread over"
        )
    recipe = abstract_recipe(config, "tpu")
    trainable, total = recipe.tuned.partition.counts(recipe.tuned.shapes)
    found = {
        "versions": {name: version(name) for name in ("jax", "libtpu")},
        "topology": topology,
        "slices": slices,
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "model": config.model.path,
        "method": config.method.name,
        "batch": [config.train.batch_size, config.data.max_length],
        "parameters": total,
        "trainable": trainable,
        "chip_memory": chip.memory,
    }
    try:
        program, took = compiled(recipe, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**found, "fits": False, "reason": str(error).strip().splitlines()[0][:300]}
    state, frozen = abstract_state(recipe, mesh)
    last = recipe.state_shapes(state.params, mesh, recipe.total)  # of which more may train
    read = _read(program, chip, {"start": live(state, frozen), "resume": live(last, frozen)})
    least = {kind: count / len(devices) for kind, count in Least(config)().items()}
    bound = sum(least.values()) / chip.flops / max(read["seconds"].values())
    found |= {"compile_seconds": round(took, 1), **read, "least_flops": least, "mfu_bound": bound}
    return found


def _read(program: jax.stages.Compiled, chip: Chip, held: dict[str, int]) -> dict[str, Any]:
    """Figures of a step's program.

    Args:
        program: of the step.
        chip: that it is for.
        held: bytes that a chip holds before a step, of a new run and of one near its end that goes
            on.
    """
    sizes, work = program.memory_analysis(), summarize(program.as_text())
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
    }
    memory |= {"sum": sum(memory.values()), "peak": sizes.peak_memory_in_bytes, **held}
    kernels = sum(times * kernel_flops(*kernel) for kernel, times in work.kernels.items())
    times = seconds(chip, work.flops + kernels, work.moved, work.sent, work.across)
    return {
        "fits": max(memory["sum"], *held.values()) <= chip.memory,
        "memory": memory,
        "flops": {"dense": work.flops, "kernels": kernels},
        "collectives": {
            "bytes": dict(work.sent),
            "runs": dict(work.counts),
            "between_slices": work.across,
        },
        "seconds": {**times, "compiler": work.cycles / chip.clock + kernels / chip.flops},
    }


def mended(
    config: ConfigDict, topology: str, slices: int, say: Callable[[str], None]
) -> tuple[str, dict[str, Any]] | None:
    """What to set for a configuration that does not fit, found by trying; None where nothing does.

    Returns:
        Overrides for the command line, and the forecast under them.
    """
    changes: dict[str, Any] = {}
    for more in _mends(config):
        attempt = changes | more
        tried = config.copy_and_resolve_references()
        for key, value in attempt.items():
            section, name = key.split(".")
            tried[section][name] = value
        words = " ".join(f"--config.{key}={value}" for key, value in attempt.items())
        say(f"trying {words}")
        try:
            found = forecast(tried, topology, slices)
        except UserError:  # the batch does not divide so, or the model has no such parts
            continue
        changes = attempt
        if found["fits"]:
            return words, found
    return None


def _mends(config: ConfigDict) -> Iterator[dict[str, Any]]:
    """From what costs least: spreading parameters, computing again, smaller microbatches."""
    if config.mesh.fsdp != -1 and config.mesh.data != 1:
        yield {"mesh.data": 1, "mesh.fsdp": -1}
    if config.model.remat != "full":
        yield {"model.remat": "full"}
    if config.model.parts == 1:
        yield {"model.parts": 4}
    parts = config.train.accumulation
    while parts * 2 <= min(config.train.batch_size, 64):
        parts *= 2
        yield {"train.accumulation": parts}


def lines(found: dict[str, Any]) -> list[str]:
    """The forecast as text."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1)
    rows, length = found["batch"]
    where = found["topology"] + (f" x {found['slices']} slices" if found["slices"] > 1 else "")
    text = [
        f"{found['model']}, {found['method']}: {found['trainable']:,} of "
        f"{found['parameters']:,} parameters train",
        f"{where}: {found['chips']} chips, {mesh or 'one device'}; batch {rows} x {length}",
    ]
    if "memory" not in found:
        return [*text, f"does not fit: {found['reason']}"]
    memory, flops = found["memory"], found["flops"]
    least, times = found["least_flops"], found["seconds"]
    of, across = found["chip_memory"] / GIB, found["collectives"]["between_slices"]
    bound = max(times, key=times.get)
    return [
        *text,
        f"{'fits' if found['fits'] else 'does not fit'}: {memory['sum'] / GIB:.2f} of {of:.0f} GiB "
        f"a chip (arguments {memory['arguments'] / GIB:.2f}, outputs "
        f"{memory['outputs'] / GIB:.2f}, temporaries {memory['temporaries'] / GIB:.2f}; "
        f"peak {memory['peak'] / GIB:.2f}; at start {memory['start'] / GIB:.2f}, at resume "
        f"{memory['resume'] / GIB:.2f})",
        f"work: {flops['dense'] / 1e12:.1f} TFLOP of products, {flops['kernels'] / 1e12:.1f} of "
        f"attention kernels; the method needs {least['dense'] / 1e12:.1f} and "
        f"{least['attention'] / 1e12:.1f}",
        "sent: "
        + ", ".join(
            f"{kind} {count / 1e9:.3f} GB in {found['collectives']['runs'][kind]:,}"
            for kind, count in sorted(found["collectives"]["bytes"].items())
        )
        + (f"; between slices {across / 1e9:.3f} GB" if across else ""),
        "least time: " + ", ".join(f"{kind} {1e3 * t:,.1f} ms" for kind, t in times.items() if t),
        f"bound by {bound}: MFU at most {found['mfu_bound']:.0%}",
        f"compiled in {found['compile_seconds']:.1f} s",
    ]
