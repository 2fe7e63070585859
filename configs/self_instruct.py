"""Instructions and what an assistant answers, in the model's own chat template.

data.path: a folder of .jsonl with messages (role, content), or of ShareGPT's or Alpaca's form. By
hub id: --config.data.source=hub --config.data.path=HuggingFaceH4/no_robots
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 2e-5, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3}


def get_config(method: str = "lora") -> ConfigDict:
    config = default_config(method, "instruction")
    config.model.path = "smollm2"
    config.data.path = "data/self_instruct"
    config.data.max_length = 512
    config.data.batching = "pack"
    config.data.pack_length = 1024
    config.data.splits.validation = 25
    config.train.epochs = 3
    config.train.batch_size = 8
    config.train.log_every = 5
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
