"""A model that answers: weights in PyTorch or an exported file in its runtime; prediction and latency."""
