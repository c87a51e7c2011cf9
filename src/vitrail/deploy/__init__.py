"""What makes files for other runtimes of a model: export, 8-bit quantization, and the proof that they agree."""
