"""ARC: one of several answers to a question of science.

data.path: a hub id, or a folder of .jsonl with text, choices and label (a number from 0, a letter
or the text of the choice).
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 5e-5, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "multiple_choice")
    config.data.source = "hub"
    config.data.path = "allenai/ai2_arc:ARC-Easy"
    config.data.columns.text = "question"
    config.data.columns.label = "answerKey"
    config.data.max_length = 128
    config.data.prepare = ()
    config.train.epochs = 3
    config.train.batch_size = 16
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
