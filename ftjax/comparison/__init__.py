"""Comparing methods: the study, its numbers, its report."""
