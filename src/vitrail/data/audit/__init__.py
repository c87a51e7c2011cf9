"""Audit of a data set before training: damaged files, duplicates, leaks, imbalance, odd labels."""
