"""Every model computes the same however its layers are run."""

import re
from itertools import cycle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.models.stack import POLICIES, matching_segments
from tests.models.cases import CASES
from tests.models.random_models import (
    build,
    by_layers,
    config_of,
    difference,
    inputs,
    natural,
    parameters,
    quick,
    unstacked,
)

# One for each way of stacking layers; the other cases share theirs. By `--all`.
EVERY_POLICY = {"bert", "albert", "deberta-v3", "llama", "gemma2", "t5", "bart"}
# One for each way of calling the attention core: a mask alone, a bias, grouped heads, a window.


def odd(layers: int) -> tuple[int, ...]:
    """Segments of one, two and the rest of the layers."""
    return tuple(n for n in (1, 2, layers - 3) if n > 0) if layers > 2 else (layers,)


def computed(case: str, segments: str | tuple[int, ...] = "unrolled", remat: str = "none"):
    """Outputs, and gradients of their mean square by unrolled name."""
    model = build(case, natural(case), segments=segments, remat=remat)

    @quick
    def run(params, batch):
        def loss(params):
            out = model.apply(params, batch)
            return jnp.square(out).mean(), out

        return jax.grad(loss, has_aux=True)(params)

    grads, out = run(parameters(model), inputs(case))
    return np.asarray(out), unstacked(grads)


@pytest.mark.parametrize("case", by_layers())
def test_segments_and_remat_change_nothing(case, parity, request):
    """By one policy of what is computed again a case; by `--all` some by each."""
    wanted, wanted_grads = computed(case)
    largest = max(np.abs(grad).max() for grad in wanted_grads.values())
    segments = odd(build(case, None).config.num_hidden_layers)
    number = [*CASES].index(case)
    layouts = [((segments, "scan")[number % 2], [*POLICIES][number % len(POLICIES)])]
    if case in EVERY_POLICY and request.config.getoption("--all"):
        layouts = zip(cycle(["scan", segments, "unrolled"]), POLICIES, strict=False)
    for layout in layouts:
        found, grads = computed(case, *layout)
        assert grads.keys() == wanted_grads.keys()
        errors = [difference(grads[name], grad, largest) for name, grad in wanted_grads.items()]
        parity.record(case, natural(case), "scan/remat", difference(found, wanted), limit=1e-5)
        parity.record(case, natural(case), "scan/remat", max(errors), limit=1e-4)


def test_a_decoder_is_cut_where_its_encoder_is():
    assert matching_segments((1, 1), 3) == (1, 1, 1)
    assert matching_segments((6,), 6) == (6,)
    assert matching_segments((4, 2), 6) == (4, 2)
    assert matching_segments((4, 2), 8) == (4, 2, 2)
    assert matching_segments((4, 8), 3) == (3,)
    assert matching_segments((1, 11), 6) == (1, 5)


@pytest.mark.parametrize("case", ["bert", "deberta-v3", "gemma2", "t5", "bart"])
def test_a_method_cuts_the_stacks_where_it_needs(case):
    config = config_of(case) | {"num_decoder_layers": 2, "decoder_layers": 2}  # as in the encoder
    method = methods.create({"name": "top_k", "k": 1})
    model = build_tuned(config, method, {"segments": "scan"}, {"head": "classification"})
    trained = {path for path in model.shapes if model.partition.is_trainable(path)}
    last = {path for path in model.shapes if path.startswith(f"{model.base.layers[-1]}/")}
    assert last and last <= trained
    others = {path for path in model.shapes if re.search(r"layers?_\d", path)} - last
    assert others and not others & trained
