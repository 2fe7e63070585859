"""LoHa's two ways to its update: equal, and the one that costs less is taken."""

import jax
import numpy as np
import pytest
import torch

from ftjax.methods.loha import difference, hadamard_factors, whole_is_cheaper

LEAVES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def shapes(size, rank, features):
    return {n: (rank, features) if n.endswith("a") else (size, rank) for n in LEAVES}


@pytest.mark.parametrize(("size", "rank", "features"), [(48, 4, 80), (80, 12, 24)])
def test_both_are_the_product_of_two_products(size, rank, features):
    random = np.random.default_rng(0)
    leaves = {n: random.normal(size=s) for n, s in shapes(size, rank, features).items()}
    one, two = (torch.tensor(leaves[f"hada_w{i}_b"] @ leaves[f"hada_w{i}_a"]) for i in (1, 2))
    wanted = (one * two).numpy()  # peft's HadaWeight
    narrow = {name: leaf.astype(np.float32) for name, leaf in leaves.items()}
    left, right = hadamard_factors(**narrow)
    np.testing.assert_allclose(difference(**narrow), wanted, atol=1e-4)
    np.testing.assert_allclose(left @ right, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "size", "rank", "features"),
    [
        (64, 128, 4, 128),
        (64, 128, 16, 128),
        (4, 128, 12, 128),
        (512, 128, 6, 512),
        (512, 128, 16, 64),
        (64, 512, 8, 32),
    ],
)
def test_the_cheaper_by_the_compilers_count(rows, size, rank, features):
    leaves = {
        name: jax.ShapeDtypeStruct(shape, np.float32)
        for name, shape in shapes(size, rank, features).items()
    }
    x = jax.ShapeDtypeStruct((rows, size), np.float32)

    def flops(function):
        return jax.jit(function).lower(x, leaves).compile().cost_analysis()["flops"]

    def by_factors(x, leaves):
        left, right = hadamard_factors(**leaves)
        return x @ left @ right

    whole = flops(lambda x, leaves: x @ difference(**leaves))
    assert whole_is_cheaper(rows, size, rank, features) == (whole < flops(by_factors))
