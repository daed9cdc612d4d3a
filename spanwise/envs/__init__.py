"""Task families: prompts, and an answer to each turn of the model."""
