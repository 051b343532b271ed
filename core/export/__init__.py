"""Merged models, adapters for others, and the proof that they are right."""
