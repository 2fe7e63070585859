"""Compiled programs of earlier processes, found by the content of all that they follow from.

A program that is found is neither traced nor compiled. Its name is a hash of the sources of ftjax,
the versions of what compiles, the machine, JAX's settings, and of what the step is made of: the
configuration, task, method and model, and the shapes and places of its arguments. Where any of that
is of other code, whose sources are not known, nothing is kept.
"""

import dataclasses
import functools
import hashlib
import os
import pickle
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ftjax import cache as files
from ftjax import registry
from ftjax.config.saved import to_json

KIND = "programs"
COMPILERS = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_collections")
KNOWN = ("ftjax", "builtins", *COMPILERS)  # packages whose code the name stands for
SETTINGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # of the environment


class _OfOtherCode(Exception):
    """A part that the name cannot stand for."""


def name_of(*parts: Any) -> str | None:
    """The name of a program that follows from some parts.

    Returns:
        None where programs are not kept: no folder is set for JAX's own, there are several
        processes, a part is of code that is not ftjax's, or a version is not known.
    """
    if not jax.config.jax_compilation_cache_dir or jax.process_count() > 1 or registry.OTHERS:
        return None
    try:
        digest = hashlib.sha256(_surroundings())
        for token in _tokens(parts):
            digest.update(token)
    except (_OfOtherCode, PackageNotFoundError):
        return None
    return digest.hexdigest()


def read(name: str | None) -> jax.stages.Compiled | None:
    """The program of a name; None where there is none, or none that can be read."""
    data = None if name is None else files.read(KIND, name)
    if data is None:
        return None
    try:
        numbers, *parts = pickle.loads(data)
        by_number = {device.id: device for device in jax.devices()}
        devices = [by_number[number] for number in numbers]
        return serialize_executable.deserialize_and_load(*parts, execution_devices=devices)
    except Exception:  # of whatever the compiler says; it is made again
        return None


def write(name: str | None, program: jax.stages.Compiled) -> None:
    """Keeps a program, where the compiler can write it."""
    if name is None:
        return
    try:
        devices = [device.id for device in program.runtime_executable().local_devices()]
        data = pickle.dumps((devices, *serialize_executable.serialize(program)))
    except Exception:  # as of programs that call back
        return
    files.write(KIND, name, lambda file: file.write(data))


@cache
def _surroundings() -> bytes:
    """What holds for all programs of a process."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    settings = {
        key: value
        for key, value in jax.config.values.items()
        if "cache" not in key and "dir" not in key
    }
    device = jax.devices()[0]
    client = device.client
    facts = (
        sys.version,
        [version(package) for package in COMPILERS],
        [os.environ.get(name) for name in SETTINGS],
        sorted((key, repr(value)) for key, value in settings.items()),
        (client.platform, client.platform_version, device.device_kind, jax.device_count()),
        (os.cpu_count(), len(os.sched_getaffinity(0))),
        _processor(),
    )
    digest.update(repr(facts).encode())
    return digest.digest()


def _processor() -> list[str]:
    """The processor's model and what it can do, which programs are compiled for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return [sys.platform]
    return sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})


def _tokens(x: Any) -> Iterator[bytes]:
    """All that a part is made of, in an order; raises `_OfOtherCode`."""
    yield f"<{type(x).__module__}.{type(x).__qualname__} ".encode()
    if (
        x is None
        or x is Ellipsis
        or isinstance(x, str | bytes | int | float | complex | np.generic)
    ):
        yield repr(x).encode()
    elif isinstance(x, ConfigDict):
        yield to_json(x).encode()
    elif isinstance(x, np.dtype | PartitionSpec | jax.sharding.AxisType):
        yield repr(x).encode()
    elif isinstance(x, type | types.ModuleType):
        yield _known(x).encode()
    elif isinstance(x, types.FunctionType | types.BuiltinFunctionType):
        yield _known(x).encode()
        held = [cell.cell_contents for cell in getattr(x, "__closure__", None) or ()]
        yield from _tokens((held, getattr(x, "__defaults__", None)))
    elif isinstance(x, functools.partial):
        yield from _tokens((x.func, x.args, x.keywords))
    elif isinstance(x, re.Pattern):
        yield repr((x.pattern, x.flags)).encode()
    elif isinstance(x, jax.ShapeDtypeStruct):
        weak = x.weak_type
        yield repr((x.shape, str(x.dtype), weak)).encode()
        yield from _tokens(x.sharding)
    elif isinstance(x, NamedSharding):
        yield repr((x.spec, x.memory_kind)).encode()
        yield from _tokens(x.mesh)
    elif isinstance(x, Mesh):
        devices = [device.id for device in x.devices.flat]
        yield repr((x.axis_names, x.devices.shape, devices, x.axis_types)).encode()
    elif isinstance(x, np.ndarray | jax.Array):
        array = np.asarray(x)
        yield repr((array.shape, str(array.dtype))).encode() + array.tobytes()
    elif isinstance(x, Mapping):
        for key in sorted(x, key=repr):
            yield from _tokens((key, x[key]))
    elif isinstance(x, set | frozenset):
        yield from _tokens(sorted(x, key=repr))
    elif isinstance(x, tuple | list | range):
        for item in x:
            yield from _tokens(item)
    elif dataclasses.is_dataclass(x):
        _known(type(x))
        for field in dataclasses.fields(x):
            yield from _tokens((field.name, getattr(x, field.name, None)))
    else:
        raise _OfOtherCode(type(x))
    yield b">"


def _known(x: Any) -> str:
    """The name of a class, a function or a module of `KNOWN`; raises `_OfOtherCode`."""
    module = x.__name__ if isinstance(x, types.ModuleType) else x.__module__
    if (module or "").split(".")[0] not in KNOWN:
        raise _OfOtherCode(x)
    return f"{module}.{getattr(x, '__qualname__', '')}"


def made(name: str | None, compile: Callable[[], jax.stages.Compiled]) -> jax.stages.Compiled:
    """The program of a name, compiled and kept where it is not there."""
    program = read(name)
    if program is None:
        program = compile()
        write(name, program)
    return program
