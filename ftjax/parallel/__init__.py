"""Meshes, logical axes and hosts."""
