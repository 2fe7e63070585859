"""Eight methods on 2,000 questions of TREC: what do they ask for? With MiniLM.

ftjax compare --config configs/compare_trec.py --seeds 3 --jobs 2 --workdir runs/compare_trec
data.path: a folder with train and test .jsonl (text, label).
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
    config.data.path = "data/trec"
    config.data.splits.validation, config.data.splits.train = 500, 2000
    config.data.max_length = 48
    config.data.batching = "pack"
    config.data.buckets = 1
    config.optimizer.learning_rate = GRID.get(method, (1e-4,) * 2)[1]
    config.train.epochs = 3
    config.train.batch_size = 32
    if method == "prompting":
        config.method.words = (
            "an abbreviation",
            "an entity",
            "a description",
            "a person",
            "a place",
            "a number",
        )
    return config
