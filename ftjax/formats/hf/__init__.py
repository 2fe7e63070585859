"""Hugging Face's folders: weights, tokenizers, and parameters by their names."""
