"""From a configuration to mesh, models, tokenizer and prompts."""
