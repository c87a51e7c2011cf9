"""Kinds of weight files, each read without running anything in it."""
