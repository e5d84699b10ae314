"""From a configuration to mesh, models, tokenizer, prompts."""
