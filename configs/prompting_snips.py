"""SNIPS intents without training: SmolLM2, or as prompting_snips.py:minilm MiniLM.

Few shots: --config.method.shots=7, or with --config.method.demonstrations=nearest. Rows have
"text", a request's words with spaces between, and "label".
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

WORDS = {
    "AddToPlaylist": "add to a playlist",
    "BookRestaurant": "book a restaurant",
    "GetWeather": "get the weather",
    "PlayMusic": "play music",
    "RateBook": "rate a book",
    "SearchCreativeWork": "find a work",
    "SearchScreeningEvent": "find movie times",
}


def get_config(model: str = "smollm2") -> ConfigDict:
    config = default_config("prompting")
    config.data.path = "data/snips"
    config.task.labels = tuple(WORDS)
    config.method.words = tuple(WORDS.values())
    if model == "minilm":
        config.method.templates = ("{label}", "I want to {label}.", "A request to {label}.")
        return config
    config.model.path = "smollm2"
    config.data.max_length = 512
    config.train.eval_batch_size = 16
    config.method.templates = (
        "Request: {text}\nIntent: {label}",
        "{text}\nThe user wants to {label}",
    )
    return config
