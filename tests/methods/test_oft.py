"""Rotations equal `peft`'s, of any number of terms."""

import numpy as np
import pytest
import torch
from peft.tuners.oft.layer import OFTRotationModule

from ftjax.methods.oft import rotation, skew


@pytest.mark.parametrize("terms", [3, 4, 5, 8])
def test_series_is_pefts(terms):
    entries = np.random.default_rng(0).normal(0, 0.3, (4, 15)).astype(np.float32)
    theirs = OFTRotationModule(4, 15, 6, 24)._cayley_batch(torch.tensor(entries), 6, True, terms)
    found = rotation(skew(entries, 6), True, terms)
    np.testing.assert_allclose(found, theirs.numpy(), rtol=0, atol=1e-5)
