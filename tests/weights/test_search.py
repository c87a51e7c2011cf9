"""Weights found in whatever entry, behind whatever prefix, and the right ones where there are several."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from support.weight_files import opened, save, theirs, tiny
from vitrail.errors import CheckpointError
from vitrail.weights.formats.mindspore_ckpt import encode_ckpt
from vitrail.weights.loading import load_model

WILD = Path(__file__).parents[3] / "shared" / "wild"
TNT = "tnt_s_patch16_224"
AS_WILD: dict[str, Any] = {
    "model": "tnt_ti_patch16_224", "image_size": 32, "embed_dim": 24, "inner_dim": 8, "depth": 1, "num_heads": 2,
    "inner_num_heads": 2,
}  # fmt: skip
lies_beside = pytest.mark.skipif(not WILD.is_dir(), reason="the files of wild lie beside the repository")


def under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def of_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}


def of_head(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("head."): tensor for name, tensor in weights.items() if name.startswith("head.")}


def equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def behind_entries(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return files that hold one model, in the ways in which programs save them."""
    body, head = of_backbone(weights), of_head(weights)
    optimizer = {"state": {0: {"exp_avg": torch.ones(3, 3), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
    blocks = {name.replace("blocks.0.", "blocks.0._orig_mod."): tensor for name, tensor in weights.items()}
    wrapped = {name.replace("outer_mlp.", "outer_mlp.module."): tensor for name, tensor in weights.items()}
    sharded = {
        name.replace("blocks.1.", "blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module."): tensor
        for name, tensor in weights.items()
    }
    criterion = {"criterion.weight": torch.ones(7), "metric.confmat": torch.zeros(7, 7)}
    teacher = {"teacher.conv1.weight": torch.ones(8, 3, 7, 7), "teacher.fc.weight": torch.ones(7, 8)}
    return {
        "tutorial": {"epoch": 1, "model_state_dict": weights, "optimizer_state_dict": optimizer, "loss": 0.5},
        "nested": {"checkpoint": {"best": {"weights": weights}}, "optimizer": optimizer},
        "lightning": {"state_dict": {**under("net.", weights), **criterion}, "epoch": 3, "callbacks": {}},
        "teacher of another kind": {"state_dict": {**under("student.", weights), **teacher}},
        "deep": {"state_dict": under("model.module.encoder.net.", weights)},
        "sequential": under("0.", weights),
        "compiled": under("_orig_mod.", weights),
        "compiled blocks": {"model": blocks},
        "wrapped part": wrapped,
        "sharded": under("_fsdp_wrapped_module.", sharded),
        "fabric": {"model": under("_forward_module.", weights), "optimizer": optimizer},
        "deepspeed": {"module": weights, "optimizer": None, "global_steps": 5},
        "apart": {"backbone": body, "head": head, "optimizer": optimizer},
        "own head": {"state_dict": {**under("backbone.", body), **under("head.", head)}},
        "classifier": {**under("encoder.", body), **under("classifier.", head), **criterion},
        "dropout before the head": {
            name.replace("head.", "head.1."): tensor for name, tensor in weights.items()
        },
        "flat beside others": {**weights, "optimizer": optimizer, "swa_state": {"w": torch.ones(3)}},
        "entry with a dot": {"ema.model": {}, "model.state": weights},
        "ordered": OrderedDict(state=OrderedDict(weights)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", behind_entries({}).keys())
def test_one_model_is_found_wherever_it_is(kind: str, tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    found = opened(save(tmp_path / "a.pth", behind_entries(weights)[kind]), TNT)
    assert equal(found.weights, weights)
    assert found.account.doubts == ()
    assert found.record.preprocess.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("kind", ["lightning", "deep", "sequential", "classifier", "sharded"])
def test_other_kinds_of_file_are_alike(kind: str, tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    content = behind_entries(weights)[kind]
    content = content.get("state_dict", content)
    safetensors.torch.save_file(content, tmp_path / "a.safetensors")
    assert equal(opened(tmp_path / "a.safetensors", TNT).weights, weights)


def test_files_of_mindspore_are_alike(tmp_path: Path) -> None:
    weights = tiny("twins_svt_small").state_dict()
    of_zoo = theirs(weights, "zoo", "twins_svt_small")
    path = tmp_path / "a.ckpt"
    moments = under("moments.net.backbone.", of_zoo)
    path.write_bytes(b"".join(encode_ckpt({**under("net.backbone.", of_zoo), **moments, "epoch_num": torch.tensor(3)})))
    found = opened(path, "twins_svt_small")
    assert equal(found.weights, weights)
    left = {entry.note for entry in found.account.entries if entry.what == "skipped"}
    assert left == {"of the optimizer", "of the training"}


@pytest.mark.parametrize("project", ["timm", "mindcv", "mmpretrain"])
def test_names_of_other_projects_are_alike(project: str, tmp_path: Path) -> None:
    name = "tnt_s_legacy_patch16_224" if project == "mmpretrain" else TNT
    weights = tiny(name).state_dict()
    path = save(tmp_path / "a.pth", {"state_dict": under("net.model.", theirs(weights, project, name))})
    found = opened(path, name)
    assert found.account.dialect == project
    assert all(torch.equal(found.weights[key], weights[key]) for key in weights if key != "outer_tokens")


class Wrapper(nn.Module):
    """What people save whole: a model in a module of theirs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model
        self.register_buffer("seen", torch.zeros(3))


@pytest.mark.parametrize("kind", ["model", "wrapped", "parallel", "in a dictionary"])
def test_modules_saved_whole_give_their_weights(kind: str, tmp_path: Path) -> None:
    model = tiny(TNT)
    content = {
        "model": model,
        "wrapped": Wrapper(model),
        "parallel": nn.DataParallel(Wrapper(model)),
        "in a dictionary": {"model": model, "epoch": 3},
    }[kind]
    found = opened(save(tmp_path / "a.pth", content), TNT)
    assert equal(found.weights, model.state_dict())
    (note,) = [note for note in found.account.notes if "nothing of them is run" in note]
    assert "are passed over or read as plain values" in note


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
def test_programs_of_torchscript_give_their_weights(tmp_path: Path) -> None:
    model = tiny(TNT)
    traced = torch.jit.trace(model, torch.zeros(1, 3, 32, 32), check_trace=False)
    torch.jit.save(traced, tmp_path / "a.pt")
    assert equal(opened(tmp_path / "a.pt", TNT).weights, model.state_dict())


def composer(model: dict[str, Tensor], ema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file of Composer, whose algorithms are a list of pairs."""
    kept = {"repr": "<EMA>", "ema_weights_active": True, "ema_started": True, **ema}
    return {"state": {"model": model, "algorithms": [("LabelSmoothing", {"repr": ""}), ("EMA", kept)]}, "rng": []}


def lit_ema(place: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what LitEma of latent diffusion keeps: names cannot have dots where it keeps them."""
    numbers = {f"{place}decay": torch.tensor(0.9999), f"{place}num_updates": torch.tensor(7)}
    return {**numbers, **{place + name.replace(".", ""): tensor for name, tensor in weights.items()}}


def averages(weights: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the files of programs that keep a moving average beside the weights."""
    model = tiny(TNT)
    model.load_state_dict(dict(plain))
    averaged = AveragedModel(model)
    averaged.module.load_state_dict(dict(weights))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def of_trained(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: weights[name] for name in trained}

    state = {**under("module.", weights), "n_averaged": torch.tensor(3)}
    apart = {name: tensor for name, tensor in state.items() if not name.startswith("module.")}
    return {
        "timm": {"state_dict": plain, "state_dict_ema": weights},
        "deit": {"model": plain, "model_ema": weights},
        "torch": {"model": plain, "swa": averaged.state_dict()},
        "torch alone": {"model": plain, "extra": state},
        "ema-pytorch": {
            "model": plain,
            "ema": {
                **under("online_model.", plain), **under("ema_model.", weights), "initted": torch.tensor([True]),
                "step": torch.tensor([5]),
            },
        },
        "mmengine": {
            "meta": {"epoch": 3}, "state_dict": dict(weights),
            "ema_state_dict": {"steps": torch.tensor(5), **under("module.", plain)},
        },
        "mmengine without meta": {
            "state_dict": dict(weights), "ema_state_dict": {"steps": torch.tensor(5), **under("module.", plain)},
        },
        "mmcv": {
            "meta": {"epoch": 3},
            "state_dict": {**weights, **{f"ema_{name.replace('.', '_')}": tensor for name, tensor in plain.items()}},
        },
        "mmcv with a backbone": {
            "state_dict": {
                **under("backbone.", of_backbone(weights)), **under("head.fc.", of_head(weights)),
                **{f"ema_backbone_{n.replace('.', '_')}": tensor for n, tensor in of_backbone(plain).items()},
                **{f"ema_head_fc_{n}": tensor for n, tensor in of_head(plain).items()},
            },
        },
        "lightning": {
            "state_dict": under("net.", weights), "current_model_state": under("net.", plain), "averaging_state": apart,
        },
        "diffusers": {"model": plain, "ema": {"decay": 0.999, "shadow_params": list(weights.values())}},
        "torch_ema": {
            "model": plain,
            "ema": {"decay": 0.9, "shadow_params": [weights[name] for name in trained], "collected_params": None},
        },
        "flat": {**plain, **under("ema.", weights)},
        "mindspore": {**under("model.", plain), **under("_ema_weights.model.", weights)},
        "inside": {**under("model.", plain), **under("model.ema_weights.", weights)},
        "composer": composer(dict(weights), {"ema_model": {"named_parameters_dict": of_trained(plain)}}),
        "composer, all trained": composer(dict(weights), {"ema_model": {"named_parameters_dict": dict(plain)}}),
        "composer, not swapped": composer(
            dict(plain), {"ema_model": {"named_parameters_dict": of_trained(weights)}, "ema_weights_active": False}
        ),
        "composer before 0.13": composer(dict(weights), {"ema_model": dict(weights), "training_model": dict(plain)}),
        "composer with a mapping": {
            "state": {
                "model": dict(weights),
                "algorithms": {
                    "EMA": {"ema_model": dict(weights), "training_model": dict(plain), "ema_weights_active": True}
                },
            }
        },
        "nemo": {
            "state_dict": under("model.", plain),
            "optimizer_states": [
                {"opt": {"state": {0: {"exp_avg": torch.ones(3)}}}, "ema": (*of_trained(weights).values(),)},
            ],
        },
        "latent diffusion": {
            "state_dict": {**under("model.net.", plain), **lit_ema("model_ema.", under("net.", of_trained(weights)))}
        },
        "latent diffusion, of itself": {"state_dict": {**plain, **lit_ema("model_ema.", of_trained(weights))}},
        "latent diffusion, from above": {
            "state_dict": {**under("model.net.", plain), **lit_ema("ema.", under("model.net.", of_trained(weights)))}
        },
    }  # fmt: skip


@pytest.mark.parametrize("kind", averages(tiny(TNT).state_dict(), tiny(TNT).state_dict()).keys())
def test_the_average_is_taken_and_the_weights_themselves_when_asked(kind: str, tmp_path: Path) -> None:
    plain = tiny(TNT).state_dict()
    # what is never trained is the same in both
    weights = {name: tensor + (name != "outer_tokens") for name, tensor in plain.items()}
    path = save(tmp_path / "a.pth", averages(weights, plain)[kind])
    found = opened(path, TNT)
    assert equal(found.weights, weights)
    (note,) = [note for note in found.account.notes if "moving average" in note]
    assert note.endswith("is taken; weights.average=false takes the weights themselves")
    assert equal(opened(path, TNT, average=False).weights, plain)


def test_average_without_names_and_order_is_left_and_said(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    listed = [tensor + 1 for tensor in weights.values()][::-1]
    path = save(tmp_path / "a.pth", {"model": weights, "ema": {"shadow_params": listed}})
    found = opened(path, TNT)
    assert equal(found.weights, weights)
    assert found.account.doubts == (
        f"{path}: ema.shadow_params, an average without names, is in no order of the model's parameters, and is left",
    )


def test_what_composer_copied_before_its_average_began_is_no_average(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    begun = {name: tensor + 1 for name, tensor in weights.items()}
    kept = {"ema_model": begun, "training_model": begun, "ema_started": False, "ema_weights_active": False}
    found = opened(save(tmp_path / "a.pth", composer(weights, kept)), TNT)
    assert equal(found.weights, weights)
    assert found.account.doubts == ()


def test_average_without_dots_that_fits_nothing_is_left_and_said(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    path = save(tmp_path / "a.pth", {**weights, **lit_ema("unet_ema.", {"conv.in": torch.ones(3)})})
    found = opened(path, TNT)
    assert equal(found.weights, weights)
    assert found.account.doubts == (
        f"{path}: unet_ema, an average whose names have no dots, has none of the model's, and is left",
    )


@pytest.mark.thorough
def test_a_long_list_of_mappings_is_no_place_for_weights(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    history = [{"epoch": number, "losses": {"x": [{"y": 1.0}]}} for number in range(60_000)]
    found = opened(save(tmp_path / "a.pth", {"model": weights, "history": history, "last": history[:60]}), TNT)
    assert equal(found.weights, weights)


def test_average_of_another_head_is_left(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    path = save(tmp_path / "a.pth", {"model": weights, "model_ema": tiny(TNT, num_classes=5).state_dict()})
    found = opened(path, TNT)
    assert equal(found.weights, weights)
    (left,) = [entry for entry in found.account.entries if entry.theirs == ("model_ema",)]
    assert left.note == "has other weights (head.weight, head.bias)"
    assert found.account.doubts == (f"{path}: the moving average (model_ema) {left.note}, and is left",)
    assert opened(path, TNT, average=False).account.doubts == ()


def test_average_that_lacks_a_weight_is_left_and_said(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    lacking = {name: tensor + 1 for name, tensor in weights.items() if name != "head.bias"}
    path = save(tmp_path / "a.pth", {"model": weights, "ema": lacking})
    found = opened(path, TNT)
    assert equal(found.weights, weights)
    assert found.account.doubts == (f"{path}: the moving average (ema) lacks head.bias, and is left",)


@pytest.mark.parametrize("left_out", ["", "pos_embed"])
def test_average_of_what_is_trained_takes_the_rest_from_the_weights(left_out: str, tmp_path: Path) -> None:
    model = tiny("t2t_vit_7")
    weights = model.state_dict()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    average = {name: weights[name] + 1 for name in (trained if left_out else weights)}
    path = save(tmp_path / "a.pth", {"model": weights, "ema": average})
    assert (left_out in average) is False
    found = opened(path, "t2t_vit_7")
    assert equal(found.weights, {**weights, **average})
    assert found.account.doubts == ()
    assert equal(opened(path, "t2t_vit_7", average=False).weights, weights)


@pytest.mark.parametrize("name", ["ModelEMA", "modelEma", "EMACallback", "swaWeights"])
def test_words_for_an_average_are_known_within_names(name: str, tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    average = {key: tensor + 1 for key, tensor in weights.items()}
    assert equal(opened(save(tmp_path / "a.pth", {"model": weights, name: average}), TNT).weights, average)


@lies_beside
def test_average_that_mmengine_swapped_is_not_zeros() -> None:
    model = load_model(WILD / "08-checkpoint-mmengine-ema" / "epoch_3.pth", **AS_WILD)
    assert model.state_dict()["head.weight"].any()
    plain = load_model(WILD / "08-checkpoint-mmengine-ema" / "epoch_3.pth", average=False, **AS_WILD)
    assert not plain.state_dict()["head.weight"].any()


@lies_beside
@pytest.mark.parametrize("file", ["model_state_dict.pth", "net-prefix.ckpt", "timm_model.safetensors", "inner.pth"])
def test_wild_entries_and_prefixes_are_found(file: str) -> None:
    expected = load_model(WILD / "07-checkpoint-entry-net" / "model.pth", **AS_WILD).state_dict()
    found = load_model(WILD / "13-checkpoint-entries-and-prefixes" / file, **AS_WILD)
    assert equal(found.state_dict(), expected)
    assert found.preprocess.mean == (0.5, 0.5, 0.5)


@lies_beside
@pytest.mark.parametrize("file", ["07-checkpoint-entry-net/net.pth", "14-checkpoint-mmengine-history/epoch_1.pth"])
def test_wild_files_are_read_as_the_plain_one(file: str) -> None:
    expected = load_model(WILD / "07-checkpoint-entry-net" / "model.pth", **AS_WILD)
    found = load_model(WILD / file, **AS_WILD)
    assert equal(found.state_dict(), expected.state_dict())
    assert found.preprocess == expected.preprocess


def two(weights: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"state_dict": {**under("student.", weights), **under("teacher.", other)}, "epoch": 1}


def test_two_models_are_not_chosen_between_but_by_hand(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    other = {name: tensor + 1 for name, tensor in weights.items()}
    path = save(tmp_path / "a.pth", two(weights, other))
    with pytest.raises(CheckpointError) as caught:
        opened(path, TNT)
    assert str(caught.value) == (
        f"{path}: holds 2 models that fit and differ: state_dict.student, state_dict.teacher; say which, such as "
        "weights.entry=state_dict.teacher"
    )
    for entry in ("state_dict.student", "student", "student."):
        assert equal(opened(path, TNT, entry=entry).weights, weights)
    assert equal(opened(path, TNT, entry="teacher").weights, other)
    with pytest.raises(
        CheckpointError, match=r"no weights behind weights.entry=model; there are state_dict\.student, "
    ):
        opened(path, TNT, entry="model")


def test_an_empty_entry_is_the_names_without_a_prefix(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    other = {name: tensor + 1 for name, tensor in weights.items()}
    path = save(tmp_path / "a.pth", {**weights, **under("twin.", other)})
    with pytest.raises(CheckpointError, match="differ: the names without a prefix, twin; say which"):
        opened(path, TNT)
    assert equal(opened(path, TNT, entry="").weights, weights)
    assert equal(opened(path, TNT, entry="twin").weights, other)


def test_the_same_model_twice_is_one(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    found = opened(save(tmp_path / "a.pth", two(weights, {**weights})), TNT)
    assert equal(found.weights, weights)
    assert any("state_dict.student and state_dict.teacher hold the same values" in note for note in found.account.notes)


def test_two_averages_that_differ_are_not_chosen_between(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    slow, fast = ({name: tensor + by for name, tensor in weights.items()} for by in (1, 2))
    path = save(tmp_path / "a.pth", {"model": weights, "ema": {"0.999": fast, "0.9999": slow}})
    with pytest.raises(
        CheckpointError, match=r"differ: ema\.0\.999, ema\.0\.9999; say which, such as weights\.entry=ema"
    ):
        opened(path, TNT)
    assert equal(opened(path, TNT, entry="ema.0.9999").weights, slow)
    assert equal(opened(path, TNT, average=False).weights, weights)


def test_entry_by_hand_takes_an_average_as_it_stands(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    path = save(tmp_path / "a.pth", {"model": weights, "model_ema": {n: t + 1 for n, t in weights.items()}})
    assert equal(opened(path, TNT, entry="model").weights, weights)
    assert torch.equal(opened(path, TNT, entry="model_ema").weights["norm.bias"], weights["norm.bias"] + 1)


def test_files_of_vitrail_have_no_entries(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"was written by vitrail and holds one model; leave weights\.entry out"):
        load_model(tiny_checkpoint, entry="model")


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        (
            {"head.0.weight": torch.ones(9, 48), "head.0.bias": torch.ones(9), "head.2.weight": torch.ones(7, 9)},
            "head.0.weight, head.2",
        ),
        ({"arc.weight": torch.ones(7, 48)}, "arc"),
        ({"a.weight": torch.ones(7, 48), "a.bias": torch.ones(7), "b.weight": torch.ones(9, 48)}, "a.weight, b"),
        ({"fc.weight": torch.ones(7, 48), "fc.bias": torch.ones(7), "bn.weight": torch.ones(48)}, "fc.weight, bn"),
        ({"p.weight": torch.ones(9, 48), "p.bias": torch.ones(9), "fc.weight": torch.ones(7, 9)}, "p.weight, fc"),
    ],
    ids=["two layers", "no bias", "two heads", "norm before", "layer behind"],
)
def test_what_may_be_a_head_is_not_dropped_unsaid(beside: dict[str, Tensor], named: str, tmp_path: Path) -> None:
    weights = of_backbone(tiny(TNT).state_dict())
    inside = any(name.startswith("head.") for name in beside)
    path = save(tmp_path / "a.pth", {**under("" if inside else "net.", weights), **beside})
    with pytest.raises(
        CheckpointError, match=rf"is official {TNT} without its head, and {named}\.weight may be of one"
    ):
        opened(path, TNT)
    assert opened(path, TNT, partial=True).record.options["num_classes"] == 0


def test_layer_of_another_name_is_a_doubtful_head(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    path = save(tmp_path / "a.pth", {**under("net.", of_backbone(weights)), **under("projector.", of_head(weights))})
    found = opened(path, TNT)
    assert equal(found.weights, weights)
    assert found.account.doubts == (
        f"{path}: projector is taken for the head: nothing else there is as wide as what the model gives",
    )


def test_what_is_left_in_a_file_is_in_the_account(tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    content = {
        "state_dict": {**under("net.", weights), "loss.weight": torch.ones(7)}, "optimizer": {"state": {}},
        "epoch": 3, "model_ema": {n: t + 1 for n, t in under("net.", weights).items()},
    }  # fmt: skip
    entries = opened(save(tmp_path / "a.pth", content), TNT, average=False).account.entries
    left = {entry.theirs[0]: entry.note for entry in entries if entry.what == "skipped"}
    assert left == {
        "state_dict.loss.weight": "beside the weights", "optimizer": "no weights", "epoch": "a int, not a tensor",
        "model_ema": "a moving average, not taken",
    }  # fmt: skip
    seen = {name for entry in entries for name in entry.theirs}
    assert {f"state_dict.net.{name}" for name in weights} <= seen


def test_entry_net_is_of_cifar_only_where_the_model_is(tmp_path: Path) -> None:
    for name, classes, mean in ((TNT, 10, 0.5), ("twins_svt_small", 10, 0.485), ("t2t_vit_7", 102, 0.485)):
        path = save(tmp_path / "a.pth", {"net": tiny(name, num_classes=classes).state_dict(), "acc": 9.0, "epoch": 1})
        preprocess = opened(path, name).record.preprocess
        assert (preprocess.mean[0], preprocess.interpolation) == (mean, "bicubic")
    path = save(tmp_path / "a.pth", {"net": tiny("t2t_vit_7", num_classes=100).state_dict()})
    found = opened(path, "t2t_vit_7")
    assert found.record.preprocess.mean[0] == 0.4914
    assert any("its entry net is that of the official transfer to 100 classes" in note for note in found.account.notes)


@pytest.mark.parametrize(
    "beside",
    [
        {"normalize.mean": torch.ones(3), "normalize.std": torch.ones(1, 3, 1, 1)},
        {"stem.weight": torch.ones(3, 1, 1, 1)},
        {"last.weight": torch.ones(2, 7), "last.bias": torch.ones(2)},
    ],
    ids=["statistics", "convolution before", "layer behind"],
)
def test_layers_before_and_behind_the_model_are_not_left_unsaid(beside: dict[str, Tensor], tmp_path: Path) -> None:
    weights = tiny(TNT).state_dict()
    path = save(tmp_path / "a.pth", {**under("net.", weights), **beside})
    found = opened(path, TNT)
    assert equal(found.weights, weights)
    named = ", ".join(name for name in beside if not name.endswith("bias"))
    assert found.account.doubts == (
        f"{path}: {named} beside the model may have been trained with it, before or behind it, and are left",
    )
