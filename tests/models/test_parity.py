"""Every head of every family equals transformers'; `pytest --parity` writes PARITY.md of it."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.formats.folder import Weights, read_config
from ftjax.formats.hf import mapping
from ftjax.models import FAMILIES
from tests.covering import covering, product
from tests.models.cases import CASES, DISTINCT
from tests.models.random_models import kind_of, natural
from tests.models.reference import LABELS, SHARD, Reference, difference, real, registered
from tests.parity import FILE, VERIFIED

GRADIENTS = {
    ("bert", "classification"),
    ("gpt2", "causal_lm"),
    ("llama", "causal_lm"),
    ("t5", "seq2seq_lm"),
}
QUICK = {"xla_backend_optimization_level": 0}  # small models are compiled longer than run


def build(config, head, dtype="float32"):
    settings, task = {"dtype": dtype}, {"head": head, "labels": LABELS}
    return build_tuned(config, methods.create({"name": "full"}), settings, task)


def applied(model):
    """What a model says of a batch, jitted, as a list."""

    @partial(jax.jit, compiler_options=QUICK)
    def run(params, batch):
        return jax.tree.leaves(model.apply(params, batch))

    return lambda params, batch: [np.asarray(out) for out in run(params, batch)]


def said(reference, batch):
    """What transformers' model says of a batch."""
    with torch.no_grad():
        return [out.numpy() for out in reference.outputs(batch)]


HEADS = registered()
KINDS = [(case, head, (kind_of(case), head)) for case, head in HEADS]  # reads the first, the last
# Their language models' heads, and classifiers of layers that no other family's has.
OWN = ("albert", "distilbert", "electra", "deberta-v3", "modernbert", "xlnet", "bart")
USUAL = {(case, natural(case)) for case in CASES} | {(case, "classification") for case in OWN}
FEW = [each[:2] for each in covering(KINDS, [each for each in KINDS if each[:2] in USUAL])]


@pytest.mark.parametrize(("case", "head"), product(HEADS, FEW))
def test_equals_transformers(case, head, one_device, tmp_path, parity, pytestconfig):
    """In bfloat16 by the head that a case was pretrained with, where layers differ; or for all."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    reference = Reference.make(case, head, theirs)
    config = read_config(theirs)
    model = build(config, head)
    params, absent = pretrained.load(theirs, model, one_device, jax.random.key(0))
    assert not absent
    run, layouts = applied(model), reference.layouts()
    outputs = [said(reference, batch) for batch in layouts]
    for batch, wanted in zip(layouts, outputs, strict=True):
        error = difference(batch, run(params, batch), wanted)
        parity.record(case, head, "logits", error, limit=1e-4)

    if (
        (head == natural(case) and case in DISTINCT)
        or pytestconfig.getoption("--all")
        or pytestconfig.getoption("--parity")
    ):
        error = narrow_difference(config, head, run, params, layouts[0])
        parity.record(case, head, "bfloat16", error, limit=3e-2)

    tensors = mapping.to_tensors(params, model.names, prefix=True)
    mapping.write_folder(ours, theirs, config, tensors, shard_bytes=SHARD)
    wanted = Weights(theirs)
    assert set(tensors) == set(wanted)
    for name, array in Weights(ours).items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    loaded, info = type(reference.model).from_pretrained(ours, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = said(Reference(head, loaded.eval()), layouts[0])
    parity.record(case, head, "round trip", difference(layouts[0], again, outputs[0]), limit=1e-6)

    if (case, head) in GRADIENTS:
        error = gradient_difference(reference, model, params, layouts[0])
        parity.record(case, head, "gradients", error, limit=1e-4)


def narrow_difference(config, head, run, params, batch):
    """Of outputs computed in bfloat16, by projections divided by 3."""
    calm = {path: leaf / 3 if path.endswith("kernel") else leaf for path, leaf in params.items()}
    if "num_local_experts" in config:  # rounding may change which experts are chosen: take all
        config = {**config, "num_experts_per_tok": config["num_local_experts"]}
        run = applied(build(config, head))
    narrow = applied(build(config, head, "bfloat16"))
    return difference(batch, narrow(calm, batch), run(calm, batch))


def gradient_difference(reference, model, params, batch):
    """Of the gradients of a mean cross entropy; relative to the tensor's largest, or to a
    hundredth of the largest of all (a key's bias has none but for rounding)."""
    logits = reference.outputs(batch)[0]
    where = real(batch, logits)
    labels = np.random.default_rng(2).integers(0, logits.shape[-1], where.sum())
    torch.nn.functional.cross_entropy(logits[where], torch.tensor(labels)).backward()
    wanted = {name: leaf.grad.numpy() for name, leaf in reference.model.named_parameters()}

    @partial(jax.jit, compiler_options=QUICK)
    def gradients(params):
        def loss(params):
            logits = jax.nn.log_softmax(model.apply(params, batch)[where])
            return -jnp.mean(logits[np.arange(len(labels)), labels])

        return jax.grad(loss)(params)

    found = mapping.to_tensors(gradients(params), model.names, prefix=True)
    assert set(found) == set(wanted)
    largest = max(np.abs(leaf).max() for leaf in wanted.values())
    return max(
        np.abs(found[name] - leaf).max() / max(np.abs(leaf).max(), 1e-2 * largest)
        for name, leaf in wanted.items()
    )


@pytest.mark.parametrize("case", CASES)
def test_folders_of_bare_models_are_read(case, one_device, tmp_path):
    reference = transformers.AutoModel.from_config(CASES[case]())
    reference.save_pretrained(tmp_path)
    model = build(read_config(tmp_path), None)
    params, _ = pretrained.load(tmp_path, model, one_device, jax.random.key(0))
    tensors, wanted = mapping.to_tensors(params, model.names, prefix=False), Weights(tmp_path)
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    left = {name for name in set(wanted) - set(tensors) if "pooler" not in name}
    if case == "marian":  # constants, which are computed
        left -= {"encoder.embed_positions.weight", "decoder.embed_positions.weight"}
    assert not left


def test_every_head_has_its_row(pytestconfig):
    if not pytestconfig.getoption("--parity"):  # this run writes the file when it ends
        lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        rows = {(case, head): results for case, head, *results in cells}
        for case, head in registered():
            assert all(rows.get((case, head), [""])[:3]), (case, head)
            assert "failed" not in " ".join(rows[case, head]), (case, head)
        verified = json.loads(VERIFIED.read_text(encoding="utf-8"))
        for case, head in registered():
            checks = verified[CASES[case]().model_type][head]
            assert {"logits", "bfloat16", "round trip"} <= set(checks), (case, head)
        assert set(verified) == set(FAMILIES)
