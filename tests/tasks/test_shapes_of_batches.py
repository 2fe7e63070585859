"""Shapes of batches as they are said before there is data: those that the loader makes."""

import pytest

from ftjax import tasks
from ftjax.forecast.lowering import abstract_batch
from tests.forecast.abstract import config_of
from tests.tasks.small_models import batches, examples_of
from tests.tasks.test_span_qa import rows_of

TEXT = {"text": "good", "text_pair": "bad"}
MARKED = "<e1>it</e1> was <e2>film</e2>"
ROWS = {  # of two labels
    "classification": [{**TEXT, "label": "ab"[i % 2]} for i in range(4)],
    "relation": [{"text": MARKED, "label": "ab"[i % 2]} for i in range(4)],
    "multilabel": [{**TEXT, "label": ["b", "a"][i % 2 :]} for i in range(4)],
    "ordinal": [{**TEXT, "label": i % 2} for i in range(4)],
    "regression": [{**TEXT, "label": i / 3} for i in range(4)],
    "contrastive": [TEXT] * 4,
    "multiple_choice": [{"text": "it", "choices": ["good", "bad"], "label": 1}] * 4,
    "span_qa": rows_of(4, 12),
    "token_classification": [{"tokens": ["a", "b"], "tags": ["B-a", "O"]}] * 4,
}


@pytest.mark.parametrize("name", ROWS)
def test_batches_are_as_is_said_before_there_is_data(name, tiny):
    task = tasks.find(name)()
    if name == "span_qa":
        task = type(task)(stride=4)
    _, _, examples = examples_of(task, ROWS[name], tiny)
    (batch,) = batches(examples, 4)
    said = abstract_batch(config_of(tiny, "full", name), task)
    rows, length = 4, batch["input_ids"].shape[-1]
    for array, shape in said.items():
        assert batch[array].dtype == shape.dtype, array
        of_tokens = shape.shape[-1] == said["input_ids"].shape[-1]
        wanted = (*shape.shape[1:-1], length) if of_tokens else shape.shape[1:]
        assert batch[array].shape == (rows, *wanted), array
