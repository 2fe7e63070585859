"""The modules of sentence-transformers' folders."""
