"""Programs of earlier processes are used for what they were compiled for, and for nothing else."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax import registry
from ftjax.parallel.mesh import batch_sharding
from ftjax.regularization.l2_sp import starts
from ftjax.tasks.classification import Classification
from ftjax.training import kept_programs
from ftjax.training.programs import Programs

SHAPE = jax.ShapeDtypeStruct((4,), jnp.float32)


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    yield tmp_path / "programs"
    jax.config.update("jax_compilation_cache_dir", before)


def program(parts, factor=2.0, traced=None):
    """x → factor · x, by way of what is kept."""

    def lower():
        if traced is not None:
            traced.append(factor)
        return jax.jit(lambda x: x * factor, donate_argnums=0).lower(SHAPE)

    programs = Programs()
    programs.begin("x", lower, parts=parts)
    return programs("x")


def test_what_is_kept_is_not_traced_again(kept):
    traced = []
    for _ in range(2):
        x = jnp.arange(4.0)
        np.testing.assert_array_equal(program(("a", SHAPE), traced=traced)(x), [0, 2, 4, 6])
        assert x.is_deleted()  # as it was donated
    assert traced == [2.0]
    assert len(list(kept.iterdir())) == 1
    program(("b", SHAPE), 3.0, traced)
    program((), 4.0, traced)
    program((), 4.0, traced)
    assert traced == [2.0, 3.0, 4.0, 4.0]


def test_damage_is_compiled_anew(kept):
    traced = []
    program(("a",), traced=traced)
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    np.testing.assert_array_equal(program(("a",), traced=traced)(jnp.ones(4)), np.full(4, 2))
    assert traced == [2.0, 2.0]


def parts_of(one_device):
    """Parts that differ each from the others, in one thing."""
    table, sharded = np.arange(6), jax.ShapeDtypeStruct((4,), np.float32)
    return [
        (1,),
        (1.0,),
        ("1",),
        (True,),
        ((1, 2), 3),
        (1, (2, 3)),
        ({"a": 1, "b": 2},),
        ({"a": 2, "b": 1},),
        (table,),
        (table[::-1],),
        (table.astype(np.int32),),
        (table.reshape(2, 3),),
        (np.append(np.zeros(5000), 1),),  # whose repr is cut
        (np.append(np.zeros(5000), 2),),
        (sharded,),
        (sharded.update(sharding=batch_sharding(one_device)),),
        (Classification(),),
        (Classification(class_weights="balanced"),),
        (dataclasses.replace(Classification(), label_smoothing=0.1),),
        (partial(starts, 1),),
        (partial(starts, 2),),
        (starts,),
        (jnp.float32,),
        (np.dtype("float32"),),
    ]


def test_names_tell_parts_apart(one_device):
    names = [kept_programs.name_of(*parts) for parts in parts_of(one_device)]
    assert None not in names and len({*names}) == len(names)
    assert names == [kept_programs.name_of(*parts) for parts in parts_of(one_device)]


SURROUNDINGS = {
    "code": lambda patch: patch.setattr(
        kept_programs.Path, "read_bytes", lambda path: b"other code", raising=True
    ),
    "versions": lambda patch: patch.setattr(kept_programs, "version", lambda _: "0"),
    "flags": lambda patch: patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
    "machine": lambda patch: patch.setattr(kept_programs, "_processor", lambda: ["another"]),
    "settings": lambda _: jax.config.update("jax_default_matmul_precision", "highest"),
}


@pytest.mark.parametrize("changed", SURROUNDINGS)
def test_other_surroundings_have_other_names(changed, monkeypatch):
    def fresh():
        kept_programs._surroundings.cache_clear()
        return kept_programs.name_of("a")

    before = jax.config.jax_default_matmul_precision
    try:
        name = fresh()
        assert fresh() == name
        SURROUNDINGS[changed](monkeypatch)
        assert fresh() != name
    finally:
        jax.config.update("jax_default_matmul_precision", before)
        monkeypatch.undo()
        kept_programs._surroundings.cache_clear()


class Foreign:
    """Code that no name stands for."""


@pytest.mark.parametrize("part", [Foreign(), Foreign, lambda: 0, partial(lambda: 0), object()])
def test_other_code_is_not_kept(part):
    assert kept_programs.name_of("a", part) is None


def test_nothing_is_kept_of_runs_with_others_methods(monkeypatch):
    assert kept_programs.name_of("a")
    monkeypatch.setattr(registry, "OTHERS", {"mypackage.scale"})
    assert kept_programs.name_of("a") is None
    monkeypatch.undo()
    jax.config.update("jax_compilation_cache_dir", None)
    assert kept_programs.name_of("a") is None


def test_programs_of_a_mesh_are_of_its_devices():
    """Also where those are not all that there are."""
    devices = np.array(jax.devices()[::-1][:2])
    mesh = jax.sharding.Mesh(devices, ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    shape, outputs = SHAPE.update(sharding=spread), []
    for _ in range(2):
        programs = Programs()
        double = jax.jit(lambda x: 2 * x, out_shardings=spread)
        programs.begin("x", lambda double=double: double.lower(shape), parts=("mesh", shape))
        outputs.append(programs("x")(jax.device_put(jnp.arange(4.0), spread)))
    for output in outputs:
        np.testing.assert_array_equal(output, [0, 2, 4, 6])
        assert output.sharding == spread
