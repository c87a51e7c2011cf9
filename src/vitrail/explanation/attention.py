"""Attention of a model by the names of its modules, taken from a pass that computes the same logits.

What a model computes is as it was; the shares are formed beside it, and only for the thread that
records. TNT's words leave their fused operator, since hooks stand on its layers.
A performer has no softmax; its shares are those that its random features imply.

Shapes
    b images, w windows of an image or its sentences, h heads, n queries, m keys, d channels of a head
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.kernels.attention import recorded_by
from vitrail.models import pyramid_tnt, t2t_vit, tnt, twins
from vitrail.models.family import VisionModel

Level = Literal["word", "sentence", "split", "token", "window", "reduced"]
"""What attends: words of a sentence and sentences of a TNT or PyramidTNT, where `reduced` is
sentences to a reduced map; tokens of a soft split and of the backbone of a T2T-ViT; tokens of a
window, or tokens to a reduced map, of a Twins."""


@dataclass(frozen=True)
class Windows:
    """Where the windows of an attention lie, row by row, on its map."""

    rows: int
    columns: int
    side: int
    """Tokens along a side of a window."""
    height: int
    """Tokens of the map; what a window has beyond them is padding."""
    width: int


@dataclass(frozen=True)
class Recorded:
    """The attention of one module in one pass."""

    name: str
    """Name of the module."""
    level: Level
    layer: int
    """Index of the module among those of its level, in the order in which they compute."""
    shares: Tensor
    """What queries give to keys (b, h, n, m), or (b * w, h, n, m) of windows and sentences."""
    values: Tensor
    """Values of the keys (b, h, m, d)."""
    output: Tensor
    """What comes out (b, h, n, d), which stands in the graph of the logits."""
    grid: tuple[int, int] | None
    """Height and width of the map of queries, where the module is told it."""
    windows: Windows | None
    """Where windows lie, of attention in windows."""

    def gradient(self, of_output: Tensor) -> Tensor:
        """Return the gradient of the shares (b, h, n, m), from that of the output."""
        return of_output @ self.values.transpose(-2, -1)


@contextmanager
def record_attention(model: VisionModel) -> Iterator[list[Recorded]]:
    """Yield a list that fills with the attention of every pass of the model meanwhile, in order.

    Raises:
        ConfigError: The model's attention is not known, as of models of timm.
    """
    require_attention(model)
    recorded: list[Recorded] = []
    running: list[tuple[str, nn.Module, tuple[Any, ...]]] = []

    def record(shares: Tensor, values: Tensor, output: Tensor) -> None:
        if not running:  # another model, of the same thread
            return
        name, module, args = running[-1]
        level = level_of(name, module)
        layer = len({one.name for one in recorded if one.level == level and one.name != name})
        grid = windows = None
        if isinstance(module, twins.WindowAttention | twins.ReducedAttention):
            _, height, width = args
            grid = (height, width)
        elif isinstance(module, pyramid_tnt.Attention) and len(args) > 1:
            grid = args[1]
        if isinstance(module, twins.WindowAttention) and grid is not None:
            side = module.window_size
            windows = Windows(-(-grid[0] // side), -(-grid[1] // side), side, *grid)
        recorded.append(Recorded(name, level, layer, shares, values, output, grid, windows))

    handles = []
    for name, module in _attention_modules(model):

        def enter(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            running.append((name, module, args))

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            running.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with recorded_by(record):
            yield recorded
    finally:
        for handle in handles:
            handle.remove()


def require_attention(model: VisionModel) -> None:
    """Refuse a model whose attention is not known.

    Raises:
        ConfigError: It has no module that attends as those of this package do.
    """
    if next(_attention_modules(model), None) is None:
        raise ConfigError(
            f"a {type(model).__name__} tells nothing of its attention; TNT, T2T-ViT, Twins and PyramidTNT do"
        )


def level_of(name: str, module: nn.Module) -> Level:
    """Return what attends in a module."""
    if isinstance(module, tnt.Attention):
        return "word" if name.endswith("inner_attn") else "sentence"
    if isinstance(module, pyramid_tnt.Attention) and module.sr_ratio == 1:
        return "word" if name.endswith("inner_attn") else "sentence"
    if isinstance(module, t2t_vit.Attention):
        return "token"
    if isinstance(module, twins.WindowAttention):
        return "window"
    is_reduced = isinstance(module, twins.ReducedAttention | pyramid_tnt.Attention)
    return "reduced" if is_reduced else "split"


def _attention_modules(model: VisionModel) -> Iterator[tuple[str, nn.Module]]:
    """Return every module that attends, by its name."""
    for name, module in model.named_modules():
        if isinstance(module, ATTENTION):
            yield name, module


ATTENTION = (
    tnt.Attention,
    t2t_vit.Attention,
    t2t_vit.SingleHeadAttention,
    t2t_vit.TokenPerformer,
    twins.WindowAttention,
    twins.ReducedAttention,
    pyramid_tnt.Attention,
)
"""The modules that attend, of all families."""
