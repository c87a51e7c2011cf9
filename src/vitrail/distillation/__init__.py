"""Distillation: what a trained model answers to the views of a training, kept by view, and the losses that learn it."""
