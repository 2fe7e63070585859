"""Files of others: Hugging Face folders and PEFT adapters."""
