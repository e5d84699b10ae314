"""Hugging Face folders: weight names, safetensors, GGUF."""
