"""The step lowers for GPUs, where none is there to run it."""

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from ftjax.forecast.lowering import abstract_batch, abstract_recipe, abstract_state
from ftjax.parallel.mesh import logical_axes, make_mesh
from ftjax.tasks.causal_lm import CausalLM
from tests.forecast.abstract import config_of, write_config


def lowered(folder, method: str, **changes) -> str:
    """The program of a step over eight GPUs."""
    config = config_of(write_config(folder), method, mesh_fsdp=8, mesh_data=1, **changes)
    recipe = abstract_recipe(config, "gpu")
    mesh = make_mesh(1, 8, 1)
    state, frozen = abstract_state(recipe, mesh)
    batch = abstract_batch(config, CausalLM())
    step = jax.jit(recipe.step(recipe.tuned.at_step(0)))
    with logical_axes(mesh):
        return step.trace(state, frozen, batch).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_step_lowers_for_cuda(tmp_path, method, dtype):
    """Kernels of TPUs are not in it, products are."""
    text = lowered(tmp_path, method, model_dtype=dtype)
    assert "dot_general" in text and "tpu_custom_call" not in text


@pytest.mark.parametrize("remat", ["none", "full"])
def test_it_attends_by_cudnn(tmp_path, remat, monkeypatch):
    # cuDNN is not here: JAX asks for its version, and checks the rest as it is.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91002)
    options = {"model_dtype": "bfloat16", "model_segments": "scan", "model_remat": remat}
    text = lowered(tmp_path, "lora", **options)
    assert "@__cudnn$fmhaSoftmax(" in text and "@__cudnn$fmhaSoftmaxBackward(" in text
    assert "fmhaScaleBias" not in text  # no mask is given
