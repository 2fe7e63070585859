"""Programs compiled for machines that are not there, and what they say of a run."""
