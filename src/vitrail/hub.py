"""What a user may import of the Hugging Face hub: folders written and uploaded."""

from vitrail.weights.hub import push_to_hub, save_pretrained

__all__ = ["push_to_hub", "save_pretrained"]
