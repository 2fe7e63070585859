"""The documentation's example of a new method is one, and passes the suite's first invariants."""

import re
import sys
import types
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from ftjax import methods, pretrained
from tests.conftest import build, make_batch, perturbed
from tests.models.random_models import quick

PAGE = Path(__file__).parents[2] / "docs/adding/method.md"


@pytest.fixture
def example(monkeypatch):
    """Registers the example as its two code blocks say."""
    code, entry, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) < 40
    module = types.ModuleType("ftjax.methods.scale")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, vars(module))
    for name, line in eval("{" + entry + "}").items():
        monkeypatch.setitem(methods.METHODS, name, line)
    return "scale"


@pytest.mark.parametrize("segments", ["unrolled", "scan"])
def test_the_new_method_works(example, tiny, one_device, segments):
    batch = make_batch()
    model = build(tiny, {"name": example}, {"segments": segments})
    params, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
    apply, plain = quick(model.apply), quick(partial(model.apply, adapted=False))
    base = plain(params, batch)
    np.testing.assert_array_equal(apply(params, batch), base)
    assert model.partition.counts(model.shapes)[0] == 4 * 32 + 32 * 2 + 2
    moved = perturbed(params, model)
    assert np.abs(apply(moved, batch) - plain(moved, batch)).max() > 1e-3
    other = build(tiny, {"name": example, **methods.find(example).non_identity})
    changed, _ = pretrained.load(tiny, other, one_device, jax.random.key(0))
    assert np.abs(quick(other.apply)(changed, batch) - base).max() > 1e-3
