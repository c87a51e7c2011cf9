"""A child in which timm's AttentionExtract and torchvision's create_feature_extractor look into tiny models.

In the tests' own process the annotations of `vitrail.models` are checked at every call, which a
symbolic trace does not pass.
"""

from __future__ import annotations

import json
import sys
import warnings

import torch
from timm.utils import AttentionExtract
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from support.explained_models import build, random_images
from vitrail.explanation.attention import record_attention

if __name__ == "__main__":
    warnings.simplefilter("error")
    seen = {}
    for name in sys.argv[1:]:
        model = build(name, image_size=64)
        images = random_images(model)
        with torch.no_grad():
            logits = model(images)
            with record_attention(model) as recorded:
                model(images)
            extracted = AttentionExtract(model)(images)
            shares = {f"{one.name}.softmax": one.shares for one in recorded}
            # a performer has no softmax, and its shares are no step of its computation
            missing = sorted(shares.keys() - extracted.keys())
            far = [(shares[key] - one).abs().max().item() for key, one in extracted.items()]

            level = model.feature_levels[-1].module
            nodes = create_feature_extractor(model, return_nodes=[level, "head"])(images)
            (last,) = [tokens for tokens, _ in list(model.levels(images))[-1:]]
        seen[name] = {
            "attention": sorted(extracted),
            "missing": missing,
            "attention_differs_by": max(far),
            "logits_differ_by": (nodes["head"] - logits).abs().max().item(),
            "level_differs_by": (nodes[level] - last).abs().max().item(),
            "is_logits_as_before": bool(torch.equal(model(images), logits)),
            "nodes_of_training": len(get_graph_node_names(model)[0]),
        }
    sys.stdout.write(json.dumps(seen))
