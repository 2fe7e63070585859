"""CMRC 2018: the part of a Chinese text that answers a question.

data.path: a folder of train and validation .jsonl with id, context, question and answers. By hub
id: --config.data.source=hub --config.data.path=hfl/cmrc2018
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 3e-5, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "span_qa")
    config.model.path = "google-bert/bert-base-chinese"
    config.task.language = "zh"
    config.task.stride = 128
    config.task.max_answer = 128
    config.data.path = "data/cmrc2018"
    config.data.on_error = "skip"  # answers whose place is wrong
    config.data.max_length = 384
    config.data.prepare = ()
    config.train.epochs = 2
    config.train.batch_size = 16
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
