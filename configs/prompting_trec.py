"""TREC question types without training: SmolLM2, or as prompting_trec.py:minilm MiniLM.

Few shots: --config.method.shots=6, or with --config.method.demonstrations=nearest.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config


def get_config(model: str = "smollm2") -> ConfigDict:
    config = default_config("prompting")
    config.data.path = "data/trec"  # labels 0 to 5
    config.method.words = ("description", "entity", "abbreviation", "person", "location", "number")
    if model == "minilm":
        config.method.templates = ("{label}", "A question about a {label}.", "Which {label}?")
        return config
    config.model.path = "smollm2"
    config.data.max_length = 512
    config.train.eval_batch_size = 16
    config.method.templates = (
        "Question: {text}\nAnswer type: {label}",
        "{text}\nThe answer to this question is a {label}",
    )
    return config
