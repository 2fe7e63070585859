"""Imports go up the list of rooms, never down: see `ftjax/__init__.py`."""
