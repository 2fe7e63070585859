"""Options that tokens depend on: all that encoding reads, and no others."""

from dataclasses import dataclass, fields
from types import MappingProxyType

import pytest

from ftjax import tasks
from ftjax.formats.folder import load_tokenizer
from ftjax.tasks.texts import Texts
from tests.tasks.small_models import split_of, write_words

CHAT = [{"role": "user", "content": "good"}, {"role": "assistant", "content": "bad film"}]
TEXT = {"text": "a good film. it was fine", "label": "yes"}
ROWS = MappingProxyType(
    {
        "regression": {"text": "a good film", "label": 1.0},
        "ordinal": {"text": "a good film", "label": "1"},
        "multilabel": {"text": "a good film", "label": ["a", "b"]},
        "token_classification": {"tokens": ["good", "film"], "tags": ["B-a", "O"]},
        "relation": {"text": "<e1>good</e1> a <e2>film</e2>", "label": "a"},
        "multiple_choice": {"text": "good", "choices": ["a film", "two"], "label": "0"},
        "span_qa": {
            "question": "good",
            "context": "a film was fine",
            "answers": {"text": ["film"], "answer_start": [2]},
        },
        "contrastive": {"text": "good", "text_pair": "film"},
        "seq2seq": {"source": "good film", "target": "bad film"},
        "instruction": {"messages": CHAT},
        "preference": {"prompt": "good", "chosen": "film", "rejected": "bad"},
    }
)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_tokens_are_told_apart_by_what_encoding_reads(name, tmp_path):
    kind, read = tasks.find(name), set()
    options = {each.name for each in fields(kind)}

    class Watched(kind):
        def __getattribute__(self, key):
            if key in options:
                read.add(key)
            return super().__getattribute__(key)

    changes = {"template": "plain"} if "template" in options else {}
    changes |= {"stride": 4} if "stride" in options else {}
    task = Watched(**changes)
    split = split_of(task, [ROWS.get(name, TEXT)])
    tokenizer = load_tokenizer(write_words(tmp_path, eos="[SEP]"))
    read.clear()
    task.encode(tokenizer, split.rows[:], 24)
    if name == "seq2seq":
        read |= {"prefix", "languages"}
    if name in ("instruction", "preference"):
        read |= {"template"}
    assert read == set(kind.encoded_by), read


def test_a_task_that_encodes_by_itself_is_told_apart_by_all():
    @dataclass(frozen=True)
    class Own(Texts):
        upper: bool = False

        def encode(self, tokenizer, columns, max_length):
            return {}

    @dataclass(frozen=True)
    class Same(Texts):
        upper: bool = False

    assert Own(upper=True).encoding != Own().encoding
    assert Same(upper=True).encoding == Same().encoding == Texts().encoding
