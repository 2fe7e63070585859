"""The fused kernels that scripts/fused_cross_entropy.py measures, interpreted, against chunks."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_loss_and_gradients_are_those_of_chunks(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import fused_cross_entropy as script

    for name in ("TOKENS", "WORDS", "FEATURES"):
        monkeypatch.setattr(script, name, 16)
    random = np.random.default_rng(0)
    x, kernel = (random.normal(size=n).astype(np.float32) for n in ((2, 16, 32), (32, 48)))
    targets = random.integers(0, 48, (2, 16))
    weights = (random.random((2, 16)) > 0.2).astype(np.float32)

    def fused(x, kernel):
        flat = x.reshape(-1, 32), kernel, jnp.asarray(targets.ravel()), weights.ravel()
        return script.fused(*flat, True)

    def chunks(x, kernel):
        return script.of_chunks(x, kernel, jnp.asarray(targets), weights)

    found = jax.jit(jax.value_and_grad(fused, (0, 1)))(x, kernel)
    wanted = jax.jit(jax.value_and_grad(chunks, (0, 1)))(x, kernel)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
