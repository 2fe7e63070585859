"""Work folders: one run each."""
