"""Methods over a quantized base: numbers by the papers' formulas, and everything around them."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from scipy.stats import norm

from ftjax import config as configs
from ftjax import methods, pretrained, testing
from ftjax.build import build_tuned
from ftjax.config.saved import from_json, to_json
from ftjax.errors import UserError
from ftjax.forecast.chips import topology_devices
from ftjax.formats.peft import folder as peft
from ftjax.loss import Loss
from ftjax.methods.method import Method
from ftjax.methods.qlora import QLora
from ftjax.parallel.mesh import logical_axes, make_mesh, place_rows
from ftjax.quantization import DYNAMIC, NF4, Int8, Nf4, Quantized, among, chosen, dequantized
from ftjax.training.optimizers import make_optimizer
from ftjax.training.step import init_state, lower_step, make_step
from tests.covering import product
from tests.methods import bases
from tests.models import random_models
from tests.models.random_models import quick


def kernel(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)


def reference_nf4(weight: np.ndarray) -> np.ndarray:
    """Quantized and back: a matrix (out, in) in blocks of 64 as it lies in memory, by distances."""

    def nearest(table, x):
        return table[np.abs(x[..., None] - table).argmin(-1)]

    blocks = weight.astype(np.float64).reshape(-1, 64)
    absmax = np.abs(blocks).max(1)
    rest = absmax - absmax.mean()
    for start in range(0, len(rest), 256):
        part = rest[start : start + 256]
        rest[start : start + 256] = nearest(DYNAMIC, part / np.abs(part).max()) * np.abs(part).max()
    restored = rest + absmax.mean()
    return (nearest(NF4, blocks / absmax[:, None]) * restored[:, None]).reshape(weight.shape)


def test_nf4_codes_are_the_papers_quantiles():
    """Appendix E: nine quantiles above zero and eight below, of a normal, scaled to [-1, 1]."""
    offset = 0.9677083
    upper, lower = (norm.ppf(np.linspace(offset, 0.5, n)[:-1]) for n in (9, 8))
    values = np.sort(np.concatenate([upper, -lower, [0.0]]))
    np.testing.assert_allclose(NF4, values / values.max(), atol=1e-6)


def test_dynamic_codes_are_decades_of_equal_steps():
    assert DYNAMIC.shape == (256,) and np.all(np.diff(DYNAMIC) > 0)
    assert (DYNAMIC == 0).sum() == 1 and DYNAMIC[-1] == 1
    positive = DYNAMIC[DYNAMIC > 0][:-1]
    np.testing.assert_allclose(-DYNAMIC[DYNAMIC < 0][::-1], positive)
    decades = np.floor(np.log10(positive)).astype(int)
    assert [int((decades == d).sum()) for d in range(-7, 0)] == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("shape", [(128, 192), (64, 5), (3, 192, 100)])
def test_nf4_is_the_reference(shape):
    weight = kernel(*shape)
    found = np.asarray(quick(lambda w: Nf4.of(w).dequantized())(weight))
    matrices = weight.reshape(-1, *shape[-2:])
    wanted = np.stack([reference_nf4(w.T).T for w in matrices]).reshape(shape)
    np.testing.assert_allclose(found, wanted, atol=1e-7)


def test_tables_are_looked_up_without_gathers():
    """Which TPUs do an element at a time; and what is read is what stands there, to the bit."""
    for read, table in ((chosen, NF4), (among, DYNAMIC)):
        codes = np.random.default_rng(0).permutation(len(table)).astype(np.uint8)
        np.testing.assert_array_equal(
            quick(lambda c, r=read, t=table: r(t, c))(codes), table[codes]
        )
    stored = jax.eval_shape(Nf4.of, jax.ShapeDtypeStruct((512, 384), jnp.float32))
    pytest.importorskip("libtpu")
    device = topology_devices("v5e:2x2")[1][0]
    at = jax.sharding.SingleDeviceSharding(device)
    stored = jax.tree.map(lambda leaf: leaf.update(sharding=at), stored)
    rows = jax.ShapeDtypeStruct((128, 512), jnp.bfloat16, sharding=at)

    def product(x, kernel):
        return x @ kernel.dequantized().astype(x.dtype)

    program = jax.jit(product).lower(rows, stored).compile().as_text()
    assert "dot" in program or "convolution" in program
    assert " gather(" not in program


def test_int8_is_a_scale_an_output():
    weight = kernel(3, 64, 10)
    found = np.asarray(quick(lambda w: Int8.of(w).dequantized())(weight))
    scale = np.abs(weight.astype(np.float64)).max(1, keepdims=True) / 127
    np.testing.assert_allclose(found, np.round(weight / scale) * scale, atol=1e-7)


def test_zeros_stay_zeros():
    weight = jnp.zeros((64, 3))
    for form in (Nf4, Int8):
        restored = quick(lambda w, form=form: form.of(w).dequantized())(weight)
        np.testing.assert_array_equal(restored, 0)


@pytest.mark.parametrize(("form", "bits"), [(Nf4, 4 + 8 / 64 + 32 / (64 * 256)), (Int8, 8)])
def test_memory_is_as_published(form, bits):
    shape = (1024, 2048)
    leaves = jax.tree.leaves(jax.eval_shape(form.of, jax.ShapeDtypeStruct(shape, jnp.bfloat16)))
    found = sum(8 * leaf.size * leaf.dtype.itemsize for leaf in leaves) / np.prod(shape)
    assert bits <= found < bits * 1.004  # the mean, or a scale of 32 bits an output


def load(model, base, mesh=None):
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    return pretrained.load(bases.folder(base), model, mesh, jax.random.key(0))[0]


CASES = [("nf4", "lora"), ("nf4", "pissa"), ("nf4", "pfeiffer"), ("int8", "dora")]
CASES += [("int8", "adalora"), ("int8", "bitfit")]


FEW = [("nf4", "lora"), ("nf4", "pissa"), ("nf4", "pfeiffer"), ("int8", "dora")]


@pytest.mark.parametrize(("bits", "name"), product(CASES, FEW))
def test_it_is_the_other_method_over_the_dequantized_base(bits, name):
    """Outputs and gradients, with scanned layers; step 0 is the base; merged; disabled."""
    over = {"name": name, "targets": "all-linear"} if name == "lora" else {"name": name}
    settings = {"name": "qlora", "bits": bits, "over": over}
    model = testing.build("bert", settings, {"segments": "scan"})
    inner = testing.build("bert", over, {"segments": "scan"})
    params, batch = load(model, "bert"), testing.make_batch("bert")
    held = {path for path, leaf in params.items() if isinstance(leaf, Quantized)}
    assert held == {f"{path}/kernel" for path in model.base.projections()}
    plain = quick(dequantized)(params)
    trainable, frozen = model.partition.split(params)
    random = np.random.default_rng(0)
    moved = {
        p: x + 0.05 * random.normal(size=x.shape).astype(x.dtype) for p, x in trainable.items()
    }

    def graded(model):
        def loss(trainable, frozen):
            logits = model.apply({**frozen, **trainable}, batch)
            return (logits**2).sum(), logits

        return quick(jax.grad(loss, has_aux=True))

    ours, theirs = graded(model), graded(inner)
    rest = {path: leaf for path, leaf in plain.items() if path not in trainable}
    base = testing.build("bert", {"name": "full"}, {"segments": "scan"})
    apply = quick(lambda params: base.apply(params, batch))
    wanted = apply({path: plain[path] for path in base.shapes})
    np.testing.assert_allclose(ours(trainable, frozen)[1], wanted, atol=1e-5)  # sums of tiles
    (grads, logits), (expected, theirs_logits) = ours(moved, frozen), theirs(moved, rest)
    np.testing.assert_allclose(logits, theirs_logits, atol=1e-5)
    assert np.abs(logits - wanted).max() > 1e-3
    assert set(grads) == set(trainable)  # of the adapters and the head alone
    for path, grad in grads.items():
        scale = np.abs(expected[path]).max()
        np.testing.assert_allclose(grad, expected[path], atol=1e-4 * scale, err_msg=path)
    disabled = quick(lambda params: model.apply(params, batch, adapted=False))
    base_now = apply({path: {**plain, **moved}[path] for path in base.shapes})
    np.testing.assert_allclose(disabled({**frozen, **moved}), base_now, atol=1e-6)
    if name == "pfeiffer":  # cannot be merged
        return
    merged = model.method.merge(model.base, {**frozen, **moved})
    np.testing.assert_allclose(apply(merged), logits, atol=1e-4)


def test_no_kernel_is_kept_for_the_backward_pass():
    model = testing.build("bert", {"name": "qlora", "over": {"name": "dora"}})
    trainable, frozen = model.partition.split(load(model, "bert"))
    batch = testing.make_batch("bert")

    def kept(trainable):
        return jax.vjp(lambda x: model.apply({**frozen, **x}, batch), trainable)[1]

    kernels = {model.base.shapes[f"{path}/kernel"].shape for path in model.base.projections()}
    residuals = jax.tree.leaves(jax.eval_shape(kept, trainable))
    assert residuals and not [
        leaf for leaf in residuals if leaf.shape in kernels and leaf.dtype == jnp.float32
    ]


def test_it_trains_on_a_mesh():
    """As on one device; codes are sharded as the kernel was, where blocks divide."""
    settings = {"name": "qlora", "over": {"name": "lora_fa", "targets": "all-linear"}}
    model = testing.build("llama", settings, {"segments": "scan", "remat": "full"})
    batch, losses = testing.make_batch("llama"), []

    def loss(params, batch, key):
        logits = jax.nn.log_softmax(model.apply(params, batch))
        picked = jnp.take_along_axis(logits, batch["labels"][:, None], 1)
        return Loss(-picked.sum(), batch["weights"].sum())

    def rate(step):
        return 1e-2

    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(2, 2, 2)):
        params = load(model, "llama", mesh)
        trainable, frozen = model.partition.split(params)
        labels = {path: model.partition.labels[path] for path in trainable}
        adam = {"name": "adamw", "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
        optimizer = make_optimizer(adam, labels, rate, model.optimizer)
        state, found = init_state(trainable, optimizer, 0, mesh), []
        step = make_step(loss, optimizer, rate, clip_norm=1.0, accumulation=1)
        placed = place_rows(mesh, batch, 8)
        with logical_axes(mesh):
            program = lower_step(step, state, frozen, placed, mesh).compile()
        for _ in range(3):
            state, metrics = program(state, frozen, placed)
            found.append(float(metrics["loss"]))
        losses.append(found)
    assert losses[0][-1] < losses[0][0] - 1e-2
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    path = next(p for p in params if p.endswith("down/kernel"))
    codes, scales = params[path].codes, params[path].scales
    assert codes.sharding.shard_shape(codes.shape)[1:] == (codes.shape[1] // 2, codes.shape[2] // 2)
    assert scales.sharding.shard_shape(scales.shape)[1:] == (1, scales.shape[2] // 2)
    path = next(p for p in params if p.endswith("up/kernel"))  # one block of inputs: kept whole
    scales = params[path].scales
    assert scales.sharding.shard_shape(scales.shape)[1:] == (1, scales.shape[2] // 2)


def test_its_peft_folder_is_the_other_methods():
    over = {"name": "lora", "targets": "all-linear"}
    models = [testing.build("bert", m) for m in (over, {"name": "qlora", "over": over})]
    written = [peft.to_peft(model, load(model, "bert")) for model in models]
    assert written[0][0] == written[1][0] and written[0][1].keys() == written[1][1].keys()
    for key, tensor in written[0][1].items():
        np.testing.assert_array_equal(written[1][1][key], tensor)
    model = testing.build("bert", {"name": "qlora", "over": {"name": "pissa"}})
    with pytest.raises(UserError, match="Pissa from a base that is not quantized"):
        peft.to_peft(model, load(model, "bert"))


def test_what_quantization_does_not_change_is_the_other_methods():
    """A default of `Method` would be silent: every hook is the other's, or QLora's own."""
    hooks = {name for name in vars(Method) if not name.startswith("_")}
    assert hooks - {"trains"} <= vars(QLora).keys()
    longest = testing.BASES["bert"]["max_position_embeddings"]
    over = {"name": "prompt_tuning", "length": 9}
    model = testing.build("bert", {"name": "qlora", "over": over})
    assert model.longest == longest - 9 and not model.method.identity
    with pytest.raises(UserError, match=r"leaves too few of the model's 64 positions"):
        testing.build("bert", {"name": "qlora", "over": {**over, "length": 60}})
    both = {"name": "combination", "parts": (over, "lora")}
    assert testing.build("bert", both).longest == longest - 9


def test_what_trains_is_not_quantized():
    settings = {"name": "qlora", "over": {"name": "top_k", "k": 1}}
    params = load(testing.build("bert", settings), "bert")
    for path, leaf in params.items():
        lower = path.endswith("/kernel") and "layer_0" in path
        assert isinstance(leaf, Quantized) == lower, path


def test_experts_are_quantized():
    config = {**random_models.config_of("mixtral"), "hidden_size": 64, "head_dim": 16}
    head = {"head": "causal_lm"}
    plain = build_tuned(config, methods.create({"name": "full"}), {}, head)
    method = methods.create({"name": "qlora", "over": {"name": "lora"}})
    model = build_tuned(config, method, {}, head)
    path = next(path for path in model.base.shapes if path.endswith("ffn/up/kernel"))
    params = random_models.parameters(plain)
    added = {p: np.zeros(x.shape, np.float32) for p, x in model.shapes.items() if p not in params}
    held = {
        p: x for p, x in params.items() if p.removesuffix("/kernel") in method.kernels(model.base)
    }
    quantize = quick(Nf4.of)
    quantized = {p: quantize(x) for p, x in held.items()}
    assert params[path].ndim == 3 and path in quantized
    router = path.replace("/up/", "/router/")
    assert router in params and router not in quantized  # it decides where tokens go
    small = jnp.asarray(params[router])
    assert method.stored(model.base, router, small) is small
    batch = random_models.inputs("mixtral")
    found = quick(lambda p: model.apply(p, batch))({**params, **added, **quantized})
    wanted = quick(lambda p: plain.apply(p, batch))(dequantized({**params, **quantized}))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": "fp3"}, r"method\.bits='fp3'"),
        ({"over": {"name": "full"}}, r"method\.over=.*trains every projection"),
        ({"over": {"name": "qlora"}}, r"method\.over\.name='qlora'"),
        ({"over": {"name": "lora", "rnk": 2}}, r"did you mean 'rank'"),
        ({"over": {"name": "prompting"}}, r"method\.over\.name='prompting' trains nothing"),
    ],
)
def test_bad_hyperparameters(settings, message):
    with pytest.raises(UserError, match=message):
        testing.build("bert", {"name": "qlora", **settings})


def test_blocks_that_do_not_divide_are_named(tiny):
    from tests.conftest import build

    with pytest.raises(UserError, match=r"method\.bits=nf4: .*'encoder/layer_0/.*of 32"):
        build(tiny, {"name": "qlora"})
    assert build(tiny, {"name": "qlora", "bits": "int8"})


def test_from_a_configuration_and_the_command_line(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        "from ftjax.config import default_config\n\ndef get_config(m='full'):\n    return default_config(m)\n"
    )
    config = configs.load_config(f"{file}:qlora", ["--config.method.over.rank=4"])
    over = configs.check(config).method.over
    assert (over.name, over.rank, over.targets) == ("lora", 4, "all-linear")
    method = methods.create(config.method)
    assert method.inner == methods.create({"name": "lora", "rank": 4, "targets": "all-linear"})
    again = from_json(to_json(config))
    assert methods.create(again.method) == method and hash(method)
    overrides = ["--config.method.name=qlora", "--config.method.over.name=adalora"]
    overrides += ["--config.method.bits=int8", "--config.method.over.targets=query,key"]
    config = configs.check(configs.load_config(str(file), overrides))
    assert isinstance(config.method.over, ml_collections.ConfigDict)
    method = methods.create(config.method)
    wanted = methods.create({"name": "adalora", "targets": ("query", "key")})
    assert method.bits == "int8" and method.inner == wanted
    with pytest.raises(UserError, match=r"did you mean 'method\.over\.rank'"):
        configs.load_config(f"{file}:qlora", ["--config.method.over.rnk=4"])
