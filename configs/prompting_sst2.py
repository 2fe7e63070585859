"""SST-2 without training: SmolLM2, or as prompting_sst2.py:minilm MiniLM.

Few shots: --config.method.shots=4 --config.method.calibrate=True.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config


def get_config(model: str = "smollm2") -> ConfigDict:
    config = default_config("prompting")
    config.data.path = "data/sst2"
    config.method.words = ("negative", "positive")
    if model == "minilm":
        config.method.templates = ("{label}", "A {label} review.", "I feel {label} about the film.")
        return config
    config.model.path = "smollm2"
    config.data.max_length = 512
    config.train.eval_batch_size = 16
    config.method.templates = (
        "Review: {text}\nSentiment: {label}",
        "{text}\nThe review of the film is {label}",
    )
    return config
