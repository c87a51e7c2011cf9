"""Explanations: what a model attends to, and which parts of an image its answer rests on."""
