"""Ranks and alphas by module, in PEFT's folders and out, on projections that are stored as one.

Configurations are drawn at random. Outputs, and gradients of every factor, are `peft`'s.
"""

import json
from collections import defaultdict

import numpy as np
import peft
import pytest
import torch

from ftjax.errors import UserError
from ftjax.formats.peft import folder as files
from ftjax.methods import create
from ftjax.paths import expand
from tests.formats.bounds import bounded
from tests.formats.test_peft_saved import ENDLESS
from tests.methods.peft_cases import base_of, stepper, their_logits, their_loss
from tests.models.random_models import quick

LORA = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
LORA["dora, rank_stabilized"] = {"use_dora": True, "use_rslora": True}
TARGETS = {
    "gpt2": ["c_attn", "mlp.c_proj", "c_fc"],
    "phi3": ["qkv_proj", "gate_up_proj", "o_proj"],
    "bert": ["query", "value", "output.dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "t5": ["q", "v", "wo"],
}
LAYERS = {  # in brackets, since peft sorts the keys that it saves, and the first decides
    "gpt2": r"(h.{}.attn.c_attn)",
    "phi3": r"(layers\.{}\..*qkv_proj)",
    "bert": r"(layer.{}..*query)",
    "llama": r"(layers.{}.self_attn.v_proj)",
    "t5": r"(decoder.block.{}.layer.[01].*q)",
}
CASES = [
    ("gpt2", "lora"),
    ("gpt2", "dora, rank_stabilized"),
    ("phi3", "rslora"),
    ("phi3", "dora"),
    ("bert", "loha"),
    ("llama", "lokr"),
    ("t5", "lora"),
]


def drawn(family, name, seed):
    """A configuration of peft's, of random ranks and alphas for random modules."""
    random = np.random.default_rng(seed)
    targets = TARGETS[family]

    def pattern(values):
        first = LAYERS[family].format(int(random.integers(2)))  # of one layer, before all of it
        keys = [first, *random.permutation(targets)[:2]]
        return {str(key): value for key, value in zip(keys, values(len(keys)), strict=True)}

    ranks = pattern(lambda n: [int(r) for r in random.integers(1, 7, n)])
    alphas = pattern(lambda n: [float(a) for a in random.integers(1, 20, n)])
    task = "SEQ_2_SEQ_LM" if family == "t5" else "SEQ_CLS"
    same = {"task_type": task, "target_modules": targets, "r": int(random.integers(1, 7))}
    same |= {"rank_pattern": ranks, "alpha_pattern": alphas}
    if name in LORA:
        turned = {"fan_in_fan_out": True} if family == "gpt2" else {}
        return peft.LoraConfig(lora_alpha=7.0, **LORA[name], **turned, **same)
    return {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[name](alpha=7.0, **same)


def theirs_of(base, config):
    torch.manual_seed(1)
    model = peft.get_peft_model(base.copy(), config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if any(kind in name for kind in ("lora_", "hada_", "lokr_", "ia3_")):
                tensor += 0.2 * torch.randn_like(tensor)
    return model


def near(found, wanted, least=0.0, limit=1e-5):
    assert np.abs(found - wanted).max() < limit * max(np.abs(wanted).max(), least)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_random_patterns_are_pefts(family, name, tmp_path, tmp_path_factory):
    base = base_of(family, tmp_path_factory.getbasetemp())
    theirs = theirs_of(base, drawn(family, name, seed=len(family + name)))
    theirs.save_pretrained(tmp_path / "theirs")
    model = base.under(files.read(tmp_path / "theirs"))
    params, absent = files.load_into(model, base.moved(model), tmp_path / "theirs")
    assert not absent
    step = stepper(model, base, 0.1)
    _, _, logits, grads = step(*model.partition.split(params))
    wanted = their_logits(theirs, base.batch)
    near(logits, wanted.detach().numpy())
    other = step(*model.partition.split(base.moved(model, 9)))[2]
    assert np.abs(other - logits).max() > 1e-2
    their_loss(wanted, base.labels).backward()
    compare_gradients(model, grads, theirs)
    files.write(tmp_path / "ours", base.folder, model, params)
    again = peft.PeftModel.from_pretrained(base.copy(), tmp_path / "ours").eval()
    with torch.no_grad():
        near(their_logits(again, base.batch).numpy(), wanted.detach().numpy())
    back = base.under(files.read(tmp_path / "ours"))
    found, _ = files.load_into(back, base.moved(back, 5), tmp_path / "ours")
    if back.method == model.method:  # and so the step that is compiled
        again = step(*back.partition.split(found))[2]
    else:
        again = quick(back.apply)(found, base.batch)
    near(again, wanted.detach().numpy())


@pytest.mark.parametrize(
    ("targets", "inputs"),
    [
        (["attn.c_proj", "mlp.c_proj"], ["mlp.c_proj"]),  # one short name, of two kinds
        (["c_attn", "c_fc"], ["c_attn", "c_fc"]),  # no output is rescaled
    ],
)
def test_projections_whose_input_is_rescaled(targets, inputs, tmp_path, tmp_path_factory):
    base = base_of("gpt2", tmp_path_factory.getbasetemp())
    same = {"task_type": "SEQ_CLS", "fan_in_fan_out": True}
    config = peft.IA3Config(target_modules=targets, feedforward_modules=inputs, **same)
    theirs = theirs_of(base, config)
    theirs.save_pretrained(tmp_path / "theirs")
    model = base.under(files.read(tmp_path / "theirs"))
    params, _ = files.load_into(model, base.moved(model), tmp_path / "theirs")
    with torch.no_grad():
        wanted = their_logits(theirs, base.batch).numpy()
    near(quick(model.apply)(params, base.batch), wanted)
    files.write(tmp_path / "ours", base.folder, model, params)
    again = peft.PeftModel.from_pretrained(base.copy(), tmp_path / "ours").eval()
    with torch.no_grad():
        near(their_logits(again, base.batch).numpy(), wanted)


def test_what_projections_share_in_vera_is_not_of_their_parts(tmp_path, tmp_path_factory):
    """peft multiplies c_attn by the first rows of B, here each of its parts would be."""
    base = base_of("gpt2", tmp_path_factory.getbasetemp())
    same = {"task_type": "SEQ_CLS", "fan_in_fan_out": True}
    config = peft.VeraConfig(r=2, target_modules=["c_attn", "c_fc"], **same)
    theirs_of(base, config).save_pretrained(tmp_path)
    model = base.under(files.read(tmp_path))
    with pytest.raises(UserError, match="c_attn' as one projection.*Merge"):
        files.load_into(model, base.moved(model), tmp_path)
    part = base.under({"name": "vera", "rank": 2, "targets": ("query", "up")})
    with pytest.raises(UserError, match="c_attn' as one projection.*--format hf"):
        files.write(tmp_path / "ours", base.folder, part, base.moved(part))


def compare_gradients(model, grads, theirs):
    """Of each factor; A's is the sum over our parts of one projection of theirs."""
    parts = defaultdict(dict)
    for path, grad in grads.items():
        module, _, leaf = path.rpartition("/")
        if path in model.base.shapes:
            continue
        (unrolled,) = expand(module)
        index = getattr(model.names.base[unrolled], "index", 0)
        parts[model.base.names[unrolled], leaf][index] = np.asarray(grad)
    named = {
        name.replace(".default", "").removesuffix(".weight"): tensor.grad.numpy()
        for name, tensor in theirs.named_parameters()
        if tensor.requires_grad and tensor.grad is not None
    }
    ends = {"lora_a": "lora_A", "lora_b": "lora_B", "lora_m": "lora_magnitude_vector"}
    largest = max(np.abs(grad).max() for grad in named.values())
    assert parts
    for (module, leaf), pieces in parts.items():
        end = f".{module}.{ends.get(leaf, leaf)}"
        (wanted,) = (grad for name, grad in named.items() if name.endswith(end))
        ordered = [pieces[index] for index in sorted(pieces)]
        whole = sum(ordered) if leaf == "lora_a" else np.concatenate(ordered, -1)
        near(whole.T, wanted, 0.1 * largest, 3e-5)  # a sum over parts rounds otherwise


def test_parts_of_their_own_have_no_form_in_peft(tmp_path_factory, tmp_path):
    base = base_of("gpt2", tmp_path_factory.getbasetemp())
    settings = {"name": "lora", "rank": 2, "rank_pattern": {"query": 3}}
    model = base.under(settings)
    with pytest.raises(UserError, match=r"'h.0.attn.c_attn' as one .* ranks or alphas"):
        files.write(tmp_path, base.folder, model, base.moved(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank_pattern": {"query": 3}}, r"method\.rank=2 differs from r=3 of .*layer\.0.*query'"),
        (
            {"alpha_pattern": {r"layer.1.*query": 9}},
            r"method\.alpha=6\.0 differs from lora_alpha=9",
        ),
    ],
)
def test_another_pattern_is_refused(change, message, tmp_path, tmp_path_factory):
    base = base_of("bert", tmp_path_factory.getbasetemp())
    model = base.under({"name": "lora", "rank": 2, "alpha": 6.0})
    files.write(tmp_path, base.folder, model, base.moved(model))
    config = json.loads((tmp_path / files.CONFIG).read_text())
    (tmp_path / files.CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message):
        files.load_into(model, base.moved(model), tmp_path)


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        (
            {"rank_pattern": {"quary": 2}},
            r"rank_pattern: 'quary' matches none.*did you mean 'query'",
        ),
        ({"rank_pattern": {"query": 99}}, r"method\.rank=99 exceeds both sides"),
        (
            {"name": "pissa", "targets": ("up",), "rank": 40},
            r"method\.rank=40 exceeds the smaller side",
        ),
        ({"rank_pattern": {"query": 0}}, r"method\.rank_pattern=.* must be positive"),
        ({"rank_pattern": {"query": 2.5}}, r"rank_pattern=.*whole number expected"),
        ({"alpha_pattern": {"(query": 2.0}}, r"alpha_pattern=.* is not a regular expression"),
        ({"alpha_pattern": (("layer.0.*query", 2.0),)}, r"scanned segment.*model\.segments"),
        ({"rank_pattern": {ENDLESS: 2}}, r"takes more than 1 s at '.*query': repeat nothing"),
        ({"targets": "query"}, r"'query' matches no projection in full.*\['query'\] selects"),
        ({"targets": ENDLESS}, r"takes more than 1 s at '.*': repeat nothing"),
    ],
)
def test_bad_patterns(hyper, message, tmp_path_factory):
    base = base_of("bert", tmp_path_factory.getbasetemp())
    with bounded(), pytest.raises(UserError, match=message):
        base.under({"name": "lora", **hyper}, "scan")


def test_methods_of_one_rank_have_no_patterns():
    with pytest.raises(UserError, match="adalora moves ranks itself"):
        create({"name": "adalora", "rank_pattern": {"query": 2}})
