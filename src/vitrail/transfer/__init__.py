"""Fine-tuning on somebody's images: what they are, which settings fit them and why, and the floor of a linear probe."""
