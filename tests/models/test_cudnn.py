"""What cuDNN is told of masks, by JAX's own plain form of its kernels, and JAX's checks of it."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.models import cudnn
from ftjax.models.attention import _say_once
from ftjax.models.masks import Pattern
from ftjax.parallel.mesh import logical_axes, make_mesh
from tests.covering import covering, product
from tests.models import random_models

PREFIX = {"name": "prefix_tuning", "length": 3}
SCAN = {"segments": "scan", "remat": "full"}
MASK, CAUSAL, LENGTHS = "mask", "is_causal", "key_value_seq_lengths"
WINDOW = f"{CAUSAL} local_window_size"


def everything(case):
    """Odd rows without padding."""
    batch = random_models.inputs(case, length=11)
    return {"input_ids": batch["input_ids"]}


CASES = {  # case, settings and method, batch, what is told for layers and stacks
    "rows of an encoder": ("bert", {}, random_models.inputs, {LENGTHS}),
    "packed rows": ("bert", SCAN, random_models.packed, {MASK}),
    "windows to both sides": ("modernbert", {}, random_models.inputs, {LENGTHS, MASK}),
    "the same, scanned": ("modernbert", SCAN, random_models.inputs, {LENGTHS, MASK}),
    "content and distance": ("deberta-v3", {}, random_models.inputs, {LENGTHS}),
    "permutations": ("xlnet", {}, random_models.inputs, {MASK}),
    "shared layers": ("albert", SCAN, random_models.inputs, {LENGTHS}),
    "rows of a decoder": ("llama", SCAN, random_models.inputs, {CAUSAL}),
    "packed rows of a decoder": ("llama", {}, random_models.packed, {MASK}),
    "windows": ("mistral", SCAN, random_models.inputs, {WINDOW}),
    "windows of some layers": ("gpt_neo", SCAN, random_models.inputs, {WINDOW, CAUSAL}),
    "both stacks, biased": ("t5", {}, random_models.inputs, {LENGTHS, CAUSAL}),
    "both stacks": ("bart", SCAN, random_models.inputs, {LENGTHS, CAUSAL}),
    "prefix of an encoder": ("bert", {"method": PREFIX}, random_models.inputs, {LENGTHS}),
    "prefix of a decoder": ("llama", {"method": PREFIX} | SCAN, random_models.inputs, {CAUSAL}),
    "prefix and bias": (
        "t5",
        {"method": PREFIX | {"places": ("encoder", "decoder", "cross")}},
        random_models.inputs,
        {LENGTHS, CAUSAL},
    ),
    "prefix and window": ("mistral", {"method": PREFIX}, random_models.inputs, {MASK}),
    "odd rows": ("modernbert", {}, partial(random_models.inputs, length=11), {LENGTHS, MASK}),
    "odd rows of a decoder": ("mistral", {}, partial(random_models.inputs, length=11), {WINDOW}),
    "odd stacks, biased": ("t5", {}, partial(random_models.inputs, length=11), {LENGTHS, CAUSAL}),
    "nothing hidden": ("bert", {}, everything, {LENGTHS}),
}


@pytest.fixture(autouse=True)
def _said_anew():
    _say_once.cache_clear()


@pytest.fixture
def told(monkeypatch):
    """JAX's plain form in the place of its kernel; gives what it is called with."""
    attend, told = jax.nn.dot_product_attention, set()

    def plain(*inputs, implementation, scale, **structure):
        assert implementation == "cudnn"
        told.add(" ".join(structure))
        return attend(*inputs, implementation="xla", scale=scale, **structure)

    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    return told


# Told as others are, of layers run in another way.
AS_OTHERS = {
    "the same, scanned",
    "shared layers",
    "packed rows",
    "rows of a decoder",
    "both stacks",
}
FEW = [(name,) for name in CASES if name not in AS_OTHERS]


@pytest.mark.parametrize("name", product([(name,) for name in CASES], FEW))
def test_structure_says_what_masks_say(name, told):
    case, settings, batch, wanted_told = CASES[name]
    batch = batch(case)
    model = random_models.build(case, None, platform="gpu", attention="cudnn", **settings)
    plain, params = random_models.build(case, None, **settings), random_models.parameters(model)
    hidden, wanted = (random_models.hidden(each, params, batch) for each in (model, plain))
    assert told == wanted_told
    assert random_models.difference(hidden, wanted) < 5e-6


def test_decoders_that_see_both_sides(told):
    """As encoders: of whole rows their lengths, of windows the mask."""
    kinds = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    config = {**random_models.config_of("gemma3"), **kinds, "use_bidirectional_attention": True}
    settings, full = {"attention": "cudnn"} | SCAN, methods.create({"name": "full"})
    model = build_tuned(config, full, settings, {"head": None}, "gpu")
    plain = build_tuned(config, full, {}, {"head": None})
    batch = random_models.inputs("gemma3")
    hidden, wanted = (
        random_models.hidden(each, random_models.parameters(each), batch) for each in (model, plain)
    )
    assert random_models.difference(hidden, wanted) < 5e-6
    assert told == {LENGTHS, MASK}
    with pytest.raises(UserError, match="splash is for decoders that see one side"):
        build_tuned(config, full, {"attention": "splash"}, {"head": None}, "tpu")
    assert build_tuned(config, full, {}, {}, "tpu").config.options.attention == "xla"


def test_over_a_mesh_it_equals_one_device(told):
    batch = random_models.inputs("t5", rows=4)
    model = random_models.build("t5", None, platform="gpu", attention="cudnn")
    params = random_models.parameters(model)
    wanted, expected = random_models.graded(random_models.build("t5", None), params, batch)
    with logical_axes(make_mesh(2, 2, 2)):
        hidden, grads = random_models.graded(model, params, batch)
    assert random_models.difference(hidden, wanted) < 1e-4
    assert random_models.furthest(grads, expected) < 1e-3


@pytest.fixture
def installed(monkeypatch):
    """As where cuDNN is: JAX asks for its version, and everything else is checked as it is."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91002)


def lowered(model, batch) -> str:
    """A step's program for a GPU: gradients of all parameters."""

    def loss(params):
        return jnp.square(model.apply(params, batch).astype(jnp.float32)).sum()

    step = jax.jit(jax.grad(loss)).trace(dict(model.shapes))
    return step.lower(lowering_platforms=("cuda",)).as_text()


def kernels(program: str) -> set[str]:
    """Masks of the kernels in it, and "biased" of those that have a bias."""
    calls = re.findall(r'@__cudnn\$(\w+)\(.*?backend_config = "(.*?)"', program)
    found = set()
    for name, config in calls:
        config = json.loads(config.replace(r"\22", '"'))["cudnn_fmha_backend_config"]
        window = config["sliding_window_length"]
        found.add(
            config["mask_type"] + " biased" * ("Bias" in name) + f" window {window}" * bool(window)
        )
    assert len({name.removesuffix("Backward") for name, _ in calls}) * 2 == len(dict(calls))
    return found


build = partial(random_models.build, platform="gpu", dtype="bfloat16")
ROWS = partial(random_models.inputs, length=12)
ODD, PACKED = partial(random_models.inputs, length=11), partial(random_models.packed, length=11)
TAKEN = {  # head, settings and method, batch, the kernels' masks
    "encoder": ("bert", "masked_lm", {}, ROWS, {"PADDING"}),
    "classifier": ("bert", "classification", {"remat": "full"}, ROWS, {"PADDING"}),
    "odd rows": ("bert", "tokens", SCAN, ODD, {"PADDING"}),
    "packed": ("llama", "causal_lm", SCAN, PACKED, {"NO_MASK biased"}),
    "decoder": ("llama", "causal_lm", SCAN, ODD, {"CAUSAL"}),
    "window": ("mistral", "causal_lm", SCAN, ODD, {"CAUSAL window 4"}),
    "odd prefix": ("llama", "causal_lm", SCAN | {"method": PREFIX}, ROWS, {"CAUSAL"}),
    "prefix of an encoder": ("bert", None, SCAN | {"method": PREFIX}, ROWS, {"PADDING"}),
    "both stacks": ("bart", "seq2seq_lm", {}, ROWS, {"PADDING", "CAUSAL"}),
}


ASKED = [(name, attention) for name in TAKEN for attention in ("gpu", "cudnn")]
ASKED.remove(("packed", "gpu"))  # which is Triton's


@pytest.mark.parametrize(("name", "attention"), product(ASKED, covering(ASKED)))
def test_jax_takes_it_for_gpus(name, attention, installed):
    case, head, settings, batch, wanted = TAKEN[name]
    model = build(case, head, attention=attention, **settings)
    assert kernels(lowered(model, batch(case))) == wanted


REFUSED = {
    "float32": ("llama", SCAN | {"dtype": "float32"}, "must be fp16/bf16/.*, got float32"),
    "soft-capping": ("gemma2", {}, "no soft-capping"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_xla_does_what_jax_refuses(name, installed, caplog):
    case, settings, reason = REFUSED[name]
    assert not kernels(lowered(build(case, "causal_lm", attention="gpu", **settings), ROWS(case)))
    assert re.search(f"without cuDNN, by XLA: .*{reason}", caplog.text)
    with pytest.raises(UserError, match=f"attention=cudnn: .*{reason}.*; use attention=gpu"):
        lowered(build(case, "causal_lm", attention="cudnn", **settings), ROWS(case))


def test_attention_dropout_is_xlas(installed, caplog):
    batch, key = ROWS("bert"), jax.random.key(0)
    model = build("bert", None, attention="gpu")
    jax.eval_shape(model.apply, dict(model.shapes), batch, key)
    assert "no attention dropout here, and the model has 0.1" in caplog.text
    model = build("bert", None, attention="cudnn")
    with pytest.raises(UserError, match="attention=cudnn has no attention dropout"):
        jax.eval_shape(model.apply, dict(model.shapes), batch, key)


@pytest.mark.parametrize(
    ("size", "dtype", "reason"),
    [
        (12, "bfloat16", "multiple of 8, but got 12"),
        (136, "bfloat16", "must be <= 128"),
        (64, "float32", "got float32"),
        (64, "float16", None),
    ],
)
def test_refusals_are_jaxs(size, dtype, reason, installed):
    query = jnp.zeros((2, 6, 4, size), dtype)
    refusal = cudnn.refusal(query, query, query, None, None, 1.0, Pattern())
    assert refusal == reason or reason in refusal


def test_heads_that_do_not_divide_over_the_mesh_are_xlas(installed):
    model = build("llama", None, attention="cudnn")
    for sizes, reason in (((1, 1, 4), "4 heads, of keys 2"), ((4, 1, 1), "2 rows do not divide")):
        with (
            logical_axes(make_mesh(*sizes, jax.devices()[:4])),
            pytest.raises(UserError, match=reason),
        ):
            jax.eval_shape(model.apply, dict(model.shapes), ROWS("llama"))


def test_without_cudnn_it_is_said(caplog, monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", None)  # where gpu-aot is there
    model, batch = build("bert", None, attention="auto"), ROWS("bert")
    jax.eval_shape(model.apply, dict(model.shapes), batch)
    assert "without cuDNN, by XLA: cuDNN is not detected" in caplog.text
    with pytest.raises(UserError, match="attention=cudnn: cuDNN is not detected; use attention"):
        model = build("bert", None, attention="cudnn")
        jax.eval_shape(model.apply, dict(model.shapes), batch)


@pytest.mark.parametrize("attention", ["cudnn", "gpu"])
def test_off_a_gpu_it_is_refused(attention):
    with pytest.raises(UserError, match=f"{attention} runs on GPUs, and this is a CPU: use"):
        random_models.build("bert", None, attention=attention)


def test_one_query_is_xlas(installed):
    """Scores of a row are no more than its keys: what generation and classifiers' tops ask."""
    model = build("bert", "classification", attention="cudnn")
    program = lowered(model, ROWS("bert"))
    layers = model.config.num_hidden_layers
    assert len(re.findall(r"@__cudnn\$fmhaSoftmax\(", program)) == layers - 1
