"""Numbers in words for people: rounded, with their unit. The command line uses the same ones."""

from core.words import count, duration, memory, percent, plural, size

__all__ = ["count", "duration", "memory", "percent", "plural", "size"]
