"""From a folder of images to a plan, and from the plan to a model that is no worse than the linear probe."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

import vitrail
from support.commands import refused, run
from support.runs import rows
from vitrail.api.finetuning import Finetuning, read_seconds
from vitrail.display import Quiet
from vitrail.errors import CheckpointError, ConfigError, DataError
from vitrail.transfer.names import RESERVED, probe_of, reserved_name

FAST = {"data.workers": 0, "train.device": "cpu", "train.epochs": 2}


def finetune(images: Path, weights: Path | None, **options: object) -> Finetuning:
    settings = {**FAST, "output.root": images.parent / "runs", **options.pop("settings", {})}  # type: ignore[dict-item]
    return vitrail.finetune(images, settings, weights=weights, **options)  # type: ignore[arg-type]


def test_a_folder_becomes_a_recipe_a_probe_and_a_run(image_folder: Path, tiny_checkpoint: Path) -> None:
    result = finetune(image_folder, tiny_checkpoint)
    folder = image_folder.parent / "runs"
    assert result.recipe == folder / "images.yaml"
    assert result.probe == folder / "images-probe.safetensors"
    assert result.floor is not None
    assert result.floor.probe.value == 100.0  # colours are told apart by any features

    # the probe is a model that reaches what was said of it, and the run begins with it
    probed = vitrail.evaluate(result.probe, {"data.root": image_folder, "data.workers": 0})
    assert probed.numbers["top1"] == result.floor.probe.value
    assert result.training is not None
    first = rows(result.training.folder)[0]
    assert first["epoch"] == 0
    assert first["val_top1"] == result.floor.probe.value
    assert result.training.best["val_top1"] >= result.floor.probe.value
    assert result.training.folder == folder / "images"

    # every setting has its origin, also where the recipe is shown later
    origins = {name: origin for name, _, origin, _ in result.settings}
    assert origins["train.epochs"] == "given"
    assert origins["optim.lr"] == "auto"
    shown = vitrail.show_config(result.recipe)
    assert shown.origins["optim.lr"].startswith("auto: for updates of 16 images")
    assert shown.origins["train.epochs"] == "images"
    text = str(result)
    assert "linear probe" in text
    assert "crops of half an image or more" in text


def test_a_recipe_that_was_edited_says_whose_the_value_is(image_folder: Path, tiny_checkpoint: Path) -> None:
    plan = finetune(image_folder, tiny_checkpoint, dry_run=True)
    assert plan.training is None
    recipe = yaml.safe_load(plan.recipe.read_text())
    recipe["optim"]["lr"] = 1e-5
    recipe["schedule"]["min_lr"] = recipe["schedule"]["warmup_lr"] = 0.0
    plan.recipe.write_text(yaml.safe_dump(recipe))
    shown = vitrail.show_config(plan.recipe)
    assert shown.values["optim.lr"] == 1e-5
    assert shown.origins["optim.lr"] == "images"
    assert shown.origins["optim.clip_norm"].startswith("auto: ")
    trained = vitrail.train(plan.recipe)
    assert trained.rows[-1]["epoch"] == 2


def test_a_second_plan_leaves_the_first_as_it_is(image_folder: Path, tiny_checkpoint: Path) -> None:
    first = finetune(image_folder, tiny_checkpoint, dry_run=True)
    before = first.recipe.read_bytes()
    second = finetune(image_folder, tiny_checkpoint, dry_run=True)
    assert second.recipe.name == "images-2.yaml"
    assert first.recipe.read_bytes() == before


def test_weights_that_know_the_classes_already_keep_their_head(image_folder: Path, tiny_checkpoint: Path) -> None:
    first = finetune(image_folder, tiny_checkpoint)
    assert first.training is not None
    again = finetune(image_folder, first.training.weights, dry_run=True)
    assert again.probe is not None
    reached = vitrail.evaluate(again.probe, {"data.root": image_folder, "data.workers": 0}).numbers["top1"]
    assert reached == 100.0


@pytest.mark.thorough
def test_a_budget_is_turned_into_epochs(image_folder: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs both say how long"):
        finetune(image_folder, tiny_checkpoint, budget="10s")
    options = {key: value for key, value in FAST.items() if key != "train.epochs"}
    plan = vitrail.finetune(
        image_folder,
        {**options, "output.root": image_folder.parent / "runs"},
        weights=tiny_checkpoint,
        budget="4s",
        dry_run=True,
    )
    epochs = next(value for name, value, _, _ in plan.settings if name == "train.epochs")
    assert epochs > 10
    reason = next(reason for name, _, _, reason in plan.settings if name == "train.epochs")
    assert reason.startswith(("what 4 seconds allow at ", "5 times the usual 131; 4 seconds"))


@pytest.mark.thorough
def test_a_budget_too_small_leaves_the_probe(
    image_folder: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = image_folder.parent / "runs"
    line = refused(
        capsys, "finetune", image_folder, "--weights", tiny_checkpoint, "--budget", "0.001s", f"output.root={folder}",
        "data.workers=0", "train.device=cpu",
    )  # fmt: skip
    assert "is too small for one epoch" in line
    assert str(folder / "images-probe.safetensors") in line
    assert (folder / "images-probe.safetensors").exists()


def test_training_from_scratch_is_told_what_it_means(image_folder: Path, capsys: pytest.CaptureFixture) -> None:
    tiny = "model.options={embed_dim: 24, inner_dim: 8, depth: 1, num_heads: 2, inner_num_heads: 2}"
    status = run(
        "finetune", image_folder, "model.weights=null", "model.name=tnt_ti_patch16_224", "model.image_size=32", tiny,
        f"output.root={image_folder.parent / 'runs'}", "data.workers=0", "train.device=cpu", "--dry-run",
    )  # fmt: skip
    assert status == 0
    printed = capsys.readouterr()
    assert "24 images are few to train a network on from nothing" in printed.err
    assert "train.eval_first" not in printed.out


def test_multi_label_images_are_fine_tuned(image_folder: Path, tiny_checkpoint: Path) -> None:
    names = sorted(path.relative_to(image_folder) for path in image_folder.rglob("*.jpg"))
    lines = ["path,labels,split"]
    for name in names:
        split, colour = name.parts[0], name.parts[1]
        lines.append(f"{name},{colour}|bright,{split}" if colour == "red" else f"{name},{colour},{split}")
    table = image_folder / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    result = finetune(table, tiny_checkpoint)
    assert result.floor is not None
    assert result.floor.metric == "map"
    assert result.training is not None
    assert result.training.best["val_map"] >= result.floor.probe.value - 1e-6


def test_what_cannot_be_fine_tuned_is_said_in_one_line(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ("--weights", tiny_checkpoint, f"output.root={tmp_path / 'runs'}", "data.workers=0", "train.device=cpu")
    assert "is not there; give a folder of images" in refused(capsys, "finetune", tmp_path / "nothing", *given)
    image = next((image_folder / "train" / "red").iterdir())
    assert "is one image, and finetune needs many; give their folder: " in refused(capsys, "finetune", image, *given)
    assert "give their folder" in refused(capsys, "finetune", *given)
    assert "are both given" in refused(capsys, "finetune", image_folder, "data.root=x", *given)
    assert "--budget is soon" in refused(capsys, "finetune", image_folder, "--budget", "soon", *given)
    (tmp_path / "empty").mkdir()
    refused(capsys, "finetune", tmp_path / "empty", *given)
    (tmp_path / "one" / "a").mkdir(parents=True)
    shutil.copy(next(image_folder.rglob("*.jpg")), tmp_path / "one" / "a")
    refused(capsys, "finetune", tmp_path / "one", *given)
    (tmp_path / "singles").mkdir()
    for number, image in enumerate(sorted(image_folder.rglob("*.jpg"))[:3]):
        (tmp_path / "singles" / f"class{number}").mkdir()
        shutil.copy(image, tmp_path / "singles" / f"class{number}")
    refused(capsys, "finetune", tmp_path / "singles", *given)
    assert not list((tmp_path / "runs").glob("*.yaml")) if (tmp_path / "runs").exists() else True


def test_several_processes_are_told_to_train_by_a_plan(
    image_folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="make the recipe with dry_run=True, then give it to torchrun"):
        finetune(image_folder, tiny_checkpoint)


def test_times_are_read() -> None:
    assert read_seconds("90s") == 90
    assert read_seconds("10m") == read_seconds(10) == 600
    assert read_seconds("1.5h") == 5400
    assert read_seconds(None) is None
    for text in ("", "0", "-3m", "ten", "5d"):
        with pytest.raises(ConfigError, match="must be a time such as"):
            read_seconds(text)


def test_missing_weights_and_images_are_refused(image_folder: Path) -> None:
    with pytest.raises(CheckpointError):
        finetune(image_folder, image_folder.parent / "missing.safetensors")
    with pytest.raises(DataError):
        finetune(image_folder / "train" / "red", None, settings={"model.weights": None})


def test_two_plans_at_once_take_two_names(image_folder: Path, tiny_checkpoint: Path) -> None:
    folder = image_folder.parent / "runs"
    with reserved_name(folder, None, "images", Quiet()) as name:
        assert name == "images"
        meanwhile = finetune(image_folder, tiny_checkpoint, dry_run=True)
    assert meanwhile.recipe.name == "images-2.yaml"
    assert meanwhile.probe is not None
    assert meanwhile.probe.name == "images-2-probe.safetensors"


def test_a_given_name_is_taken_or_refused(image_folder: Path, tiny_checkpoint: Path) -> None:
    settings = {"output.name": "mine/first"}
    plan = finetune(image_folder, tiny_checkpoint, dry_run=True, settings=settings)
    assert plan.recipe == image_folder.parent / "runs" / "mine" / "first.yaml"
    before = plan.recipe.read_bytes()
    with pytest.raises(ConfigError, match=r"^output.name=mine/first: .* has a run or plan of that name; give another"):
        finetune(image_folder, tiny_checkpoint, dry_run=True, settings=settings)
    assert plan.recipe.read_bytes() == before


def test_a_plan_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        probe_of(tmp_path, name).touch()
        raise DataError("no more images")

    with pytest.raises(DataError), reserved_name(tmp_path, None, "images", Quiet()) as name:
        fail(name)
    assert not list(tmp_path.iterdir())


def test_a_plan_that_was_killed_is_told_apart_from_a_recipe(image_folder: Path, tiny_checkpoint: Path) -> None:
    folder = image_folder.parent / "runs"
    folder.mkdir()
    (folder / "images.yaml").write_text(RESERVED)
    with pytest.raises(ConfigError, match=r"images.yaml: `vitrail finetune` plans it, or was killed"):
        vitrail.train(folder / "images.yaml")
    assert finetune(image_folder, tiny_checkpoint, dry_run=True).recipe.name == "images-2.yaml"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.batch_size": 1000}, "train.batch_size"),
        ({"train.epoch_images": 1000}, "train.epoch_images is 1000; it must be from"),
        ({"train.eval_first": True, "train.monitor": "train_loss"}, "train.eval_first=true is for a number"),
        ({"optim.name": "sgd"}, "the learning rate is chosen for adamw alone"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_features_are_computed(
    image_folder: Path, tiny_checkpoint: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune(image_folder, tiny_checkpoint, settings=settings)
    assert not list((image_folder.parent / "runs").glob("*.safetensors"))


def test_micro_batches_can_be_given_alone(image_folder: Path, tiny_checkpoint: Path) -> None:
    plan = finetune(image_folder, tiny_checkpoint, dry_run=True, settings={"train.accumulate": 3})
    chosen = {name: value for name, value, _, _ in plan.settings}
    assert chosen["train.accumulate"] == 3
    assert chosen["train.batch_size"] % 3 == 0


def test_a_run_without_a_floor_says_so(image_folder: Path, tiny_checkpoint: Path) -> None:
    with pytest.warns(UserWarning, match=r"train.monitor=train_loss is not measured before training"):
        finetune(image_folder, tiny_checkpoint, dry_run=True, settings={"train.monitor": "train_loss"})


def test_a_size_beside_weights_is_refused(image_folder: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"^size chooses among models, and model.weights is given; leave one out$"):
        finetune(image_folder, tiny_checkpoint, size="base")


def test_weights_that_are_not_there_are_told_before_images_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"nosuch"):
        finetune(tmp_path / "empty", tmp_path / "nosuch.safetensors")


def test_a_folder_whose_name_looks_like_a_setting_is_taken(
    image_folder: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    odd = image_folder.rename(image_folder.with_name("a = b"))
    run("finetune", odd, "--weights", tiny_checkpoint, "--dry-run", f"output.root={odd.parent / 'runs'}",
        "data.workers=0", "train.device=cpu")  # fmt: skip
    assert (odd.parent / "runs" / "a = b.yaml").exists()
