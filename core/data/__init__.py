"""Datasets: bytes to rows, rows to conversations, conversations to tokens."""
