"""GSM8K: problems and their solutions as chats, by a small instruction model.

data.path: a folder of .jsonl with question and answer. By hub id: --config.data.source=hub
--config.data.path=openai/gsm8k:main. What is written for 32 held-out problems is compared by the
number after ####.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 2e-5, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3}


def get_config(method: str = "lora") -> ConfigDict:
    config = default_config(method, "instruction")
    config.model.path = "smollm2"
    config.task.generate = 32
    config.task.answer = r"####\s*(-?[\d,.]*\d)"
    config.data.path = "data/gsm8k"
    config.data.columns.prompt = "question"
    config.data.columns.completion = "answer"
    config.data.max_length = 384
    config.data.batching = "pack"
    config.data.pack_length = 1024
    config.data.splits.validation = 200
    config.train.epochs = 1
    config.train.batch_size = 16
    config.train.log_every = 5
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
