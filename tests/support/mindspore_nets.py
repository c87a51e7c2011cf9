"""Nets with the cells of the model zoo's, so with its parameters' names, within another cell as its programs have them.

    python mindspore_nets.py MODEL FILE.ckpt wrapped|bare

Run by a Python that has MindSpore. Loads the file as those programs do and prints what MindSpore did not load, and
which parameters are other than in the file. The nets compute nothing: their sizes are those of our tiny models.
"""

from __future__ import annotations

import json
import sys

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn


def parameter(*shape: int, trained: bool = True) -> Parameter:
    """Return values that no file has."""
    return Parameter(Tensor(np.full(shape, 99, np.float32)), requires_grad=trained)


class Empty(nn.Cell):
    """A cell whose parts are given by name."""

    def __init__(self, **parts: nn.Cell | Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def dense(inputs: int, outputs: int, bias: bool = True) -> nn.Cell:
    return nn.Dense(inputs, outputs, has_bias=bias)


def norm(dim: int) -> nn.Cell:
    return nn.LayerNorm([dim])


def conv(inputs: int, outputs: int, side: int, bias: bool = True, group: int = 1) -> nn.Cell:
    return nn.Conv2d(inputs, outputs, side, has_bias=bias, group=group)


def mlp(dim: int, hidden: int, last_bias: bool = True) -> nn.Cell:
    return Empty(fc1=dense(dim, hidden), fc2=dense(hidden, dim, last_bias))


def tnt() -> nn.Cell:
    """TNT of the zoo, without the biases that it does not have."""
    d, e, p = 48, 8, 16

    def attention(dim: int) -> nn.Cell:
        return Empty(**{name: dense(dim, dim, False) for name in ("q", "k", "v", "proj")})

    def block() -> nn.Cell:
        return Empty(
            inner_norm1=norm(e), inner_attn=attention(e), inner_norm2=norm(e), inner_mlp=mlp(e, 4 * e, False),
            proj_norm1=norm(p * e), proj=dense(p * e, d, False), proj_norm2=norm(d),
            outer_norm1=norm(d), outer_attn=attention(d), outer_norm2=norm(d), outer_mlp=mlp(d, 4 * d, False),
        )  # fmt: skip

    return Empty(
        patch_embed=Empty(proj=conv(3, e, 7, False)), proj_norm1=norm(p * e), proj=dense(p * e, d, False),
        proj_norm2_tnt=norm(d), cls_token=parameter(1, 1, d), outer_pos=parameter(1, 5, d),
        inner_pos=parameter(1, p, e), blocks=nn.CellList([block(), block()]), norm=norm(d), head=dense(d, 7, False),
    )  # fmt: skip


def t2t(performer: bool) -> nn.Cell:
    """T2T-ViT of the zoo, without its unfolding, which keeps its output in a parameter."""
    d, t = 48, 64

    def layer(dim: int) -> nn.Cell:
        if performer:
            return Empty(
                kqv=dense(dim, 3 * t), proj=dense(t, t), norm1=norm(dim), norm2=norm(t), mlp=mlp(t, t),
                w=parameter(32, t, trained=False),
            )  # fmt: skip
        attention = Empty(qkv=dense(dim, 3 * t, False), proj=dense(t, t))
        return Empty(norm1=norm(dim), attn=attention, norm2=norm(t), mlp=mlp(t, t))

    def block() -> nn.Cell:
        attention = Empty(qkv=dense(d, 3 * d, False), proj=dense(d, d))
        return Empty(norm1=norm(d), attn=attention, norm2=norm(d), mlp=mlp(d, (2 if performer else 3) * d))

    return Empty(
        tokens_to_token=Empty(attention1=layer(147), attention2=layer(576), project=dense(576, d)),
        cls_token=parameter(1, 1, d), pos_embed=parameter(1, 5, d, trained=False),
        blocks=nn.CellList([block(), block()]), norm=norm(d), head=dense(d, 7),
    )  # fmt: skip


class Twins(nn.Cell):
    """Twins of the zoo: a stage is a sequence of its first block, its position encoding and its other blocks."""

    def __init__(self, windows: bool) -> None:
        super().__init__()
        dims, depths, reductions, sides = (16, 16, 32, 32), (1, 2, 1, 2), (8, 4, 2, 1), (4, 2, 2, 2)
        self.patch_embeds = nn.CellList([
            Empty(proj=conv(before, dim, side), norm=norm(dim))
            for before, dim, side in zip((3, *dims[:-1]), dims, sides, strict=True)
        ])  # fmt: skip
        self.norm, self.head = norm(dims[-1]), dense(dims[-1], 7)
        self.pos_block = nn.CellList([Empty(proj=nn.SequentialCell([conv(d, d, 3, group=d)])) for d in dims])
        self.merge_blocks = nn.CellList()
        for stage, (dim, depth, side) in enumerate(zip(dims, depths, reductions, strict=True)):
            first, *others = [self.block(dim, side, windows and not index % 2) for index in range(depth)]
            self.merge_blocks.append(nn.SequentialCell([first, self.pos_block[stage], *others]))

    def block(self, dim: int, side: int, in_window: bool) -> nn.Cell:
        if in_window:
            attention = Empty(qkv=dense(dim, 3 * dim), proj=dense(dim, dim))
        else:
            attention = Empty(q=dense(dim, dim), kv=dense(dim, 2 * dim), proj=dense(dim, dim))
            if side > 1:
                attention.sr, attention.norm = conv(dim, dim, side), norm(dim)
        return Empty(norm1=norm(dim), attn=attention, norm2=norm(dim), mlp=mlp(dim, 2 * dim))


NETS = {
    "tnt_s_patch16_224": tnt,
    "t2t_vit_7": lambda: t2t(performer=True),
    "t2t_vit_t_14": lambda: t2t(performer=False),
    "twins_svt_small": lambda: Twins(windows=True),
    "twins_pcpvt_small": lambda: Twins(windows=False),
}


def main(name: str, path: str, how: str) -> None:
    """Load a file into a net and say what came of it."""
    net = Empty(model=NETS[name]()) if how == "wrapped" else NETS[name]()
    values = ms.load_checkpoint(path)
    missing, unused = ms.load_param_into_net(net, values)
    in_file = {value.name.removeprefix("model."): value.asnumpy() for value in values.values()}
    differing = [
        p.name
        for p in net.get_parameters()
        if not np.array_equal(in_file.get(p.name.removeprefix("model.")), p.asnumpy())
    ]
    found = {"missing": missing, "unused": unused, "differing": differing, "count": len(values)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
