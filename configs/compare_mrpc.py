"""Eight methods on 2,000 pairs of MRPC: are two sentences paraphrases? With MiniLM.

ftjax compare --config configs/compare_mrpc.py --seeds 3 --jobs 2 --workdir runs/compare_mrpc
data.path: a folder with train, validation and test .jsonl (text, text_pair, label).
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

# Learning rates tried on validation.
GRID = {
    "full": (3e-5, 1e-4, 3e-4),
    "head": (3e-3, 1e-2, 3e-2),
    "top_k": (1e-4, 3e-4, 1e-3),
    "bitfit": (5e-4, 1.5e-3, 5e-3),
    "houlsby": (5e-4, 1.5e-3, 5e-3),
    "pfeiffer": (5e-4, 1.5e-3, 5e-3),
    "lora": (5e-4, 1.5e-3, 5e-3),
}
METHODS = (*GRID, "prompting")


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method)
    config.data.path = "data/mrpc"
    config.data.splits.train = 2000
    config.data.max_length = 128
    config.data.batching = "pack"
    config.data.buckets = 1
    config.optimizer.learning_rate = GRID.get(method, (1e-4,) * 2)[1]
    config.train.epochs = 3
    config.train.batch_size = 32
    config.train.best_metric = "f1"
    if method == "prompting":
        config.method.words = ("different", "equivalent")
    return config
