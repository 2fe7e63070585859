"""AdapterHub's adapter folders."""
