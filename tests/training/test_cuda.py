"""The step lowers for GPUs, where none is there to run it."""

import jax
import pytest

from ftjax.parallel.mesh import logical_axes, make_mesh
from ftjax.tasks.causal_lm import CausalLM
from ftjax.training.ahead import abstract_batch, abstract_recipe, abstract_state
from tests.training.abstract import config_of, write_config


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_step_lowers_for_cuda(tmp_path, method, dtype):
    """For one GPU, and for eight: kernels of TPUs are not in it, products are."""
    config = config_of(write_config(tmp_path), method, model_dtype=dtype, mesh_fsdp=8, mesh_data=1)
    recipe = abstract_recipe(config, "gpu")
    mesh = make_mesh(1, 8, 1)
    state, frozen = abstract_state(recipe, mesh)
    batch = abstract_batch(config, CausalLM())
    step = jax.jit(recipe.step(recipe.tuned.at_step(0)))
    with logical_axes(mesh):
        text = jax.export.export(step, platforms=["cuda"])(state, frozen, batch).mlir_module()
    assert "dot_general" in text and "tpu_custom_call" not in text
