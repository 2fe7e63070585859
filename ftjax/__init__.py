"""ftjax: fine-tuning language models in JAX.

A fine-tuning method is a selection of a trainable subtree of the parameters, plus the parameters
it adds. Importing this package imports nothing heavy; import the room you need.
"""

__version__ = "0.1.0"
