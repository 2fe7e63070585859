"""Rows of every task as a .jsonl has them, one or two each; the tests read them by its schema."""

from collections.abc import Mapping
from typing import Any

EXAMPLES: Mapping[str, list[dict[str, Any]]] = {
    "classification": [
        {"text": "a lovely film", "label": "good"},
        {"text": "dull from the first scene", "label": "bad"},
    ],
    "multilabel": [{"text": "rain, and a strike at the port", "label": ["weather", "economy"]}],
    "ordinal": [{"text": "it was all right", "label": "3"}],
    "regression": [{"text": "a plane takes off", "text_pair": "an aircraft starts", "label": 4.8}],
    "token_classification": [
        {"tokens": ["Anna", "lives", "in", "Rome"], "tags": ["B-PER", "O", "O", "B-LOC"]}
    ],
    "relation": [
        {
            "text": "the <e1>fire</e1> in the <e2>attic</e2>",
            "label": "Component-Whole(e1,e2)",
        }
    ],
    "multiple_choice": [
        {"text": "Ice is", "choices": ["frozen water", "burning oil"], "label": "0"}
    ],
    "span_qa": [
        {
            "question": "Where does Anna live?",
            "context": "Anna lives in Rome.",
            "answers": {"text": ["Rome"], "answer_start": [14]},
        }
    ],
    "contrastive": [{"text": "how do I reset it", "text_pair": "resetting the device"}],
    "seq2seq": [{"source": "Good morning.", "target": "早上好。"}],
    "causal_lm": [{"text": "Once upon a time there was a mill."}],
    "instruction": [
        {
            "messages": [
                {"role": "user", "content": "Say hello in Chinese."},
                {"role": "assistant", "content": "你好。"},
            ]
        }
    ],
    "preference": [{"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."}],
    "masked_lm": [{"text": "Once upon a time there was a mill."}],
    "next_sentence": [{"text": "A mill stood by the river. It had not turned for years."}],
    "span_corruption": [{"text": "Once upon a time there was a mill."}],
    "denoising": [{"text": "Once upon a time there was a mill."}],
}
