"""Low-rank adapters: beside which layers they are, that nothing else is trained, and what merging makes of them."""

from __future__ import annotations

import copy

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch.testing import assert_close

from vitrail.config.training_sections import LoraSection
from vitrail.errors import ConfigError, MissingExtra
from vitrail.kernels.linear import Linear
from vitrail.models.family import VisionModel
from vitrail.models.registry import FAMILIES, create_model
from vitrail.training.optim.lora import add_adapters, merge_adapters

MODELS = ("tnt_ti_patch16_224", "t2t_vit_7", "t2t_vit_t_14", "twins_pcpvt_small", "twins_svt_small")
every_model = pytest.mark.parametrize("name", MODELS)


def tiny(name: str) -> VisionModel:
    torch.manual_seed(0)
    family = next(family for family in FAMILIES if name in family.variants)
    return create_model(name, **family.tiny).eval()


def shake(model: VisionModel) -> None:
    """Give the adapters weights as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@every_model
@pytest.mark.parametrize("convolves", [False, True])
def test_merged_weights_compute_what_the_adapters_do(name: str, convolves: bool) -> None:
    plain, model = tiny(name), tiny(name)
    for module in [*plain.modules(), *model.modules()]:
        if isinstance(module, Linear):
            module.prefers_convolution = convolves  # as on CPUs where that is faster
    images = torch.randn(2, 3, *model.config.size)
    settings = LoraSection(rank=4, alpha=6)
    add_adapters(model, settings)
    model.eval()
    assert torch.equal(model(images), plain(images)), "adapters begin as zero"
    shake(model)
    logits = model(images).detach()
    assert (logits - plain(images)).abs().max() > 1e-3

    merged = merge_adapters(model.state_dict(), settings.scale)
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    assert_close(plain(images), logits, rtol=1e-6, atol=1e-6)

    # and what peft itself makes of them
    theirs = copy.deepcopy(model)
    for module in theirs.modules():
        if isinstance(module, LoraLayer):
            module.merge()  # pyright: ignore[reportCallIssue]
    for key, tensor in theirs.state_dict().items():
        if ".lora_" not in key:
            assert_close(merged[key.replace(".base_layer.", ".")], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "targets", "layers"),
    [
        ("tnt_ti_patch16_224", ("attention",), {"qk", "v", "proj"}),
        ("tnt_ti_patch16_224", ("mlp",), {"fc1", "fc2"}),
        ("t2t_vit_7", ("attention",), {"kqv", "qkv", "proj"}),
        ("t2t_vit_7", ("mlp",), {"0", "2", "fc1", "fc2"}),
        ("twins_svt_small", ("attention",), {"qkv", "q", "kv", "proj"}),
        ("twins_svt_small", ("attention", "mlp"), {"qkv", "q", "kv", "proj", "fc1", "fc2"}),
    ],
)
def test_adapters_stand_beside_the_chosen_layers_and_only_they_and_the_head_are_trained(
    name: str, targets: tuple, layers: set[str]
) -> None:
    model = tiny(name)
    linear = {key for key, module in model.named_modules() if isinstance(module, Linear)}
    add_adapters(model, LoraSection(rank=2, targets=targets))
    adapted = {key for key, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert {key.split(".")[-1] for key in adapted} == layers
    assert not adapted & {"head", "proj", "tokens_to_token.project"}
    if len(targets) == 2:
        assert linear - adapted == {"head"}
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"head.weight", "head.bias"} | {
        f"{layer}.lora_{part}.default.weight" for layer in adapted for part in "AB"
    }


def test_without_peft_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.training.optim.lora.find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        add_adapters(tiny("t2t_vit_7"), LoraSection(rank=8))
    assert str(caught.value) == "lora.rank=8: needs peft; run: pip install 'vitrail[lora]'"


@pytest.mark.parametrize(
    ("name", "targets", "width"),
    [
        ("tnt_s_patch16_224", ("attention", "mlp"), 24),
        ("twins_svt_small", ("attention",), 64),
        ("t2t_vit_14", ("mlp",), 64),
    ],
)
def test_a_rank_above_the_width_of_the_narrowest_layer_is_refused(name: str, targets: tuple, width: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    for rank in (width + 1, 10_000):
        with pytest.raises(ConfigError) as caught:
            add_adapters(model, LoraSection(rank=rank, targets=targets))
        found = str(caught.value)
        assert found.startswith(f"lora.rank is {rank}; it must be at most {width}, the width of ")
        assert found.endswith(", which is the narrowest layer that has an adapter; fewer, such as 8, are usual")
        named = found.split("the width of ")[1].split(",")[0]
        assert min(model.get_submodule(named).weight.shape) == width
    add_adapters(model, LoraSection(rank=width, targets=targets))
