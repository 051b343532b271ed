"""The training core: torch, no Qt."""
