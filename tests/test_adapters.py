"""Several adapters on one base, against peft and against each adapter alone."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax.core import FrozenDict
from peft.utils import merge_utils

from ftjax import adapters, pretrained
from ftjax.errors import UserError
from ftjax.formats.peft import folder as peft_format
from ftjax.parallel.mesh import make_mesh
from ftjax.partition import merge
from ftjax.testing import HEAD, build, make_batch
from tests.methods.bases import folder
from tests.models.random_models import quick

EMBEDDING = {**HEAD, "head": "embedding"}
LORA = [("lora", "llama"), ("lora", "t5")]
NAMES = ("lora", "houlsby", "prefix_tuning", "dora", "ia3")


@cache
def trained(name: str, base: str = "bert", head: str = "classification", **hyper):
    """A model under a method, and parameters of three random adapters on one base."""
    model = build(base, {"name": name, **hyper}, head={**HEAD, "head": head})
    mesh = make_mesh(devices=jax.devices()[:1])
    params, _ = pretrained.load(folder(base), model, mesh, jax.random.key(0))
    found = []
    for seed in range(3):
        random = np.random.default_rng(seed)
        found.append(
            {
                path: leaf + 0.1 * random.normal(size=leaf.shape).astype(np.float32)
                if model.partition.is_trainable(path)
                else leaf
                for path, leaf in params.items()
            }
        )
    return model, params, found


def apply(model):
    return quick(lambda params, batch: model.apply(params, batch))


@pytest.mark.parametrize(("name", "base"), [*((n, "bert") for n in NAMES), *LORA])
def test_rows_of_a_batch_have_adapters_of_their_own(name, base):
    model, _, found = trained(name, base)
    batch, index = make_batch(base, 6), np.array([0, 2, 1, 1, 0, 2])
    parts = [adapters.split(model, params) for params in found]
    bank, rest = adapters.stack([adapter for adapter, _ in parts]), parts[0][1]
    mixed = quick(lambda bank, batch, i: adapters.apply_mixed(model, rest, bank, batch, i))
    run = apply(model)
    apart = np.stack([np.asarray(run(params, batch)) for params in found])
    np.testing.assert_allclose(mixed(bank, batch, index), apart[index, range(6)], atol=1e-5)
    assert np.abs(apart[0] - apart[1]).max() > 1e-3
    switched = run(merge(adapters.pick(bank, 2), rest), batch)
    np.testing.assert_array_equal(switched, apart[2])


def reference(found, model, tmp_path):
    """peft's model with our adapters, and our combination's outputs are compared with it."""
    theirs = transformers.BertModel.from_pretrained(folder("bert")).eval()
    for number, params in enumerate(found):
        place = tmp_path / str(number)
        peft_format.write(place, folder("bert"), model, params, "")
        if number == 0:
            theirs = peft.PeftModel.from_pretrained(theirs, place, adapter_name="0")
        else:
            theirs.load_adapter(place, adapter_name=str(number))
    return theirs


def test_a_weighted_combination_is_pefts_concatenation(tmp_path):
    model, params, found = trained("lora", head="embedding", rank=3)
    weights = [0.5, -1.0, 2.0]
    theirs = reference(found, model, tmp_path)
    theirs.add_weighted_adapter(["0", "1", "2"], weights, "sum", combination_type="cat")
    theirs.set_adapter("sum")
    batch = make_batch("bert")
    inputs = {name: torch.tensor(batch[name]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        hidden = theirs(**inputs).last_hidden_state[:, 0].numpy()
    whole = adapters.combined([adapters.update(model, p) for p in found], weights)
    larger = build("bert", {"name": "lora", "rank": 9, "alpha": 9.0}, head=EMBEDDING)
    leaves, lost = adapters.to_lora(larger, whole)
    assert max(lost.values()) < 1e-10
    base = {path: params[path] for path in larger.base.shapes}
    np.testing.assert_allclose(apply(larger)({**base, **leaves}, batch), hidden, atol=2e-5)
    plain = build("bert", {"name": "full"}, head=EMBEDDING)
    merged = adapters.added(base, whole)
    np.testing.assert_allclose(apply(plain)(merged, batch), hidden, atol=2e-5)
    back = adapters.added(merged, whole, -1.0)
    for path, leaf in base.items():
        np.testing.assert_allclose(back[path], leaf, atol=1e-5)


def test_rank_is_reduced_to_the_best_of_its_rank():
    """Eckart and Young: what is lost are the singular values left out."""
    model, _, found = trained("lora", rank=6)
    whole = adapters.update(model, found[0])
    smaller = build("bert", {"name": "lora", "rank": 2, "alpha": 5.0})
    leaves, lost = adapters.to_lora(smaller, whole)
    for module, share in lost.items():
        u, s, vt = np.linalg.svd(np.asarray(whole[f"{module}/kernel"], np.float64))
        wanted = (u[:, :2] * s[:2]) @ vt[:2]
        product = np.asarray(leaves[f"{module}/lora_a"] @ leaves[f"{module}/lora_b"]) * 2.5
        np.testing.assert_allclose(product, wanted, atol=1e-5)
        np.testing.assert_allclose(share, (s[2:] ** 2).sum() / (s**2).sum(), rtol=1e-4)
    with pytest.raises(UserError, match="ffn/up/kernel"):
        adapters.to_lora(smaller, {"encoder/layer_0/ffn/up/kernel": jnp.zeros((64, 128))})


def test_ties_by_hand():
    """Two updates of six entries over two leaves, half of each kept."""
    one = {"a": jnp.array([3.0, -1.0, 0.1]), "b": jnp.array([2.0, 0.5, -0.2])}
    two = {"a": jnp.array([-1.0, -4.0, 0.3]), "b": jnp.array([5.0, 0.2, 0.1])}
    merged = adapters.ties([one, two], [1.0, 1.0], density=0.5)
    # Kept: 3, -1, 2 and -1, -4, 5. Signs: +, -, 0 and +, 0, 0. Means of those that agree.
    np.testing.assert_allclose(merged["a"], [3.0, -2.5, 0.0])
    np.testing.assert_allclose(merged["b"], [3.5, 0.0, 0.0])


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_ties_are_pefts_of_all_parameters_together(density):
    """Updates of different parameters, too: where one has none it is zero."""
    random = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": (5,), "c": (2, 2), "d": (6,)}
    updates = [
        {path: random.normal(size=shapes[path]).astype("f") for path in shapes if path != lacking}
        for lacking in ("d", "a", "")
    ]
    pruned, weights = [], [0.5, 2.0, -1.0]
    for each in updates:
        whole = np.concatenate([each.get(p, np.zeros(shapes[p])).ravel() for p in shapes])
        kept = int(density * sum(map(np.size, each.values())))  # a share of what it has
        share = (kept + 0.5) / len(whole)
        pruned.append(merge_utils.prune(torch.tensor(whole), share, "magnitude"))
    wanted = merge_utils.ties(pruned, torch.tensor(weights), 1.0).numpy()
    merged = adapters.ties(updates, weights, density)
    assert set(merged) == set(shapes)
    found = np.concatenate([np.ravel(merged[path]) for path in shapes])
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    with pytest.raises(UserError, match="3 updates have 2 weights"):
        adapters.ties(updates, weights[:2], density)


def test_dare_keeps_the_expectation():
    update = {"a": jnp.ones(40_000)}
    dropped = np.asarray(adapters.dare(update, 0.9, jax.random.key(0))["a"])
    assert set(np.unique(dropped).round(4)) == {0.0, 10.0}
    assert abs(dropped.mean() - 1) < 0.05


def test_what_full_training_changed():
    model, params, found = trained("full")
    whole = adapters.update(model, found[0], params)
    assert set(whole) == {path for path in params if not path.startswith("classifier")}
    plain = adapters.added(params, whole)
    for path in whole:
        np.testing.assert_allclose(plain[path], found[0][path], atol=1e-6)
    with pytest.raises(UserError, match="itself was trained"):
        adapters.update(model, found[0])


@pytest.mark.parametrize("base", [False, True])
def test_updates_over_a_quantized_base(base):
    """They are s A B, and what they are added to is the dequantized base."""
    over = FrozenDict({"name": "lora", "rank": 3, "alpha": 6.0, "targets": "all-linear"})
    model, params, found = trained("qlora", over=over)
    whole = adapters.update(model, found[0], params if base else None)
    modules = model.method.inner.matched(model.base)
    assert set(whole) == {f"{module}/kernel" for module in modules}
    for module in modules:
        a, b = (np.asarray(found[0][f"{module}/lora_{side}"], np.float64) for side in "ab")
        np.testing.assert_allclose(whole[f"{module}/kernel"], 2 * a @ b, atol=1e-5)
    plain, batch = build("bert", {"name": "full"}), make_batch("bert")
    own = {path: x for path, x in found[0].items() if path in plain.shapes}
    merged = adapters.added(own, whole)
    assert all(isinstance(x, jax.Array) for x in merged.values())
    adapted = apply(model)(found[0], batch)
    np.testing.assert_allclose(apply(plain)(merged, batch), adapted, atol=1e-4)
    back = adapters.added(merged, whole, -1.0)
    without = apply(plain)(back, batch)
    assert np.abs(without - adapted).max() > 1e-2
    zero = {p: x * ("lora_" not in p) if hasattr(x, "dtype") else x for p, x in found[0].items()}
    np.testing.assert_allclose(without, apply(model)(zero, batch), atol=1e-4)


def test_a_table_of_words_is_an_update_too():
    """Of rank 3, which LoRA of that rank gives back."""
    targets = ("query", "word_embeddings")
    model, _, found = trained("lora", rank=3, targets=targets)
    whole = adapters.update(model, found[0])
    leaves, lost = adapters.to_lora(model, whole)
    table = found[0]["embeddings/word/lora_a"] @ found[0]["embeddings/word/lora_b"]
    again = leaves["embeddings/word/lora_a"] @ leaves["embeddings/word/lora_b"]
    np.testing.assert_allclose(again, table, atol=1e-4)
    assert max(lost.values()) < 1e-10


def test_a_quantized_base_takes_an_update_as_lora():
    """Of ranks by module; the update is the product again."""
    pattern = (("key", 6), (r"layer_1\.attention\.query", 5))
    over = FrozenDict({"name": "rslora", "rank": 4, "alpha": 6.0, "rank_pattern": pattern})
    over = over.copy({"targets": ("query", "key")})
    model, _, found = trained("qlora", over=over)
    whole = adapters.update(model, found[0])
    leaves, lost = adapters.to_lora(model, whole)
    assert {path for path in found[0] if "/lora_" in path} == set(leaves)
    assert max(lost.values()) < 1e-6
    for path, leaf in leaves.items():
        assert leaf.shape == model.shapes[path].shape
    for path, delta in whole.items():
        module = path.removesuffix("/kernel")
        rank = 6 if "key" in path else 5 if "layer_1" in path else 4
        product = 6.0 / rank**0.5 * leaves[f"{module}/lora_a"] @ leaves[f"{module}/lora_b"]
        np.testing.assert_allclose(product, delta, atol=1e-4)


@pytest.mark.parametrize("name", ["dora", "adalora", "pissa", "ia3"])
def test_what_has_more_than_loras_leaves_takes_no_update(name):
    with pytest.raises(UserError, match=rf"{name} has more than LoRA's leaves"):
        adapters.to_lora(build("bert", {"name": name}), {})


def test_adapters_that_differ_are_named():
    small, large = trained("lora", rank=2), trained("lora", rank=4)
    parts = [adapters.split(model, found[0])[0] for model, _, found in (small, large)]
    with pytest.raises(UserError, match=r"differ in .*lora_a"):
        adapters.stack(parts)
