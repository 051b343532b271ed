"""The parts of bench/training.py: one file for each subject that is measured."""
