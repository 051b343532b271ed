"""LoRA: layers, injection, adapter files."""
