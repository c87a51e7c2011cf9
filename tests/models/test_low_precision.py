"""float16 with attention that is ten times too sharp: nothing may overflow, and nothing may change in float32."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from vitrail.models.registry import create_model

SHARP = 10.0
TINY = {
    "tnt_s_patch16_224": {"embed_dim": 24, "inner_dim": 8, "depth": 2, "num_heads": 2, "inner_num_heads": 2},
    "t2t_vit_7": {"embed_dim": 32, "depth": 2, "num_heads": 2},
}


def sharpen(model: nn.Module) -> None:
    """Scale all queries, and with them the logits of every attention."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name.endswith(("qkv", "kqv", ".q", ".qk")):
                module.weight.mul_(SHARP)


@pytest.mark.thorough
@pytest.mark.parametrize("name", TINY)
def test_two_hundred_updates_in_float16_have_no_value_that_is_not_finite(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, image_size=32, **TINY[name])
    sharpen(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", growth_interval=50)
    images, labels = 3 * torch.randn(4, 3, 32, 32), torch.arange(4)
    left_out, losses = 0, []
    for _ in range(200):
        with torch.autocast("cpu", torch.float16):
            logits = model(images)
        assert logits.isfinite().all()
        loss = cross_entropy(logits.float(), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        left_out += not bool(gradients.isfinite().all())  # the scale was too high: it is halved, and that is all
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
        assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert left_out < 10
    assert losses[-1] < losses[0] / 2
