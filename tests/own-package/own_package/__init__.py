"""What is not in ftjax, and is found by it: one file each."""
