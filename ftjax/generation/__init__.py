"""Text from models with a language-model head: greedy, sampled, or by beam search."""
