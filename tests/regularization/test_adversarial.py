"""Gradients at adversarial words, as in torch by hand, and what they cost."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import jax
import numpy as np
import pytest
import torch

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.forecast.least_work import Least
from ftjax.forecast.lowering import abstract_recipe, compiled
from ftjax.formats.folder import read_config
from ftjax.formats.hf import mapping
from ftjax.parallel.mesh import make_mesh
from ftjax.regularization.words import key_of, noise
from ftjax.testing import build, make_batch
from tests.conftest import perturbed
from tests.forecast.abstract import config_of as abstract
from tests.forecast.abstract import write_config
from tests.methods.bases import folder as base_folder
from tests.models.reference import LABELS, Reference
from tests.regularization.settings import config_of, differentiated

EPSILON, STEP, STEPS = 0.7, 0.4, 3
SCAN = {"segments": "scan"}  # quickly compiled
KINDS = ("fgm", "pgd", "freelb")
SETTINGS = {"epsilon": EPSILON, "step_size": STEP, "steps": STEPS}
# Family → where it looks up the words that are moved.
LOOKUPS = {"bert": "bert.embeddings.word_embeddings", "llama": "model.embed_tokens"}
LOOKUPS |= {"bart": "model.encoder.embed_tokens"}


class Theirs:
    """A model of transformers whose embedded words can be moved, and its gradients."""

    def __init__(self, reference, case, batch):
        self.model, self.reference, self.batch = reference.model, reference, batch
        lookup = reference.model.get_submodule(LOOKUPS[case])
        scale = float(getattr(lookup, "embed_scale", 1.0))  # of the table's units
        lookup.register_forward_hook(lambda module, ids, x: x + scale * self.shift)
        self.size = lookup.weight.shape[1]

    def gradients(self, shift):
        """(of parameters, of the shift)."""
        self.model.zero_grad()
        self.shift = shift.clone().requires_grad_()
        logits = self.model(**self.reference.inputs(self.batch["inputs"])).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(self.batch["labels"]))
        loss.backward()
        named = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        return loss.item(), named, self.shift.grad


def norm(x):
    return x.flatten(1).norm(dim=1)[:, None, None]


def climbed(shift, slope):
    shift = shift + STEP * slope / norm(slope)
    outside = norm(shift) > EPSILON
    return torch.where(outside, shift * EPSILON / norm(shift), shift)


def by_hand(kind, theirs, first):
    """As the techniques are commonly written: backward passes that add gradients up."""
    shift, losses, sums = torch.zeros_like(first), [], {}

    def backward(shift, share=1.0):
        loss, named, slope = theirs.gradients(shift)
        losses.append(share * loss)
        for name, grad in named.items():
            sums[name] = sums.get(name, 0) + share * grad
        return slope

    if kind == "freelb":
        shift = first
        for _ in range(STEPS):
            shift = climbed(shift, backward(shift, 1 / STEPS))
        return sum(losses), sums
    slope = backward(shift)
    if kind == "fgm":
        backward(EPSILON * slope / norm(slope))
        return sum(losses), sums
    for step in range(STEPS):
        shift = climbed(shift, slope)
        if step < STEPS - 1:
            slope = theirs.gradients(shift)[2]
    backward(shift)
    return sum(losses), sums


@cache
def pair(case):
    """(ours, its parameters, a batch, theirs)."""
    folder = Path(mkdtemp(prefix=f"ftjax_{case}_"))
    reference = Reference.make(case, "classification", folder)
    head = {"head": "classification", "labels": LABELS}
    model = build_tuned(read_config(folder), methods.create({"name": "full"}), SCAN, head)
    mesh = make_mesh(devices=jax.devices()[:1])
    params, _ = pretrained.load(folder, model, mesh, jax.random.key(0))
    inputs = reference.layouts()[0]
    rows = len(inputs["input_ids"])
    more = {"labels": np.arange(rows) % LABELS, "weights": np.ones(rows, np.float32)}
    theirs = Theirs(reference, case, {"inputs": inputs, **more})
    return model, params, {**inputs, **more}, theirs


@pytest.mark.parametrize(
    ("case", "kind"), [*(("bert", kind) for kind in KINDS), ("llama", "freelb"), ("bart", "fgm")]
)
def test_gradients_are_those_of_torch_by_hand(case, kind):
    model, params, batch, theirs = pair(case)
    config = config_of(adversarial=kind, **SETTINGS)
    # Each row is random in its own ball, and not at its middle.
    first = torch.tensor(
        np.array(noise(key_of("freelb", jax.random.key(0)), batch, theirs.size, EPSILON))
    )
    assert (norm(first) > 0.2 * EPSILON).all() and (norm(first) < EPSILON).all()
    wanted_loss, wanted = by_hand(kind, theirs, first)
    loss, grads = differentiated(config, model, params, batch, dropout=False)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-4)
    found = mapping.to_tensors(grads, model.names, prefix=True)
    assert set(wanted) <= set(found)
    for name, grad in wanted.items():
        largest = np.abs(grad.numpy()).max()
        np.testing.assert_allclose(found[name], grad, atol=1e-3 * max(largest, 1e-2), err_msg=name)


def test_neither_microbatches_nor_packing_matter(one_device):
    """Rows of uneven lengths, with virtual tokens; norms are of examples, wherever they lie."""
    head = {"head": "classification", "labels": 2, "pooling": "mean"}
    model = build("bert", {"name": "prompt_tuning"}, SCAN, head)
    params, _ = pretrained.load(base_folder("bert"), model, one_device, jax.random.key(0))
    params, batch = perturbed(params, model), make_batch("bert", 4, 7)
    config = config_of(adversarial="fgm", **SETTINGS)
    loss, grads = differentiated(config, model, params, batch, dropout=False)
    sizes = batch["attention_mask"].sum(1)
    rows = [[0, 1, 2], [3]]
    length, places = max(sizes[row].sum() for row in rows), 3
    packed = {
        name: np.zeros((2, length), np.int32)
        for name in ("input_ids", "segment_ids", "position_ids")
    }
    packed |= {name: np.zeros((2, places), np.int32) for name in ("starts", "labels")}
    packed["weights"] = np.zeros((2, places), np.float32)
    for row, examples in enumerate(rows):
        start = 0
        for place, i in enumerate(examples):
            here = (row, slice(start, start + sizes[i]))
            packed["input_ids"][here] = batch["input_ids"][i, : sizes[i]]
            packed["segment_ids"][here] = place + 1
            packed["position_ids"][here] = np.arange(sizes[i])
            packed["starts"][row, place], packed["labels"][row, place] = start, batch["labels"][i]
            packed["weights"][row, place] = 1
            start += sizes[i]
    others = [
        differentiated(config, model, params, packed, dropout=False),
        differentiated(config, model, params, batch, parts=4, dropout=False),
    ]
    rounding = 1e-4 * max(float(np.abs(grad).max()) for grad in grads.values())
    for other_loss, other in others:
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        for path, grad in grads.items():
            np.testing.assert_allclose(other[path], grad, atol=rounding, err_msg=path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_a_step_needs(llama, method):
    """FGM two passes; PGD two more, which have no gradients of kernels; FreeLB three."""
    kinds = {kind: abstract(llama, method, regularization_adversarial=kind) for kind in KINDS}
    least = {kind: Least(config)()["dense"] for kind, config in kinds.items()}
    plain = Least(abstract(llama, method))()["dense"]
    assert 2 * plain <= least["fgm"] < 2.1 * plain
    assert least["fgm"] + 2 * 0.6 * plain < least["pgd"] < 4.2 * plain
    assert 3 * plain <= least["freelb"] < 3.2 * plain


def test_frozen_leaves_cost_no_gradients(llama):
    """As compiled: what FGM's step with LoRA takes is twice what it takes without."""

    def flops(kind):
        config = abstract(llama, "lora", regularization_adversarial=kind, model_segments="scan")
        program, _ = compiled(abstract_recipe(config), make_mesh(devices=jax.devices()[:1]))
        return program.cost_analysis()["flops"]

    plain = flops("none")
    assert 1.9 * plain < flops("fgm") < 2.1 * plain
