"""Preferences: DPO's losses by their formulas, from torch's probabilities of a small Llama."""

from functools import partial

import jax
import numpy as np
import pytest
import torch

from ftjax.data.encode import Examples, ragged
from ftjax.errors import UserError
from ftjax.evaluation.forward import Forward, refer
from ftjax.formats.folder import load_tokenizer
from ftjax.models import language_head
from ftjax.tasks.preference import Preference
from tests.compiler import OPTIONS
from tests.conftest import WORDS
from tests.tasks.small_models import (
    SmallModel,
    batches,
    equals,
    examples_of,
    layout,
    split_of,
    write_words,
)

TASK = Preference(template="plain", beta=0.3)


def rows_of(count, seed=0):
    random = np.random.default_rng(seed)

    def text(most):
        return " ".join(random.choice(WORDS, int(random.integers(1, most))))

    return [{"prompt": text(6), "chosen": text(5), "rejected": text(8)} for _ in range(count)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = write_words(tmp_path_factory.mktemp("preference"), eos="[SEP]")
    return SmallModel.of(TASK, "llama", "causal_lm", folder), folder


def torch_sums(model, examples, mean=False):
    """log π of the answers' tokens (rows, 2), with their graph."""
    found = []
    for number in range(len(examples.ids)):
        ids = torch.tensor(examples.ids[number][None]).long()
        own = torch.tensor(
            examples.tokens["learned"][slice(*examples.ids.offsets[number : number + 2])]
        )
        chances = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        each = chances.gather(1, ids[0, 1:, None])[:, 0][own[1:] > 0]
        found.append(each.mean() if mean else each.sum())
    return torch.stack(found).reshape(-1, 2)


def referred(made, examples):
    """With what the model without its method says."""
    reference = partial(made.tuned.apply, adapted=False)

    def apply(params, batch):
        return made.task.outputs(partial(reference, params), batch)

    mesh = next(iter(made.params.values())).sharding.mesh
    return refer(Forward(mesh, 4, apply), made.params, {}, examples, layout(examples, 4, False))


def test_rows_are_chats_with_their_answers(made):
    tokenizer = load_tokenizer(made[1])
    rows = [
        {"prompt": "good", "chosen": "film", "rejected": "bad plot"},
        {
            "prompt": [{"role": "user", "content": "good"}],
            "chosen": [{"role": "assistant", "content": "film"}],
            "rejected": [{"role": "assistant", "content": "bad plot"}],
        },
        {
            "prompt": [{"role": "user", "content": "good"}],
            "chosen": [
                {"role": "user", "content": "good"},
                {"role": "assistant", "content": "film"},
            ],
            "rejected": [
                {"role": "user", "content": "good"},
                {"role": "assistant", "content": "bad plot"},
            ],
        },
    ]
    for row in rows:
        _, _, examples = examples_of(TASK, [row], made[1])
        said = []
        for number in range(2):
            ids = examples.ids[number]
            own = examples.tokens["learned"][slice(*examples.ids.offsets[number : number + 2])]
            said.append((tokenizer.decode(ids[own == 0]), tokenizer.decode(ids[own > 0])))
        before = "[UNK] [UNK] good [SEP] [UNK] [UNK]"  # user: good, assistant:
        assert said == [(before, "film [SEP]"), (before, "bad plot [SEP]")]
    whole = {name: rows[2][name] for name in ("chosen", "rejected")}  # without a prompt
    _, _, again = examples_of(TASK, [whole], made[1])
    np.testing.assert_array_equal(again.ids.values, examples.ids.values)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "there is no prompt before chosen: 'a'"),
        ({"prompt": "p", "chosen": "a"}, "no field 'rejected'"),
        ({"prompt": "p", "chosen": " ", "rejected": "b"}, "field 'chosen' is empty"),
        (
            {"prompt": "p", "chosen": [{"role": "user", "content": "a"}], "rejected": "b"},
            "chosen must end with a turn of the assistant",
        ),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "field 'chosen' must be a list of turns"),
    ],
)
def test_bad_rows_are_named(row, message):
    with pytest.raises(UserError, match=f"rows.jsonl: row 1.*{message}"):
        split_of(TASK, [row])


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_log_probabilities_equal_torch(made, kind, monkeypatch):
    made, folder = made
    made = made.with_task(Preference(template="plain", kind=kind))
    _, _, examples = examples_of(made.task, rows_of(7), folder)
    with torch.no_grad():
        wanted = torch_sums(made.theirs, examples, mean=kind == "ipo").numpy()
    np.testing.assert_allclose(made.outputs(examples, size=4), wanted, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(language_head, "CHUNK", 64 * 8 * 3)  # three positions at a time
    np.testing.assert_allclose(made.outputs(examples, size=4), wanted, rtol=1e-4, atol=1e-4)


def test_chunks_equal_torch_and_its_gradients():
    random = np.random.default_rng(0)
    x, kernel = (random.normal(size=s).astype(np.float32) for s in ((2, 7, 5), (5, 11)))
    targets, weights = random.integers(0, 11, (2, 7)), random.normal(size=(2, 7))
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, kernel)]
    logits = 3 * torch.tanh(tensors[0] @ tensors[1] / 3)
    wanted = logits.log_softmax(-1).gather(2, torch.tensor(targets)[..., None])[..., 0]
    (wanted * torch.tensor(weights)).sum().backward()

    def total(x, kernel):
        found = language_head.score(x, kernel, targets, softcap=3.0)
        return (found * weights).sum(), found

    for chunk in (2**25, 2 * 11 * 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(language_head, "CHUNK", chunk)
            grads, found = jax.grad(total, (0, 1), has_aux=True)(x, kernel)
        np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-5)
        for grad, tensor in zip(grads, tensors, strict=True):
            np.testing.assert_allclose(grad, tensor.grad.numpy(), rtol=1e-4, atol=1e-5)


def formula(kind, gain, beta, smoothing):
    """Of Δ − Δ₀, in torch."""
    if kind == "ipo":
        return (gain - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return torch.clamp(1 - beta * gain, min=0)
    right, wrong = (torch.log(torch.sigmoid(sign * beta * gain)) for sign in (1, -1))
    return -(1 - smoothing) * right - smoothing * wrong


@pytest.mark.parametrize(
    ("kind", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("hinge", 0.0), ("ipo", 0.0)]
)
def test_losses_and_gradients_equal_the_formulas(made, kind, smoothing):
    made, folder = made
    task = Preference(template="plain", beta=0.3, kind=kind, label_smoothing=smoothing)
    made = made.with_task(task)
    split, names, examples = examples_of(task, rows_of(6, seed=1), folder)
    random = np.random.default_rng(0)
    made.theirs.zero_grad()
    sums = torch_sums(made.theirs, examples, mean=kind == "ipo")
    reference = sums.detach().numpy() + random.normal(0, 2, (6, 2)).astype(np.float32)
    gain = (sums - torch.tensor(reference)) @ torch.tensor([1.0, -1.0])
    losses = formula(kind, gain, 0.3, smoothing)
    losses.mean().backward()
    examples = type(examples)(**{**vars(examples), "arrays": {"reference": reference}})
    (batch,) = batches(examples, 6)
    loss, gradients = made.gradients(batch)
    np.testing.assert_allclose(loss, losses.mean().item(), rtol=1e-4)
    if kind != "ipo":  # the others share what is below
        equals(gradients, made.theirs, 1e-3)
    outputs = sums.detach().numpy()
    scores = task.score(outputs, examples, split, names)
    np.testing.assert_allclose(scores["loss"], losses.mean().item(), rtol=1e-4)
    assert scores["accuracy"] == (gain > 0).sum().item() / 6
    np.testing.assert_allclose(scores["margin"], 0.3 * gain.mean().item(), rtol=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_first_loss_is_log_2(made, method):
    """The reference is the model before training, without what the method adds."""
    folder = made[1]
    own = (
        made[0]
        if method == "full"
        else SmallModel.of(TASK, "llama", "causal_lm", folder, name="lora")
    )
    _, _, examples = examples_of(TASK, rows_of(5, seed=2), folder)
    examples = referred(own, examples)
    with torch.no_grad():
        wanted = torch_sums(own.theirs, examples).numpy()
    np.testing.assert_allclose(examples.arrays["reference"], wanted, rtol=1e-4, atol=1e-4)
    several = batches(examples, 4)
    np.testing.assert_allclose(own.sums(several), np.log(2), rtol=1e-5)
    trainable, frozen = own.tuned.partition.split(own.params)

    @partial(jax.jit, compiler_options=OPTIONS)
    def step(trainable, batch):
        def mean(trainable):
            apply = partial(own.tuned.apply, {**trainable, **frozen})
            loss = TASK.loss(apply, batch, True)
            return loss.total / loss.weight

        grads = jax.grad(mean)(trainable)
        return {path: leaf - 0.02 * grads[path] for path, leaf in trainable.items()}

    for _ in range(3):
        trainable = step(trainable, several[0])
    moved = SmallModel(TASK, own.tuned, {**trainable, **frozen}, own.theirs)
    assert moved.sums(several[:1]) < np.log(2) - 1e-3
    again = referred(moved, examples)
    if method == "lora":  # what is trained does not move the reference
        np.testing.assert_allclose(again.arrays["reference"], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "wanted"),
    [
        # "user : " and 30 words; of 16 tokens the longer answer leaves 13 to the prompt
        (30, "film", "bad plot", ["film [SEP]", "bad plot [SEP]"]),
        # an answer that is longer than half loses its end, not the prompt
        (30, "film", "bad plot " * 9, ["film [SEP]", " ".join(["bad plot"] * 4)]),
        (1, "film " * 20, "bad", [" ".join(["film"] * 10), "bad [SEP]"]),
    ],
)
def test_long_pairs_follow_the_same_prompt(made, prompt, chosen, rejected, wanted):
    row = {"prompt": "good " * prompt, "chosen": chosen, "rejected": rejected}
    _, _, examples = examples_of(TASK, [row], made[1], 16)
    tokenizer, before = load_tokenizer(made[1]), []
    assert examples.truncated == 1 and examples.ids.lengths.max() == 16
    for number, text in enumerate(wanted):
        own = examples.tokens["learned"][slice(*examples.ids.offsets[number : number + 2])]
        assert tokenizer.decode(examples.ids[number][own > 0]) == text
        before.append(examples.ids[number][: np.argmax(own)].tolist())
    assert before[0] == before[1] and len(before[0]) >= 5


def test_what_is_preferred_is_what_is_scored():
    """The answer that gains more on the reference, not the one that is more probable."""
    outputs = np.array([[-10.0, -4.0], [-3.0, -8.0], [-2.0, -2.0]])
    reference = np.array([[-14.0, -5.0], [-2.0, -9.0], [-2.0, -2.0]])
    split = split_of(TASK, rows_of(3))
    examples = Examples(ragged([[]] * 3), arrays={"reference": reference})
    said = TASK.predictions(outputs, examples, split, ())
    assert [row["preferred"] for row in said] == ["chosen", "rejected", "rejected"]
    right = np.mean([row["preferred"] == "chosen" for row in said])
    assert right == TASK.score(outputs, examples, split, ())["accuracy"]
    np.testing.assert_allclose([row["margin"] for row in said], [0.9, -0.6, 0.0], atol=1e-6)
    sure = torch.sigmoid(torch.tensor([0.9, 0.6, 0.0])).numpy()
    np.testing.assert_allclose([row["probability"] for row in said], sure, atol=1e-6)


def test_bad_options_are_named():
    for changes in ({"kind": "dpo"}, {"beta": 0.0}, {"label_smoothing": 0.5}):
        with pytest.raises(UserError, match=f"task.*{next(iter(changes))}"):
            Preference(**changes)
