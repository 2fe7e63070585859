"""Soft prompts: their encoders equal `peft`'s, packed rows, starts from words, what is refused."""

import dataclasses
import itertools

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from ftjax import methods, tuned
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats.peft import folder as files
from tests.covering import covering, product
from tests.methods.peft_cases import STEPS, Base, base_of, stepper, their_logits, their_loss
from tests.models.cases import BART, T5
from tests.models.random_models import build as made
from tests.models.random_models import config_of, difference, parameters, quick, unstacked
from tests.models.test_packing import examples, packed

K, RATE = 4, 0.02
LSTM = {"input": "ih", "hidden": "hh"}


def their_name(name: str) -> str:
    """What peft calls a parameter of p_tuning's."""
    kind = "weight" if name.endswith(("kernel", "embedding")) else "bias"
    match name.split("_"):
        case [_, "embedding"]:
            return "embedding.weight"
        case [_, "dense", number, _]:
            return f"mlp_head.{2 * int(number)}.{kind}"
        case [_, "lstm", layer, way, part, _]:
            return f"lstm_head.{kind}_{LSTM[part]}_l{layer}" + "_reverse" * (way == "back")


def p_tuning(model: tuned.Tuned, params: dict) -> dict[str, np.ndarray]:
    """Parameters of p_tuning, or their gradients, as peft's encoder has them."""
    own = {path: np.asarray(leaf) for path, leaf in params.items() if path.startswith("prompt_")}
    return {
        their_name(name): leaf.T if name.endswith("kernel") else leaf for name, leaf in own.items()
    }


def projected(model: tuned.Tuned, params: dict) -> dict[str, np.ndarray]:
    """The same of prefix_tuning with a projection."""
    params, (place,) = unstacked(params), set(model.method.cores(model.base).values())
    cores = model.method.in_order(model.base)

    def joined(kind: str) -> np.ndarray:
        parts = [params[f"{core}/prefix_{x}_{kind}"] for core in cores for x in ("key", "value")]
        return np.concatenate(parts, -1).T

    return {
        "embedding.weight": params[f"prefix_{place}_embedding"],
        "transform.0.weight": params[f"prefix_{place}_kernel"].T,
        "transform.0.bias": params[f"prefix_{place}_bias"],
        "transform.2.weight": joined("kernel"),
        "transform.2.bias": joined("bias"),
    }


ENCODERS = {  # name → family, ours, peft's configuration, how ours becomes theirs
    "mlp": ("bert", {"name": "p_tuning"}, peft.PromptEncoderConfig, {}, p_tuning),
    "lstm": (
        "t5",
        {"name": "p_tuning", "encoder": "lstm", "width": 6},
        peft.PromptEncoderConfig,
        {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 6},
        p_tuning,
    ),
    "projection": (
        "bert",
        {"name": "prefix_tuning", "projection": 6},
        peft.PrefixTuningConfig,
        {"prefix_projection": True, "encoder_hidden_size": 6},
        projected,
    ),
}


@pytest.fixture
def parent(tmp_path_factory):
    return tmp_path_factory.getbasetemp()


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_equal_pefts(name, parent):
    """Outputs, gradients, counts, and twenty steps; with scanned layers where not of T5."""
    family, ours, kind, more, as_theirs = ENCODERS[name]
    base = base_of(family, parent)
    model = base.under({**ours, "length": K}, "unrolled" if family == "t5" else "scan")
    params = base.moved(model)
    task = "SEQ_2_SEQ_LM" if family == "t5" else "SEQ_CLS"
    settings = {"num_virtual_tokens": K, "num_transformer_submodules": 1, **more}
    theirs = peft.get_peft_model(base.copy(), kind(task_type=task, **settings)).eval()
    encoder = theirs.prompt_encoder["default"]
    encoder.load_state_dict({k: torch.tensor(v) for k, v in as_theirs(model, params).items()})
    if family == "bert":
        with torch.no_grad():
            dense = theirs.base_model.classifier.modules_to_save["default"]
            dense.weight.copy_(torch.tensor(params["classifier/kernel"].T))
            dense.bias.copy_(torch.tensor(params["classifier/bias"]))
    tensors = [tensor for tensor in theirs.parameters() if tensor.requires_grad]
    assert sum(map(torch.numel, tensors)) == model.partition.counts(model.shapes)[0]
    step, (trainable, frozen) = stepper(model, base, RATE), model.partition.split(params)
    optimizer = torch.optim.SGD(tensors, RATE)
    for number in range(STEPS):
        trainable, loss, logits, grads = step(trainable, frozen)
        optimizer.zero_grad()
        wanted = their_logits(theirs, base.batch)
        value = their_loss(wanted, base.labels)
        value.backward()
        if number == 0:
            assert difference(logits, wanted.detach()) < 1e-4
            named = dict(encoder.named_parameters())
            largest = max(float(tensor.grad.abs().max()) for tensor in named.values())
            for key, grad in as_theirs(model, grads).items():
                assert difference(grad, named[key].grad, largest) < 1e-4, key
        optimizer.step()
        np.testing.assert_allclose(loss, value.item(), rtol=1e-4)


def under(case: str, head: str | None, **settings) -> tuned.Tuned:
    """A case's model under a method."""
    task = {"head": head, "labels": 3, "pooling": "cls"}
    return build_tuned(config_of(case), methods.create(settings), {}, task)


WORDS = {"bert": "tokens", "gemma": "causal_lm", "t5": "classification", "bart": "seq2seq_lm"}


@pytest.mark.parametrize("case", WORDS)
def test_prompts_from_text_are_its_words_before_the_input(case):
    """The model gives what the base gives of the text's tokens, over and over, and the input's."""
    tuning = {"name": "prompt_tuning", "length": 5, "init": "text", "text": "a b c"}
    model, plain = under(case, WORDS[case], **tuning), made(case, WORDS[case])
    params = parameters(plain)
    base = dataclasses.replace(model.base, tokenize=lambda text: [7, 9, 11])
    params |= model.method.initialize(base, params, jax.random.key(0))
    random = np.random.default_rng(0)
    ids = random.integers(4, 64, (2, 8))
    ids[:, -1] = getattr(plain.config, "end", 5)
    mask = np.ones_like(ids)
    batch, longer = {"input_ids": ids, "attention_mask": mask}, {}
    longer["input_ids"] = np.concatenate([np.tile([7, 9, 11, 7, 9], (2, 1)), ids], 1)
    longer["attention_mask"] = np.ones_like(longer["input_ids"])
    if case in ("t5", "bart"):
        start = np.full((2, 1), plain.config.start)
        longer["decoder_input_ids"] = np.concatenate([start, ids[:, :-1]], 1)
    wanted = quick(lambda p: plain.apply(p, longer))({path: params[path] for path in plain.shapes})
    found = quick(lambda p: model.apply(p, batch))(params)
    if case in ("bert", "gemma"):
        wanted = wanted[:, 5:]
    assert difference(found, wanted) < 1e-5


def test_prompts_from_the_vocabulary_are_some_of_its_words():
    model = under("gemma", "causal_lm", name="prompt_tuning", length=9, init="vocabulary")
    params = parameters(model)
    (found,) = model.method.initialize(model.base, params, jax.random.key(0)).values()
    words = params["words/embedding"] * np.sqrt(32)
    distance = np.abs(np.asarray(found)[:, None] - words).max(-1)
    np.testing.assert_allclose(distance.min(1), 0, atol=1e-5)
    assert len(set(distance.argmin(1))) > 3


NAMES = ("prompt_tuning", "prefix_tuning")
PACKED = [*itertools.product(NAMES, ("bert", "gemma2"), (None, "classification"))]
ACROSS = covering(PACKED, [(NAMES[0], "bert", None), (NAMES[1], "gemma2", "classification")])


@pytest.mark.parametrize(("name", "case", "head"), product(PACKED, ACROSS))
def test_packed_examples_equal_each_alone(case, name, head):
    if (case, head) == ("gemma2", None):
        head = "causal_lm"
    model = under(case, head, name=name, length=3)
    params, rows = parameters(model), examples(2)
    run, batch = quick(lambda batch: model.apply(params, batch)), packed(rows)
    together, wanted, found = np.asarray(run(batch)), [], []
    for row, parts in enumerate(rows):
        for number, part in enumerate(parts):
            wanted.append(run(part)[0])
            here = batch["segment_ids"][row] == number + 1
            found.append(together[row, number if head == "classification" else here])
    assert difference(np.concatenate(found), np.concatenate(wanted)) < 1e-5


def test_a_folder_of_p_tuning_is_one_of_prompt_tuning(parent, tmp_path):
    """Both ways: what peft writes, and what we do."""
    base = base_of("bert", parent)
    config = peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=K)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base.copy(), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    assert files.read(tmp_path / "theirs") == {"name": "prompt_tuning", "length": K}
    model = base.under(files.read(tmp_path / "theirs"))
    params, absent = files.load_into(model, base.moved(model), tmp_path / "theirs")
    wanted = their_logits(theirs, base.batch).detach()
    assert not absent and difference(quick(model.apply)(params, base.batch), wanted) < 1e-4
    ours = base.under({"name": "p_tuning", "length": K})
    params = base.moved(ours)
    files.write(tmp_path / "ours", base.folder, ours, params)
    loaded = peft.PeftModel.from_pretrained(base.copy(), tmp_path / "ours").eval()
    found = their_logits(loaded, base.batch).detach()
    assert difference(quick(ours.apply)(params, base.batch), found) < 1e-4
    with pytest.raises(UserError, match="prompt_tuning"):
        files.load_into(ours, params, tmp_path / "ours")


EVEN = {
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**{**T5, "num_layers": 2})
    ),
    "bart": lambda: transformers.BartForConditionalGeneration(
        transformers.BartConfig(**{**BART, "decoder_layers": 2, "decoder_attention_heads": 4})
    ),
}


@pytest.mark.parametrize("family", EVEN)
def test_prefixes_of_an_even_number_of_layers(family, tmp_path):
    """Each has its own here, and in the folder; where peft shares them, copies are read."""
    torch.manual_seed(0)
    theirs = EVEN[family]().eval()
    theirs.save_pretrained(tmp_path / "base")
    base = Base("t5", tmp_path / "base", theirs)  # in all but its kind
    model = base.under({"name": "prefix_tuning", "length": K})
    params, run = base.moved(model), quick(lambda params: model.apply(params, base.batch))
    files.write(tmp_path / "ours", tmp_path / "base", model, params)
    loaded = peft.PeftModel.from_pretrained(base.copy(), tmp_path / "ours").eval()
    with torch.no_grad():
        assert difference(run(params), their_logits(loaded, base.batch)) < 1e-4
    back, absent = files.load_into(model, base.moved(model, seed=5), tmp_path / "ours")
    assert absent == [path for path in params if model.names.in_head(path)]  # the base's, frozen
    for path, leaf in params.items():
        np.testing.assert_array_equal(back[path], leaf, err_msg=path)
    config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=K)
    shared = peft.get_peft_model(base.copy(), config).eval()
    shared.save_pretrained(tmp_path / "theirs")
    params, absent = files.load_into(model, params, tmp_path / "theirs")
    with torch.no_grad():
        assert difference(run(params), their_logits(shared, base.batch)) < 1e-4
    first, last = (params[f"{core}/prefix_key"] for core in model.method.in_order(model.base))
    np.testing.assert_array_equal(first, last)


BAD = [
    ({"name": "prompt_tuning", "length": 0}, "length"),
    ({"name": "prefix_tuning", "length": -1}, "length"),
    ({"name": "prefix_tuning", "length": 60}, "length"),
    ({"name": "prefix_tuning", "projection": -1}, "projection"),
    ({"name": "prompt_tuning", "init": "words"}, "init"),
    ({"name": "prompt_tuning", "init": "text"}, "text"),
    ({"name": "prompt_tuning", "text": "good or bad"}, "text"),
    ({"name": "p_tuning", "encoder": "gru"}, "encoder"),
    ({"name": "p_tuning", "width": -1}, "width"),
    ({"name": "prefix_tuning", "places": ("decoder",)}, "places"),
]


@pytest.mark.parametrize(("settings", "key"), BAD)
def test_bad_settings_are_named(settings, key):
    with pytest.raises(UserError, match=rf"method\.{key}"):
        under("bert", "classification", **settings)


def test_prefixes_that_peft_cannot_hold_are_refused():
    even = under("bart", "seq2seq_lm", name="prefix_tuning", length=3, places=("encoder",))
    with pytest.raises(UserError, match="decoder's own"):
        files.to_peft(even, parameters(even))
    shifted = under("bert", "classification", name="prefix_tuning", shift=False)
    with pytest.raises(UserError, match="shift"):
        files.to_peft(shifted, parameters(shifted))
