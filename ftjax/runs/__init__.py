"""Runs: a configuration trained in a work folder, from its beginning to its report."""
