"""Summaries of dialogues, by ROUGE.

data.path: a folder of .jsonl with source and target. By hub id: --config.data.source=hub
--config.data.path=knkarthick/dialogsum --config.data.columns.source=dialogue
--config.data.columns.target=summary. csl_zh (titles of Chinese abstracts) runs by the same page.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 3e-4, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "seq2seq")
    config.model.path = "google/flan-t5-small"
    config.task.metrics = "summary"
    config.task.prefix = "summarize: "
    config.task.max_new_tokens = 64
    config.data.path = "data/dialogsum"
    config.data.max_length = 512
    config.data.prepare = ()
    config.train.epochs = 3
    config.train.batch_size = 8
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
