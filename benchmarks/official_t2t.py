"""The official formulation of T2T-ViT, restated over the weights of one of ours.

It has im2col instead of views, attentions that materialise their matrix, a performer in whatever precision is asked
for, and PyTorch's linear layers.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from vitrail.kernels.linear import Linear
from vitrail.models.t2t_vit import Attention, Block, T2TViT, TokenPerformer, TokenTransformer


class OfficialT2TViT(nn.Module):
    """The official formulation of T2T-ViT, over the weights of one of ours."""

    def __init__(self, model: T2TViT) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for layer in self.model.modules():
            if isinstance(layer, Linear):
                layer.forward = partial(nn.Linear.forward, layer)

    def performer(self, layer: TokenPerformer, x: Tensor) -> Tensor:
        k, q, v = layer.kqv(layer.norm1(x)).split(64, dim=2)
        k, q = (torch.exp(t @ layer.w.T - t.square().sum(2, keepdim=True) / 2) / 32**0.5 for t in (k, q))
        denominator = torch.einsum("bnm,bm->bn", q, k.sum(dim=1)).unsqueeze(2)
        y = torch.einsum("bnm,bdm->bnd", q, torch.einsum("bnd,bnm->bdm", v, k)) / (denominator + 1e-8)
        x = v + layer.dropout(layer.proj(y))
        return x + layer.mlp(layer.norm2(x))

    def transformer(self, layer: TokenTransformer, x: Tensor) -> Tensor:
        q, k, v = layer.attn.qkv(layer.norm1(x)).split(64, dim=2)
        weights = (q * layer.attn.scale @ k.transpose(1, 2)).softmax(dim=2)
        x = v + layer.attn.proj(weights @ v)
        return x + layer.mlp(layer.norm2(x))

    def attention(self, layer: Attention, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = layer.qkv(x).reshape(b, s, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(dim=3)
        return layer.proj((weights @ v).transpose(1, 2).reshape(b, s, d))

    def tokens(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        t2t = self.model.tokens_to_token
        x = self.attend_tokens(t2t.attention1, unfold(images, 7, stride=4, padding=2).transpose(1, 2))
        x = x.transpose(1, 2).reshape(len(x), -1, height // 4, width // 4)
        x = self.attend_tokens(t2t.attention2, unfold(x, 3, stride=2, padding=1).transpose(1, 2))
        x = x.transpose(1, 2).reshape(len(x), -1, height // 8, width // 8)
        return t2t.project(unfold(x, 3, stride=2, padding=1).transpose(1, 2))

    def attend_tokens(self, layer: TokenPerformer | TokenTransformer, x: Tensor) -> Tensor:
        return self.transformer(layer, x) if isinstance(layer, TokenTransformer) else self.performer(layer, x)

    def forward(self, images: Tensor) -> Tensor:
        model, x = self.model, self.tokens(images)
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
        for block in cast(list[Block], model.blocks):
            x = x + block.drop_path(self.attention(block.attn, block.norm1(x)))
            x = x + block.drop_path(block.mlp(block.norm2(x)))
        return model.head(model.norm(x)[:, 0])
