"""LoRA equals `peft`'s: outputs, adapter gradients, counts, matching."""

from functools import partial

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.config import check, load_config
from ftjax.config.saved import from_json, to_json
from ftjax.errors import UserError
from ftjax.formats.folder import read_config
from ftjax.formats.peft import folder as files
from ftjax.methods.lora import Lora
from ftjax.parallel.mesh import make_mesh
from ftjax.paths import expand
from tests.conftest import build, make_batch, perturbed
from tests.methods.peft_cases import base_of, their_logits
from tests.models import random_models
from tests.models.random_models import quick
from tests.models.test_bert import reference_classifier, torch_inputs


def peft_model(folder, model, params, **settings):
    """peft's model over the same base, with our adapter's weights."""
    reference = reference_classifier(folder, params)
    config = peft.LoraConfig(task_type="SEQ_CLS", **settings)
    theirs = peft.get_peft_model(reference, config).eval()
    tensors = dict(theirs.named_parameters())
    names = {}
    for path, leaf in params.items():
        module, kind = path.rsplit("/", 1)
        if kind in ("lora_a", "lora_b"):
            (unrolled,) = expand(module)
            name = (
                f"base_model.model.bert.{model.base.names[unrolled]}"
                f".lora_{kind[-1].upper()}.default.weight"
            )
            names[path] = name
            with torch.no_grad():
                tensors[name].copy_(torch.tensor(np.asarray(leaf).T))
    return theirs, tensors, names


@pytest.mark.parametrize("targets", [("query", "value"), "all-linear", r".*\.(key|up)"])
def test_outputs_and_adapter_gradients(tiny, one_device, targets):
    settings = {"name": "lora", "rank": 4, "alpha": 6.0, "targets": targets}
    model = build(tiny, settings)
    params, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
    params, batch = perturbed(params, model), make_batch()
    theirs = {"all-linear": "all-linear", r".*\.(key|up)": r".*(\.key|intermediate\.dense)"}
    reference, tensors, names = peft_model(
        tiny,
        model,
        params,
        r=4,
        lora_alpha=6.0,
        target_modules=theirs.get(targets, list(targets)),
    )
    out = reference(**torch_inputs(batch), labels=torch.tensor(batch["labels"]))
    out.loss.backward()
    count = sum(p.numel() for p in reference.parameters() if p.requires_grad)
    assert count == model.partition.counts(model.shapes)[0]

    def loss(trainable):
        logits = model.apply({**params, **trainable}, batch)
        rows = np.arange(len(batch["labels"]))
        return -jax.nn.log_softmax(logits)[rows, batch["labels"]].mean(), logits

    grads, logits = quick(jax.grad(loss, has_aux=True))(model.partition.split(params)[0])
    np.testing.assert_allclose(logits, out.logits.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert len(names) == 2 * len(model.base.match(targets))
    for path, name in names.items():
        wanted = tensors[name].grad.numpy().T
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(grads[path] / scale, wanted / scale, atol=1e-4, err_msg=path)


def test_initialization_is_the_reference_distribution(tiny, one_device):
    model = build(tiny, {"name": "lora", "rank": 16, "targets": "all-linear"})
    params, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
    for path, leaf in params.items():
        if path.endswith("lora_a"):
            bound = 1 / np.sqrt(leaf.shape[0])
            assert np.abs(leaf).max() <= bound and np.abs(leaf).max() > 0.9 * bound
            assert abs(np.std(leaf) / (bound / np.sqrt(3)) - 1) < 0.1
        if path.endswith("lora_b"):
            assert not np.any(leaf)


def test_defaults_are_pefts():
    ours, theirs = Lora(), peft.LoraConfig()
    wanted = (theirs.r, theirs.lora_alpha, theirs.lora_dropout)
    assert (ours.rank, ours.alpha, ours.dropout) == wanted


def test_gaussian_is_pefts(tiny, one_device):
    """A of a standard deviation of 1/r, whatever goes into it; B zero."""
    settings = {"name": "lora", "rank": 4, "init": "gaussian", "targets": "all-linear"}
    params, _ = pretrained.load(tiny, build(tiny, settings), one_device, jax.random.key(0))
    found = {kind: [x for p, x in params.items() if p.endswith(kind)] for kind in ("_a", "_b")}
    base = torch.nn.Sequential(torch.nn.Linear(512, 64))
    config = peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights="gaussian")
    wanted = peft.get_peft_model(base, config).state_dict()[
        "base_model.model.0.lora_A.default.weight"
    ]
    drawn = np.concatenate([np.ravel(leaf) for leaf in found["_a"]])
    np.testing.assert_allclose([np.std(drawn), wanted.std()], 1 / 4, rtol=0.1)
    assert len(found["_b"]) == len(found["_a"]) > 0 and not any(map(np.any, found["_b"]))


def test_a_rank_may_be_as_large_as_a_projection(tiny):
    """By its larger side; one more is refused."""
    settings = {"name": "lora", "targets": ("up",)}  # (32, 64)
    assert (
        build(tiny, {**settings, "rank": 64}).shapes["encoder/layer_0/ffn/up/lora_a"].shape[1] == 64
    )
    with pytest.raises(UserError, match=r"method\.rank=65 exceeds both sides"):
        build(tiny, {**settings, "rank": 65})


@pytest.mark.parametrize(
    ("pattern", "rank", "alpha"),
    [({"rank_pattern": {"query": 3}}, 3, 8.0), ({"alpha_pattern": {"query": 0.0}}, 5, 0.0)],
)
def test_a_pattern_of_ranks_or_of_alphas_is_enough(tiny, pattern, rank, alpha):
    """An alpha of 0, too, is one that is given."""
    model = build(tiny, {"name": "lora", "rank": 5, **pattern})
    for module in model.method.matched(model.base):
        method, given = model.method.of(model.base, module), module.endswith("query")
        assert (method.rank, method.alpha) == ((rank, alpha) if given else (5, 8.0))
        assert model.shapes[f"{module}/lora_a"].shape[1] == method.rank


def test_a_pattern_of_no_module_names_the_nearest(tiny):
    """By the last parts of names, our own and Hugging Face's."""
    with pytest.raises(UserError, match=r"'qurey' matches none .*did you mean 'query'\?"):
        build(tiny, {"name": "lora", "rank_pattern": {"qurey": 3}})


def test_lora_may_follow_what_changes_the_same_weights(tiny):
    """It adds to them whatever they are, where DoRA would have to know their norm."""
    parts = [{"name": name, "targets": ("query",)} for name in ("ia3", "lora")]
    parts[0]["feedforward"] = "none"
    model = build(tiny, {"name": "combination", "parts": parts})
    assert model.partition.groups == ("0_ia3", "1_lora", "head")


def test_dropout_is_of_the_updates_input_alone(tiny, one_device):
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    method = methods.create({"name": "lora", "dropout": 0.5, "init": "random"})
    head = {"head": "classification", "labels": 2, "pooling": "cls"}
    model = build_tuned({**read_config(tiny), **quiet}, method, {}, head)
    params, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
    batch, key = make_batch(), jax.random.key(3)
    apply = quick(model.apply)
    assert np.abs(apply(params, batch, key) - apply(params, batch)).max() > 1e-4
    plain = quick(partial(model.apply, adapted=False))
    np.testing.assert_array_equal(plain(params, batch, key), plain(params, batch))


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_table_of_words_is_adapted(name, tmp_path):
    """It starts as the base, with B as torch's embeddings; merged it computes the same."""
    base = base_of("bert", tmp_path)
    model = base.under({"name": name, "rank": 8, "targets": ("query", "word_embeddings")})
    mesh = make_mesh(devices=jax.devices()[:1])
    params, _ = pretrained.load(base.folder, model, mesh, jax.random.key(0))
    assert not np.any(params["embeddings/word/lora_a"])
    assert abs(np.std(params["embeddings/word/lora_b"]) - 1) < 0.1
    apply = random_models.quick(lambda params: model.apply(params, base.batch))
    plain = base.under({"name": "full"})
    run = random_models.quick(lambda params: plain.apply(params, base.batch))
    np.testing.assert_array_equal(apply(params), run({path: params[path] for path in plain.shapes}))
    moved = base.moved(model)
    found = apply(moved)
    np.testing.assert_allclose(run(model.merged(moved)), found, rtol=1e-4, atol=1e-5)
    without = {p: x * (not p.startswith("embeddings/word/lora_a")) for p, x in moved.items()}
    assert np.abs(found - apply(without)).max() > 1e-3


def test_a_tied_head_reads_the_unadapted_table(tmp_path):
    base = base_of("gpt2", tmp_path)
    method = methods.create({"name": "lora", "rank": 4, "alpha": 6.0, "targets": ("wte",)})
    model = build_tuned(read_config(base.folder), method, {}, {"head": "causal_lm"})
    params = base.moved(model)
    files.write(tmp_path, base.folder, model, params)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(base.folder).eval()
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    with torch.no_grad():
        wanted = their_logits(theirs, base.batch).numpy()
    found = random_models.quick(model.apply)(params, base.batch)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="reads words off by their embeddings"):
        model.merged(params)


def test_words_that_two_sides_share_have_no_form_in_peft(tmp_path):
    base = base_of("t5", tmp_path)
    model = base.under({"name": "lora", "targets": ("shared",)})
    with pytest.raises(UserError, match="an encoder's and a decoder's look-ups"):
        files.to_peft(model, base.moved(model))


@pytest.mark.parametrize("name", ["lora_fa", "pissa", "adalora", "loha", "lokr"])
def test_methods_of_projections_alone_refuse_words(tiny, name):
    with pytest.raises(
        UserError, match=r"method\.targets: 'word_embeddings' matches no projection"
    ):
        build(tiny, {"name": name, "targets": ("word_embeddings",)})


def test_all_linear_leaves_experts_out(tmp_path):
    """And their router, which decides where tokens go."""
    base = base_of("mixtral", tmp_path)
    model = base.under({"name": "lora", "rank": 3, "alpha": 6.0, "targets": "all-linear"})
    params = base.moved(model)
    files.write(tmp_path, base.folder, model, params)
    theirs = peft.PeftModel.from_pretrained(base.copy(), tmp_path, is_trainable=True).eval()
    with torch.no_grad():
        wanted = their_logits(theirs, base.batch).numpy()
    found = random_models.quick(model.apply)(params, base.batch)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    count = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert count == model.partition.counts(model.shapes)[0]
    adapted = {path.rsplit("/", 2)[1] for path in params if path.endswith("lora_a")}
    assert adapted == {"query", "key", "value", "output"}


@pytest.mark.parametrize("segments", ["unrolled", "scan"])
@pytest.mark.parametrize("targets", [("q_proj", "up"), r".*ffn/up", "decoder.*"])
def test_experts_are_no_targets(targets, segments):
    config, method = (
        random_models.config_of("mixtral"),
        methods.create({"name": "lora", "targets": targets}),
    )
    with pytest.raises(UserError, match=r"method\.targets=.*'decoder/.*/ffn/\w+'.* each expert"):
        build_tuned(config, method, {"segments": segments}, {"head": "causal_lm"})


def test_a_target_within_a_scanned_segment_is_refused(tiny):
    settings = {"name": "lora", "targets": r"encoder\.layer\.1\..*query"}
    assert build(tiny, settings).partition.counts(build(tiny, settings).shapes)
    with pytest.raises(UserError, match="scanned segment"):
        build(tiny, settings, {"segments": "scan"})


@pytest.mark.parametrize("text", ['{"query": 2, "layer.1..*value": 6}', "[['query', 2]]"])
def test_patterns_come_from_the_command_line_and_back_from_a_file(text, tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from ftjax.config import default_config\n"
        "def get_config(method='lora'):\n"
        "    return default_config(method)\n"
    )
    config = check(load_config(str(file), [f"--config.method.rank_pattern={text}"]))
    method = methods.create(config.method)
    assert method.rank_pattern[0] == ("query", 2)
    again = methods.create(check(from_json(to_json(config))).method)
    assert again == method and hash(again) == hash(method)
    over = {"name": "lora", "rank_pattern": [["query", 2]]}
    assert methods.create({"name": "qlora", "over": over}).inner.rank_pattern == (("query", 2),)


@pytest.mark.parametrize("segments", ["unrolled", "scan"])
@pytest.mark.parametrize("name", ["lora", "rslora", "loha", "lora_fa"])
def test_ranks_and_alphas_by_module(name, segments, tiny, one_device):
    """Shapes are of each module's rank; merged, each has its own scale."""
    settings = {"rank_pattern": {"query": 3}, "alpha_pattern": {"value": 20.0, "query": 1.5}}
    model = build(tiny, {"name": name, "rank": 5, **settings}, {"segments": segments})
    params, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
    random = np.random.default_rng(0)
    leaves = set(model.method.leaves)
    moved = {
        path: np.asarray(random.normal(size=x.shape), np.float32)
        if path.rpartition("/")[2] in leaves
        else x
        for path, x in params.items()
    }
    merged = model.merged(moved)
    changed = {path for path in merged if np.any(merged[path] != params[path])}
    assert changed == {f"{module}/kernel" for module in model.method.matched(model.base)}
    for path in changed:
        module, query = path.removesuffix("/kernel"), "query" in path
        rank, alpha = (3, 1.5) if query else (5, 20.0)
        own = {leaf: moved[f"{module}/{leaf}"].astype(float) for leaf in leaves}
        assert all(rank in leaf.shape[-2:] for leaf in own.values())
        scale = alpha / (rank**0.5 if name == "rslora" else rank)
        if name == "loha":
            one, two = (own[f"hada_w{i}_b"] @ own[f"hada_w{i}_a"] for i in (1, 2))
            delta = scale * one * two
        else:
            delta = scale * own["lora_a"] @ own["lora_b"]
        np.testing.assert_allclose(merged[path] - params[path], delta, rtol=1e-4, atol=1e-4)
