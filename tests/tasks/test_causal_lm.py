"""Language modelling: blocks of rows end to end, and the loss of torch."""

import numpy as np
import pytest
import torch
from transformers.trainer_pt_utils import LabelSmoother

from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.tasks.causal_lm import CausalLM
from tests.conftest import WORDS
from tests.tasks.small_models import (
    SmallModel,
    batches,
    examples_of,
    tensors,
    write_trained,
    write_words,
)

TASK = CausalLM()


def rows_of(count, seed=0):
    random = np.random.default_rng(seed)
    return [
        {"text": " ".join(random.choice(WORDS, int(random.integers(2, 20))))} for _ in range(count)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = write_words(tmp_path_factory.mktemp("lm"), eos="[SEP]")
    return SmallModel.of(TASK, "llama", "causal_lm", folder), folder


@pytest.mark.parametrize("block", [2, 8, 13])
def test_blocks_are_the_rows_end_to_end(made, block):
    folder, rows = made[1], rows_of(9)
    split, names, examples = examples_of(CausalLM(block=block), rows, folder)
    tokenizer = load_tokenizer(folder)
    each = [tokenizer(row["text"], add_special_tokens=False)["input_ids"] for row in rows]
    whole = [token for ids in each for token in (*ids, tokenizer.eos_token_id)]
    assert examples.ids.values.tolist() == whole
    assert set(examples.ids.lengths[:-1]) == {block} and 0 < examples.ids.lengths[-1] <= block
    starts = np.cumsum([0, *(len(ids) + 1 for ids in each)])
    for number, row in enumerate(examples.row_numbers):  # that a block begins in
        assert starts[row] <= number * block < starts[row + 1]
    outputs = np.tile([2.0, 1.0, 4.0], (len(examples), 1))
    found = CausalLM(block=block).predictions(outputs, examples, split, names)
    assert len(found) == len(rows) and sum(row["tokens"] for row in found) == 4 * len(examples)


def test_rows_end_where_a_model_is_to_stop(made, tmp_path):
    """With the end of text, once, also where the tokenizer does not write it; cut rows do not."""
    folder, end = write_trained(tmp_path, "bpe", WORDS), "</s>"
    texts = ["good film", f"bad{end}", "zz zz zz zz", "zz zz zz"]
    _, _, examples = examples_of(TASK, [{"text": text} for text in texts], folder, 8)
    tokenizer = load_tokenizer(folder)
    sizes = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert sizes[2] > 8 == sizes[3]
    found = [tokenizer.decode(examples.ids[i]) for i in range(4)]
    assert found == [f"good film{end}", f"bad{end}", *[tokenizer.decode(
        tokenizer(text)["input_ids"][:8]) for text in texts[2:]]]  # fmt: skip
    assert examples.truncated == 2
    ids = examples_of(TASK, [{"text": "good film"}], made[1])[2].ids[0]
    assert load_tokenizer(made[1]).decode(ids) == "[CLS] good film [SEP]"  # by the tokenizer


def test_blocks_that_do_not_fit_are_refused(made):
    for block in (1, 33):
        with pytest.raises(UserError, match=f"task.block={block} must be 2 to data.max_length=32"):
            examples_of(CausalLM(block=block), rows_of(2), made[1])


@pytest.mark.parametrize("block", [0, 8])
def test_packed_padded_and_torch_have_one_loss(made, block):
    made, folder = made
    task = CausalLM(block=block)
    made = made.with_task(task)
    split, names, examples = examples_of(task, rows_of(9), folder)
    total, hits, count = 0.0, 0, 0
    for number in range(len(examples)):
        ids = torch.tensor(examples.ids[number][None]).long()
        with torch.no_grad():
            out = made.theirs(input_ids=ids, labels=ids)
        if ids.shape[1] > 1:
            total += out.loss.item() * (ids.shape[1] - 1)
        hits += int((out.logits[0, :-1].argmax(-1) == ids[0, 1:]).sum())
        count += ids.shape[1] - 1
    for packed in (False, True):
        np.testing.assert_allclose(
            made.sums(batches(examples, 4, packed)), total / count, rtol=1e-5
        )
        scores = task.score(made.outputs(examples, packed, 4), examples, split, names)
        np.testing.assert_allclose(scores["loss"], total / count, rtol=1e-5)
        np.testing.assert_allclose(scores["perplexity"], np.exp(total / count), rtol=1e-4)
        np.testing.assert_allclose(scores["token_accuracy"], hits / count)
        assert scores["tokens"] == count


def test_label_smoothing_equals_transformers(made):
    made, folder = made
    task = CausalLM(label_smoothing=0.3)
    _, _, examples = examples_of(task, rows_of(4), folder)
    (batch,) = batches(examples, 4)
    labels = torch.tensor(np.where(batch["attention_mask"] > 0, batch["input_ids"], -100))
    with torch.no_grad():
        out = made.theirs(**tensors(batch, "input_ids", "attention_mask"))
    wanted = LabelSmoother(epsilon=0.3)(out, labels, shift_labels=True)
    found = made.with_task(task).gradients(batch, train=True)[0]
    np.testing.assert_allclose(found, wanted.item(), rtol=1e-5)


def test_learned_tokens_alone_count(made):
    """As torch's cross-entropy with labels of -100 elsewhere."""
    made, folder = made
    _, _, examples = examples_of(TASK, rows_of(6), folder)
    (batch,) = batches(examples, 6)
    learned = np.random.default_rng(0).integers(0, 2, batch["input_ids"].shape)
    labels = np.where((learned > 0) & (batch["attention_mask"] > 0), batch["input_ids"], -100)
    out = made.theirs(
        **tensors(batch, "input_ids", "attention_mask"), labels=torch.tensor(labels).long()
    )
    np.testing.assert_allclose(
        made.sums([{**batch, "learned": learned}]), out.loss.item(), rtol=1e-5
    )
