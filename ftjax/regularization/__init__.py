"""Regularization of training: each technique is a key of the configuration, all off by default.

What changes the embeddings of words in a pass is in `words` and `mixup`, what compares two passes
in `rdrop`, what takes gradients at worse words in `adversarial`, what pulls parameters back in
`l2_sp`; `loss` puts them together. Importing this needs no JAX.
"""

from collections.abc import Mapping
from typing import Any

# key, or value of `adversarial` → what it is
REGULARIZERS: dict[str, str] = {
    "fgm": "adversarial words: one step of length epsilon (adversarial=fgm)",
    "pgd": "adversarial words: steps projected on a ball (adversarial=pgd)",
    "freelb": "adversarial words: gradients averaged over the steps (adversarial=freelb)",
    "rdrop": "two passes under dropout that shall say the same",
    "mixup": "embeddings and answers of two examples mixed",
    "cutoff": "embeddings of random words zeroed",
    "neftune": "uniform noise on the embeddings of words",
    "l2_sp": "a pull towards the pretrained parameters",
    "swa": "the mean of the parameters over the end of a run (train.swa_start)",
}
OF_WORDS = ("mixup", "cutoff", "neftune")


def changes_words(settings: Mapping[str, Any]) -> bool:
    """Whether the embeddings of words are others at every step."""
    return settings["adversarial"] != "none" or any(settings[key] for key in OF_WORDS)
