"""Base models: what is on this machine, whether it is safe, how it is loaded."""
