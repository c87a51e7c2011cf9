"""What is particular to TNT: two stems, words folded into sentences, and equality with timm."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from timm.models.tnt import TNT as TimmTNT
from torch import Tensor, nn
from torch.testing import assert_close

from support.random_weights import randomised
from vitrail.models.layers import DropPath
from vitrail.models.registry import create_model, find_variant
from vitrail.models.tnt import TNT, Block, TNTConfig, WordEmbed

SMALL = TNTConfig(image_size=64, embed_dim=48, inner_dim=12, depth=3, num_heads=3, inner_num_heads=2, num_classes=7)
LEGACY = replace(SMALL, stem="image", fold="word")

TO_TIMM = (
    (r"^patch_embed\.", "pixel_embed."),
    (r"^outer_pos$", "patch_pos"),
    (r"proj_norm([12])\.", r"norm\1_proj."),
    (r"inner_norm1\.", "norm_in."),
    (r"inner_norm2\.", "norm_mlp_in."),
    (r"inner_attn\.", "attn_in."),
    (r"inner_mlp\.", "mlp_in."),
    (r"outer_norm1\.", "norm_out."),
    (r"outer_norm2\.", "norm_mlp."),
    (r"outer_attn\.", "attn_out."),
    (r"outer_mlp\.", "mlp."),
)


def timm_twin(model: TNT) -> nn.Module:
    """Build timm's model of the same sizes and weights; its words' positions are a map (1, e, words, words)."""
    config = model.config
    twin = TimmTNT(
        img_size=config.size,
        num_classes=config.num_classes,
        embed_dim=config.embed_dim,
        inner_dim=config.inner_dim,
        depth=config.depth,
        num_heads_inner=config.inner_num_heads,
        num_heads_outer=config.num_heads,
        legacy=config.fold == "word",
    )
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        for pattern, ours in TO_TIMM:
            name = re.sub(pattern, ours, name)
        weights[name] = value
    weights.pop("outer_tokens", None)
    weights["pixel_pos"] = weights.pop("inner_pos").transpose(1, 2).unflatten(2, (config.words, config.words))
    twin.load_state_dict(weights)
    return twin.eval()


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (96, 32)], ids=str)
@pytest.mark.parametrize("config", [SMALL, LEGACY], ids=["official", "legacy"])
def test_equals_timm_at_square_and_oblong_sizes(config: TNTConfig, size: tuple[int, int]) -> None:
    model = randomised(TNT(replace(config, image_size=size)))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert_close(model(images), timm_twin(model)(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["tnt_s_patch16_224", "tnt_s_legacy_patch16_224"])
def test_true_size_equals_timm(name: str) -> None:
    model = create_model(name)
    assert isinstance(model, TNT)
    model = randomised(model)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert_close(model(images), timm_twin(model)(images), atol=1e-4, rtol=1e-4)


def test_stems_differ_in_the_first_row_and_column_of_words_only() -> None:
    torch.manual_seed(0)
    patch, image = WordEmbed(SMALL), WordEmbed(replace(SMALL, stem="image"))
    image.load_state_dict(patch.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        differ = (patch(images) - image(images)).abs().amax(dim=2) > 1e-5  # (16 sentences, 16 words)
    differ = differ.reshape(4, 4, 4, 4)
    expected = torch.zeros(4, 4, 4, 4, dtype=torch.bool)
    expected[:, :, 0, :] = expected[:, :, :, 0] = True  # 7 of 16 words
    expected[0, :, 0, 1:] = expected[:, 0, 1:, 0] = False  # at the border of the image both see zeros
    expected[0, 0] = False
    assert torch.equal(differ, expected)
    assert int(differ[1, 1].sum()) == 7


def test_patch_stem_keeps_sentences_apart() -> None:
    torch.manual_seed(0)
    stem = WordEmbed(SMALL)
    images = torch.randn(1, 3, 64, 64)
    changed = images.clone()
    changed[:, :, 16:32, 32:48] = 0
    with torch.no_grad():
        moved = (stem(images) != stem(changed)).flatten(1).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [1 * 4 + 2]  # row 1, column 2


def test_words_of_a_sentence_are_rows_of_the_patch() -> None:
    stem = WordEmbed(replace(SMALL, image_size=16))
    nn.init.zeros_(stem.proj.weight)
    assert stem.proj.bias is not None
    nn.init.zeros_(stem.proj.bias)
    stem.proj.weight.data[:, :, 3, 3] = 1  # sample the pixel at the centre of each word's window
    images = torch.arange(256.0).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(stem(images)[0, :, 0], 3 * images[0, 0, ::4, ::4].flatten())


def test_inner_attention_stays_within_a_sentence_and_the_class_token_gets_no_words() -> None:
    torch.manual_seed(0)
    block = Block(SMALL, drop_path_rate=0.0)
    words, sentences = torch.randn(2 * 5, 16, 12), torch.randn(2, 6, 48)
    changed = words.clone()
    changed[7] += 1
    nn.init.zeros_(block.outer_attn.proj.weight)  # let sentences alone
    with torch.no_grad():
        before, after = block(words, sentences), block(changed, sentences)
    assert (before[0] != after[0]).flatten(1).any(dim=1).nonzero().flatten().tolist() == [7]
    assert (before[1] != after[1]).any(dim=2).nonzero().tolist() == [[1, 1 + 2]]  # second image, third sentence


def test_inner_drop_path_drops_sentences_and_the_outer_one_images() -> None:
    torch.manual_seed(0)
    block = Block(SMALL, drop_path_rate=0.5).train()
    seen: list[Tensor] = []
    block.drop_path.register_forward_hook(lambda module, args, output: seen.append(output))
    block(torch.randn(4 * 9, 16, 12), torch.randn(4, 10, 48))
    assert [len(output) for output in seen] == [36, 36, 4, 4]  # one module for all four residuals
    assert sum(isinstance(m, DropPath) for m in block.modules()) == 1
    dropped = (seen[0] == 0).flatten(1)
    assert torch.equal(dropped.any(dim=1), dropped.all(dim=1))  # whole sentences
    assert 0 < dropped.all(dim=1).reshape(4, 9).sum(dim=1).max() < 9  # not whole images


def test_norms_are_counted_as_in_the_official_code() -> None:
    with torch.device("meta"):
        norms = [m for m in create_model("tnt_s_patch16_224").modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 75
    assert {m.eps for m in norms} == {1e-5}
    config = replace(SMALL, norm_eps=1e-3, final_norm_eps=1e-7)
    assert {m.eps for name, m in TNT(config).named_modules() if isinstance(m, nn.LayerNorm) and name != "norm"} == {
        1e-3
    }
    assert TNT(config).norm.eps == 1e-7


def test_initialisation_has_the_published_statistics() -> None:
    torch.manual_seed(0)
    model = create_model("tnt_ti_patch16_224")
    for name, parameter in model.named_parameters():
        if name.startswith("patch_embed.proj."):
            bound = (3 * 7 * 7) ** -0.5  # PyTorch's default for a convolution, uniform
            assert 0.9 * bound < parameter.abs().max() <= bound
        elif name == "outer_tokens" or name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert (parameter == 1).all()
        else:
            # five standard errors of a sample's deviation
            assert abs(parameter.std() / 0.02 - 1) < 5 / (2 * parameter.numel()) ** 0.5, name
    assert not dict(model.named_parameters())["outer_tokens"].requires_grad


def test_exempt_from_decay_are_the_class_token_and_both_position_tables() -> None:
    assert TNT(SMALL).no_weight_decay() == {"cls_token", "outer_pos", "inner_pos"}


def test_layers_of_named_parameters() -> None:
    model = TNT(SMALL)
    found = [
        model.layer_of(name)
        for name in ("inner_pos", "proj.weight", "blocks.0.proj.weight", "blocks.2.outer_mlp.fc1.bias", "norm.bias")
    ]
    assert found == [0, 0, 1, 3, 4]


def test_another_image_size_than_the_built_one_is_explained() -> None:
    with pytest.raises(
        ValueError,
        match=re.escape("images are (64, 48) but this TNT was built for (64, 64); build it with image_size="),
    ):
        TNT(SMALL)(torch.zeros(1, 3, 64, 48))


def test_tanh_gelu_is_close_to_but_not_the_exact_one() -> None:
    erf = randomised(TNT(SMALL))
    tanh = TNT(replace(SMALL, gelu="tanh")).eval()
    tanh.load_state_dict(erf.state_dict())
    images = torch.randn(2, 3, 64, 64)
    difference = (erf(images) - tanh(images)).norm() / erf(images).norm()
    assert 1e-6 < difference < 1e-2


def test_the_zoos_net_has_fewer_biases_and_computes_as_with_zeros() -> None:
    with torch.device("meta"):
        model = create_model("tnt_s_patch16_224", biases="zoo")
    trained = [p for p in model.parameters() if p.requires_grad]
    assert (sum(p.numel() for p in trained), len(trained) + 2 * 12) == (23_757_384, 336)  # q and k are one here
    tiny = {**find_variant("tnt_s_patch16_224")[0].tiny}
    fewer = create_model("tnt_s_patch16_224", **tiny, biases="zoo").eval()
    whole = create_model("tnt_s_patch16_224", **tiny).eval()
    missing, unexpected = whole.load_state_dict(fewer.state_dict(), strict=False)
    assert len(missing) == 3 + 4 * 2
    assert not unexpected
    with torch.no_grad():
        for name in missing:
            whole.get_parameter(name).zero_()
        images = torch.randn(2, 3, 32, 32)
        assert_close(fewer(images), whole(images), atol=1e-6, rtol=0)
    fewer.reset_classifier(3)
    assert [name for name, _ in fewer.head.named_parameters()] == ["weight"]


def test_a_model_without_a_head_keeps_no_parameter_that_nothing_reads() -> None:
    tiny = {**find_variant("tnt_s_patch16_224")[0].tiny}
    model = create_model("tnt_s_patch16_224", **{**tiny, "num_classes": 0}).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        for name, parameter in model.named_parameters():
            kept = parameter.clone()
            parameter.add_(torch.randn_like(parameter))
            assert not torch.equal(model(images), before), name
            parameter.copy_(kept)
    model.reset_classifier(5)
    assert "outer_tokens" in model.state_dict()
    model.reset_classifier(0)
    assert "outer_tokens" not in model.state_dict()
