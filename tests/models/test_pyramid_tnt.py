"""What is particular to PyramidTNT: its words, the merging between stages, the averaged map and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, layer_norm, linear, scaled_dot_product_attention
from torch.testing import assert_close

from support.random_weights import randomised
from vitrail.errors import ConfigError
from vitrail.models.pyramid_tnt import Attention, PyramidTNT, WordMerge
from vitrail.models.registry import create_model, find_variant
from vitrail.weights.convert import convert
from vitrail.weights.formats.mindspore_ckpt import read_ckpt
from vitrail.weights.loading import open_model
from vitrail.weights.request import LoadRequest

NAME = "ptnt_ti_patch16_192"
SIZES = {key: value for key, value in find_variant(NAME)[0].tiny.items() if key not in ("image_size", "num_classes")}
"""What tells a tiny model from a published one."""


def tiny(**overrides: Any) -> PyramidTNT:
    model = create_model(NAME, **{**find_variant(NAME)[0].tiny, **overrides})
    assert isinstance(model, PyramidTNT)
    return randomised(model)


def test_words_are_updated_in_the_first_blocks_of_a_stage() -> None:
    for name, expected in ((NAME, [1, 1, 1, 1]), ("ptnt_s_patch16_256", [1, 2, 1, 1])):
        with torch.device("meta"):
            stages: Any = create_model(name).stages
        counts = [sum(block.has_words for block in stage.blocks) for stage in stages]
        assert counts == expected
        assert all(block.has_words for stage in stages for block in stage.blocks[:1])


def test_attention_with_a_table_is_attention_to_averaged_cells() -> None:
    torch.manual_seed(0)
    attention = randomised(Attention(8, num_heads=2, sr_ratio=2))
    x, table = torch.randn(3, 24, 8), torch.randn(1, 2, 24, 6)
    found = attention(x, (4, 6), table)

    cells = torch.stack(
        [
            x.reshape(3, 4, 6, 8)[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2))
            for row in range(2)
            for column in range(3)
        ],
        dim=1,
    )
    cells = layer_norm(attention.linear(cells), (8,), attention.norm.weight, attention.norm.bias)
    q = linear(x, attention.q.weight).reshape(3, 24, 2, 4).transpose(1, 2)
    k, v = (half.reshape(3, 6, 2, 4).transpose(1, 2) for half in linear(cells, attention.kv.weight).chunk(2, -1))
    expected = scaled_dot_product_attention(q, k, v, attn_mask=table)
    assert_close(found, attention.proj(expected.transpose(1, 2).reshape(3, 24, 8)))


@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 1)], ids=str)
def test_words_are_merged_where_they_lie_in_the_picture(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    merge = randomised(WordMerge(6, 10, 1e-5))
    rows, columns = grid
    picture = torch.randn(2, 6, 4 * rows, 4 * columns)  # a channel a word, where it lies
    words = picture.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(-1, 16, 6)
    found = merge(words, grid)

    normed = merge.norm(picture.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    for image in range(2):
        for row in range(-(-rows // 2)):
            for column in range(-(-columns // 2)):
                part = torch.zeros(1, 6, 8, 8)  # what lies beyond an odd grid is zero
                here = normed[image, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                part[0, :, : here.shape[1], : here.shape[2]] = here
                place = (image * -(-rows // 2) + row) * -(-columns // 2) + column
                assert_close(found[place], merge.conv(part)[0].flatten(1).T)


def test_sizes_that_32_does_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="224x200 is not a multiple of 32; the nearest sizes are 224x192 or 224x224"):
        create_model(NAME, image_size=(224, 200))
    with pytest.raises(ConfigError, match="sr_ratios 8 does not divide its stage's grid of 12x12 sentences"):
        tiny(sr_ratios=(8, 2, 1, 1))
    with pytest.raises(ConfigError, match="embed_dims, inner_dims, depths, num_heads, inner_num_heads and sr_ratios"):
        tiny(depths=(1, 2, 3))
    with pytest.raises(ValueError, match=r"images are \(64, 64\) but this PyramidTNT was built for \(96, 96\)"):
        tiny()(torch.randn(1, 3, 64, 64))


def resampling(before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """The matrix by which a map of one grid becomes one of another."""
    cells = torch.eye(before[0] * before[1]).reshape(-1, 1, *before)
    return interpolate(cells, after, mode="bicubic", antialias=True).flatten(1).T


@pytest.mark.parametrize("size", [(160, 192), (64, 64)], ids=str)
def test_all_tables_are_resized_over_the_grids_that_they_are_for(size: tuple[int, int], tmp_path: Path) -> None:
    model = tiny(image_size=96)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    options = {**SIZES, "image_size": size}
    found = open_model(tmp_path / "a.pth", LoadRequest(model=NAME, options=options))
    config = find_variant(NAME)[1].config.with_options(**{**find_variant(NAME)[0].tiny, "image_size": size})
    grids, before = config.grids(size), model.config.grids((96, 96))
    assert_close(
        found.weights["outer_pos"][0], resampling(before[0], grids[0]) @ model.outer_pos[0], atol=1e-5, rtol=1e-5
    )
    for k, ratio in enumerate(config.sr_ratios):
        first = resampling(before[k], grids[k])
        second = resampling(*((rows // ratio, columns // ratio) for rows, columns in (before[k], grids[k])))
        table = model.get_parameter(f"stages.{k}.relative_pos")[0]
        assert_close(found.weights[f"stages.{k}.relative_pos"][0], first @ table @ second.T, atol=1e-4, rtol=1e-4)
    assert found.build()(torch.randn(1, 3, *size)).shape == (1, 7)
    assert found.account.counts()["resized"] == 5


def test_mindspores_names_are_written_and_read(tmp_path: Path) -> None:
    model = tiny()
    model.train()(torch.randn(4, 3, 96, 96))  # moves the means of its batch norms, and counts
    torch.save(model.state_dict(), tmp_path / "a.pth")
    asked = LoadRequest(model=NAME, options=SIZES)
    done = convert(tmp_path / "a.pth", tmp_path / "a.ckpt", "mindspore", asked)
    assert done.difference == 0
    names = set(read_ckpt(tmp_path / "a.ckpt"))
    assert {"patch_embed.outer_convs.4.gamma", "patch_embed.common_conv.1.moving_variance"} <= names
    assert {"stages.1.blocks.0.inner_norm1.beta", "patch_embed.inner_convs.0.weight"} <= names
    assert not [name for name in names if name.endswith(("num_batches_tracked", "running_mean"))]
    back = open_model(tmp_path / "a.ckpt", asked).weights
    for name, tensor in model.state_dict().items():
        expected = torch.zeros_like(tensor) if name.endswith("num_batches_tracked") else tensor
        assert torch.equal(back[name], expected), name
        assert back[name].dtype == tensor.dtype
