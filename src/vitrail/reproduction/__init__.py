"""Reproducing published numbers: what a recipe asks for, what it costs here, and small runs with known curves."""
