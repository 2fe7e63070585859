"""Sentence embeddings: each question near its answer, of gsm8k.

data.path: a folder of .jsonl with two texts that belong together. By hub id:
--config.data.source=hub --config.data.path=openai/gsm8k:main
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 5e-5, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "contrastive")
    config.data.path = "data/gsm8k"
    config.data.columns.text = "question"
    config.data.columns.text_pair = "answer"
    config.data.max_length = 128
    config.train.epochs = 1
    config.train.batch_size = 64
    config.train.best_metric = "reciprocal_rank"
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
