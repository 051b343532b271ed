"""Run folders and their history."""
