"""Attention is taken by name, from a pass whose logits are those of any other."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from support.explained_models import NAMES, PYRAMID, build, random_images
from vitrail.errors import ConfigError
from vitrail.explanation.attention import record_attention
from vitrail.kernels.attention import recorder
from vitrail.models.registry import create_model


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_same_while_attention_is_recorded(name: str) -> None:
    model = build(name)
    images = random_images(model)
    with torch.no_grad():
        before = model(images)
        with record_attention(model) as recorded:
            during = model(images)
        after = model(images)
    assert recorded
    assert (during - before).abs().max() < 1e-5
    assert torch.equal(before, after)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_what_a_query_gives_sums_to_one_and_has_a_gradient(name: str) -> None:
    model = build(name)
    with record_attention(model) as recorded:
        logits = model(random_images(model))
    of_outputs = torch.autograd.grad(logits[:, 1].sum(), [one.output for one in recorded])
    for one, of_output in zip(recorded, of_outputs, strict=True):
        gradient = one.gradient(of_output)
        sums = one.shares.sum(-1)
        assert sums.max() < 1 + 1e-4, one.name
        # the published formula of the performer adds a little to what it divides by
        is_performer = name == "t2t_vit_7" and one.level == "split"
        assert sums.min() > (0 if is_performer else 1 - 1e-4), one.name
        assert gradient.abs().max() > 0, one.name


@pytest.mark.parametrize("name", ["t2t_vit_t_14", "t2t_vit_7", PYRAMID])
def test_the_gradient_of_shares_is_that_of_attention_as_it_is_written(name: str) -> None:
    with record_attention(model := build(name)) as recorded:
        model(random_images(model))
    for one in recorded:
        weights = torch.randn_like(one.output)
        shares = one.shares.clone().requires_grad_()
        output = shares @ one.values
        torch.testing.assert_close(output, one.output, rtol=1e-4, atol=1e-5)
        (expected,) = torch.autograd.grad((output * weights).sum(), shares)
        torch.testing.assert_close(one.gradient(weights), expected)


def test_the_code_of_the_page_runs(image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "explain.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    code = "".join(block for block in blocks if "AttentionExtract" not in block)  # which test_extractors runs
    code = code.replace("runs/digits/best.safetensors", str(tiny_checkpoint))
    code = code.replace("runs/digits/digits-00003.png", str(next(image_folder.rglob("*.jpg"))))
    code = code.replace('"attention.png"', repr(str(tmp_path / "attention.png")))
    known: dict[str, Any] = {}
    exec(code, known)
    assert known["shares"].shape == (known["side"] ** 2,)
    assert 0 < known["shares"].sum() < 1  # the rest stays with the class token
    assert {level: tuple(values.shape) for level, values in known["explained"].items()} == {
        "sentences": (1, 2, 2), "words": (1, 8, 8),
    }  # fmt: skip
    with Image.open(tmp_path / "attention.png") as drawn:
        assert min(drawn.size) > 100


def test_words_and_sentences_are_told_apart() -> None:
    model = build("tnt_ti_patch16_224", image_size=(32, 48), depth=2)
    with record_attention(model) as recorded:
        model(random_images(model))
    assert [(one.name, one.level, one.layer, tuple(one.shares.shape)) for one in recorded] == [
        ("blocks.0.inner_attn", "word", 0, (12, 2, 16, 16)),
        ("blocks.0.outer_attn", "sentence", 0, (2, 3, 7, 7)),
        ("blocks.1.inner_attn", "word", 1, (12, 2, 16, 16)),
        ("blocks.1.outer_attn", "sentence", 1, (2, 3, 7, 7)),
    ]


def test_a_pyramid_has_words_where_it_updates_them_and_a_reduced_map() -> None:
    model = build(PYRAMID, image_size=(96, 64), depths=(1, 2, 1, 1))
    with record_attention(model) as recorded:
        model(random_images(model))
    assert [(one.name, one.level, one.grid, tuple(one.shares.shape[1:])) for one in recorded] == [
        ("stages.0.blocks.0.inner_attn", "word", None, (1, 16, 16)),
        ("stages.0.blocks.0.outer_attn", "reduced", (12, 8), (1, 96, 6)),
        ("stages.1.blocks.0.inner_attn", "word", None, (2, 16, 16)),
        ("stages.1.blocks.0.outer_attn", "reduced", (6, 4), (2, 24, 6)),
        ("stages.1.blocks.1.outer_attn", "reduced", (6, 4), (2, 24, 6)),
        ("stages.2.blocks.0.inner_attn", "word", None, (2, 16, 16)),
        ("stages.2.blocks.0.outer_attn", "sentence", (3, 2), (2, 6, 6)),
        ("stages.3.blocks.0.inner_attn", "word", None, (2, 16, 16)),
        ("stages.3.blocks.0.outer_attn", "sentence", (2, 1), (2, 2, 2)),
    ]


def test_soft_splits_stand_before_the_tokens() -> None:
    model = build("t2t_vit_7", image_size=32, depth=1)
    with record_attention(model) as recorded:
        model(random_images(model))
    assert [(one.name, one.level, one.layer, tuple(one.shares.shape)) for one in recorded] == [
        ("tokens_to_token.attention1", "split", 0, (2, 1, 64, 64)),
        ("tokens_to_token.attention2", "split", 1, (2, 1, 16, 16)),
        ("blocks.0.attn", "token", 0, (2, 4, 5, 5)),
    ]


def test_windows_say_where_they_lie() -> None:
    model = build("twins_svt_small", image_size=(64, 96))
    with record_attention(model) as recorded:
        model(random_images(model, 1))
    first = recorded[0]
    assert (first.name, first.level, first.grid) == ("blocks.0.0.attn", "window", (16, 24))
    assert first.windows is not None
    assert (first.windows.rows, first.windows.columns, first.windows.side) == (3, 4, 7)
    assert first.shares.shape == (12, 1, 49, 49)
    reduced = next(one for one in recorded if one.level == "reduced")
    assert (reduced.name, reduced.grid, tuple(reduced.shares.shape)) == ("blocks.1.1.attn", (8, 12), (1, 2, 96, 6))


def test_other_threads_and_later_passes_are_not_recorded() -> None:
    model = build("t2t_vit_7", depth=1)
    seen = []
    with record_attention(model) as recorded:
        thread = threading.Thread(target=lambda: seen.append(recorder()))
        thread.start()
        thread.join()
    model(random_images(model, 1))
    assert seen == [None]
    assert recorded == []
    assert recorder() is None


def test_a_pass_that_fails_leaves_no_hook() -> None:
    model = build("tnt_ti_patch16_224", depth=1)
    with pytest.raises(ValueError, match="built for"), record_attention(model):
        model(torch.zeros(1, 3, 16, 16))
    assert recorder() is None
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_whose_attention_is_unknown_is_refused() -> None:
    model = create_model("timm:resnet10t", num_classes=3)
    reason = "tells nothing of its attention; TNT, T2T-ViT, Twins and PyramidTNT do"
    with pytest.raises(ConfigError, match=reason), record_attention(model):
        pass
