"""vitrail reproduce: what a recipe asks for and costs, and proxies that are trained beside a band."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitrail
from support.commands import refused
from support.commands import run as run_command
from support.forked import Python, wait_until
from support.runs import TINY, assert_same_run, has_saved
from vitrail.api.reproduction import ProxyRun, Reproduction
from vitrail.config.recipes import list_recipes, read_header, read_recipe
from vitrail.models.registry import FAMILIES, find_variant
from vitrail.reproduction.recipes import TRAIN_IMAGES, VAL_IMAGES, find_recipes

MODEL = "tnt_s_patch16_224"
EPOCHS = 3


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A recipe that learns next to nothing, so that its accuracy stays that of a guess among three classes."""
    recipe = tmp_path / "slow.yaml"
    recipe.write_text(
        TINY.read_text().replace("lr: 3.0e-3", "lr: 1.0e-5").replace("warmup_epochs: 1", "warmup_epochs: 0")
    )
    return recipe


@pytest.fixture
def expect(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of curves, as docs/reproduce.md describes it."""

    def write(recipe: object, *curves: list[float], epochs: int = EPOCHS, train: int = 24) -> Path:
        runs = {str(seed): curve for seed, curve in enumerate(curves, 1)}
        content = {
            "settings": {"train.epochs": epochs},
            "images": {"train": train, "val": 12},
            "made": {"command": "made for a test"},
            "curves": {str(recipe): runs},
        }
        file = tmp_path / "expected.json"
        file.write_text(json.dumps(content))
        return file

    return write


def words(expected: Path, images: Path, *more: object) -> list[object]:
    return [
        "reproduce", MODEL, "--proxy", "--expected", expected, f"data.root={images}",
        f"output.root={images.parent / 'runs'}", *more,
    ]  # fmt: skip


def around(*means: float) -> list[list[float]]:
    """Return three curves, a point apart."""
    return [[min(max(mean + offset, 0), 100) for mean in means] for offset in (-1, 0, 1)]


def test_a_run_below_its_band_is_told_after_the_epoch_and_goes_on(
    slow: Path, expect: Callable[..., Path], image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = expect(slow, *around(20, 97, 98))
    assert run_command(*words(expected, image_folder)) == 1
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    epochs = [place for place, line in enumerate(lines) if line.startswith("epoch ")]
    warned = [place for place, line in enumerate(lines) if "is below the band of" in line]
    assert len(epochs) == EPOCHS, "training went on to its end"
    assert [place for place in warned if place < epochs[1]] == [], "the first epoch was not below"
    assert epochs[1] < warned[0] < epochs[2], "said as soon as it is known"
    assert lines[warned[0]].startswith("warning: epoch 2: top-1 of ")
    assert "3 seeds have 97.00 % on average" in lines[warned[0]]
    assert "slow.yaml is the proxy of tnt_s_patch16_224, as of every TNT" in printed.err
    assert "below the band: " in printed.out
    assert "band: command made for a test" in printed.out
    log = (image_folder.parent / "runs" / "slow_proxy" / "log.txt").read_text()
    assert "is below the band of" in log


@pytest.mark.parametrize(
    ("means", "status", "verdict"),
    [((100.0, 100.0, 100.0), 0, "inside the band: "), ((40.0, 40.0, 40.0), 3, "above the band: ")],
)
def test_the_exit_status_says_where_a_run_ends(
    means: tuple[float, ...],
    status: int,
    verdict: str,
    expect: Callable[..., Path],
    image_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = expect(TINY, *around(*means))
    json_file = image_folder.parent / "run.json"
    assert run_command(*words(expected, image_folder, "--json", json_file)) == status
    printed = capsys.readouterr()
    assert verdict in printed.out
    assert "is below the band" not in printed.err
    written = json.loads(json_file.read_text())
    assert (written["status"], len(written["epochs"])) == (status, EPOCHS)
    assert written["place"] == verdict.split()[0]
    assert written["epochs"][0]["expected"] == pytest.approx(sum(c[0] for c in around(*means)) / 3)
    # once more, nothing is trained and the verdict is the same
    assert run_command(*words(expected, image_folder)) == status
    assert verdict in capsys.readouterr().out


@pytest.mark.thorough
def test_a_killed_proxy_goes_on_with_itself_and_its_band(
    slow: Path, expect: Callable[..., Path], image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = expect(slow, *around(20, 97, 98, 98, 98, 98), epochs=6)
    runs = image_folder.parent / "runs"
    save = "output.save_every_updates=1"
    process = Python("-m", "vitrail", *words(expected, image_folder, save))
    try:
        wait_until(has_saved(runs / "slow_proxy", 4), process)
    finally:
        process.kill()
    assert run_command(*words(expected, image_folder, save)) == 1
    printed = capsys.readouterr()
    assert "warning: epoch 6: top-1 of " in printed.err
    shutil.move(runs / "slow_proxy", runs / "killed")
    assert run_command(*words(expected, image_folder, save)) == 1
    assert_same_run(runs / "slow_proxy", runs / "killed")


def test_a_proxy_that_is_told_to_stop_names_its_own_command(
    slow: Path, expect: Callable[..., Path], image_folder: Path
) -> None:
    expected = expect(slow, *around(*[50] * 4000), epochs=4000)
    process = Python("-m", "vitrail", *words(expected, image_folder, "output.save_every_updates=1"))
    wait_until(has_saved(image_folder.parent / "runs" / "slow_proxy", 2), process)
    process.send_signal(15)
    done = process.wait()
    assert done.returncode == 75
    assert f"type `vitrail reproduce {MODEL} --proxy` with the same settings" in done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "train.epochs=6",
            "train.epochs=6: the curve of a proxy is known for its own settings alone; drop it, or",
        ),
        ("optim.lr=1e-4", "optim.lr=1e-4: the curve of a proxy"),
        ("model.name=tnt_s_patch16_224", "model.name=tnt_s_patch16_224: the curve of a proxy"),
        ("train.seed=4", "Allowed are data.root, data.download, data.workers, output, train.device, train.precision"),
        ("data.name=null", "data.name=null: the curve of a proxy"),
        ("epoch_size=3", "'epoch_size=3' is not a setting"),
    ],
)
def test_a_setting_that_would_make_it_another_run_is_refused_by_name(
    given: str, message: str, expect: Callable[..., Path], image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = expect(TINY, *around(50, 60, 70))
    assert message in refused(capsys, *words(expected, image_folder, given))
    assert not (image_folder.parent / "runs").exists()


def test_settings_of_place_are_taken(expect: Callable[..., Path], image_folder: Path, tmp_path: Path) -> None:
    expected = expect(TINY, *around(100, 100, 100))
    settings = {
        "data.root": image_folder, "data.workers": 1, "output.root": tmp_path / "there", "output.name": "mine",
        "train.device": "cpu", "train.precision": "float32",
    }  # fmt: skip
    result = vitrail.reproduce(MODEL, settings, proxy=True, expected=expected, progress=False)
    assert isinstance(result, ProxyRun)
    assert (result.folder, result.place, result.status) == (tmp_path / "there" / "mine", "inside", 0)
    assert [one.epoch for one in result.epochs] == [1, 2, 3]


def test_other_images_than_those_of_the_curves_are_refused(
    expect: Callable[..., Path], image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = expect(TINY, *around(50, 60, 70), train=50_000)
    line = refused(capsys, *words(expected, image_folder))
    assert "has 24 images and the curves of" in line
    assert "were measured with 50,000; give the whole set, or leave out data.root" in line


def test_cifar10_in_folders_is_known_by_them_and_has_to_be_whole(
    expect: Callable[..., Path], image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = expect("cifar10_tnt", *around(50, 60, 70), train=50_000)
    (image_folder / "val").rename(image_folder / "test")
    line = refused(capsys, *words(expected, image_folder))
    assert "has 24 images and the curves of cifar10_tnt were measured with 50,000" in line


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("tnt_s_patch16_225",), "unknown model 'tnt_s_patch16_225'; did you mean 'tnt_s_patch16_224'?"),
        (
            ("tnt_ti_patch16_224",),
            "no recipe trains it; the closest with one is tnt_s_patch16_224, by tnt_s_imagenet",
        ),
        (("timm:deit_tiny_patch16_224",), "no recipe trains it, nor another model of its family; `vitrail config`"),
        (("timm:deit_tiny_patch16_224", "--proxy"), "its family has no proxy; there is one of "),
        ((MODEL, "--seconds", "0"), "--seconds is 0.0; it must be above 0"),
        ((MODEL, "--expected", "x.json"), "--expected goes with --proxy alone; add that, or leave it out"),
        (
            (MODEL, "data.name=fashion-mnist"),
            "data.name=fashion-mnist: a recipe is shown with its own model and",
        ),
        (
            (MODEL, "model.name=t2t_vit_7"),
            "model.name=t2t_vit_7: a recipe is shown with its own model and images",
        ),
        ((MODEL, "optim.lrr=1"), "optim.lrr: unknown key; did you mean 'lr'?"),
        ((MODEL, "--json", "gone/cost.json"), "--json gone/cost.json: there is no folder gone"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    asked: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "reproduce", *asked)


def test_curves_of_another_family_are_refused(expect: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    expected = expect(TINY, *around(50, 60, 70))
    line = refused(capsys, "reproduce", "twins_svt_small", "--proxy", "--expected", expected)
    assert f"--expected {expected}: it has curves of {TINY}, and twins_svt_small is a Twins; give a file" in line


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("warmup_epochs: 1", "warmup_epochs: 1, cooldown_epochs: 2", "and schedule.cooldown_epochs is 2; measure"),
        ("log_every: 1", "log_every: 1, eval_every: 2", "and train.eval_every is 2; measure curves of a recipe with"),
    ],
)
def test_a_recipe_whose_epochs_are_no_curve_is_refused(
    before: str, after: str, message: str, expect: Callable[..., Path], image_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = image_folder.parent / "other.yaml"
    recipe.write_text(TINY.read_text().replace(before, after))
    line = refused(capsys, *words(expect(recipe, *around(50, 60, 70)), image_folder))
    assert f"a curve has top-1 after each of train.epochs, {message}" in line


def test_initial_weights_that_are_evaluated_are_no_epoch_of_the_curve(
    expect: Callable[..., Path], image_folder: Path
) -> None:
    recipe = image_folder.parent / "first.yaml"
    recipe.write_text(TINY.read_text().replace("log_every: 1", "log_every: 1, eval_first: true"))
    expected = expect(recipe, *around(100, 100, 100))
    settings = {"data.root": image_folder, "output.root": image_folder.parent / "runs"}
    result = vitrail.reproduce(MODEL, settings, proxy=True, expected=expected, progress=False)
    assert isinstance(result, ProxyRun)
    assert [one.epoch for one in result.epochs] == [1, 2, 3]


def test_images_of_several_labels_have_no_proxy(
    expect: Callable[..., Path], image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = image_folder.parent / "labels.csv"
    lines = ["path,labels,split"]
    for image in sorted(image_folder.rglob("*.jpg")):
        name = image.relative_to(image_folder)
        lines.append(f"{name},{name.parts[1]}|{'warm' if name.parts[1] == 'red' else 'cold'},{name.parts[0]}")
    labels.write_text("\n".join(lines) + "\n")
    recipe = image_folder.parent / "several.yaml"
    text = TINY.read_text().replace("label_smoothing: 0.1", "label_smoothing: 0")
    recipe.write_text(text.replace("root: images", f"root: images, list: {labels}, labels_column: labels"))
    line = refused(capsys, *words(expect(recipe, *around(50, 60, 70)), image_folder))
    assert "several.yaml: its epochs have no top-1; a proxy is one with a class an image" in line


def test_a_proxy_without_a_band_is_refused_by_name(
    expect: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vitrail.reproduction.proxies.SHIPPED", expect("cifar10_tnt", *around(50, 60, 70)))
    line = refused(capsys, "reproduce", "twins_svt_small", "--proxy")
    assert "twins_svt_small: its proxy cifar10_twins has no band yet (there is one of cifar10_tnt); " in line
    assert "`vitrail train cifar10_twins` trains it without, and --expected takes curves of your own runs" in line


def cost_of(*settings: str) -> Any:
    result = vitrail.reproduce("digits", list(settings), seconds=0.3, progress=False)
    assert isinstance(result, Reproduction)
    assert result.cost is not None
    return result.cost


def test_the_cost_is_measured_and_grows_with_the_recipe() -> None:
    short, long = cost_of("train.device=cpu"), cost_of("train.device=cpu", "train.epochs=4000")
    assert short.images_per_s > 0
    assert short.evaluated_per_s > short.images_per_s, "evaluation has no backward pass"
    assert short.epoch_s == pytest.approx(1438 / short.images_per_s)
    times = 4000 / read_recipe("digits").layer.values["train"]["epochs"]
    assert times / 3 < long.run_s / short.run_s < 3 * times
    assert short.here_s == short.run_s / short.devices
    assert long.devices_for_a_day == max(1, math.ceil(long.run_s / 86_400))
    assert short.devices_for_a_day == 1


@pytest.mark.thorough
def test_a_model_is_shown_with_its_numbers_its_conditions_and_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("reproduce", "t2t_vit_7", "--seconds", "0.5", "train.device=cpu", "train.precision=float32") == 0
    printed = capsys.readouterr().out
    for text in (
        "t2t_vit_7_imagenet", "71.7", "not yet run", "ImageNet-1k, 1,281,167 images", "8 processes by its command",
        "the whole recipe", "in a day", "where the recipe has 512 on a device",
        "vitrail bench-data t2t_vit_7_imagenet data.root=FOLDER measures that",
        "next: vitrail train t2t_vit_7_imagenet data.root=/path/to/imagenet",
    ):  # fmt: skip
        assert text in printed, text


def test_a_recipe_with_a_teacher_is_shown_without_a_cost(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    shown = vitrail.reproduce("tnt_s_from_twins_svt_large", json=file, progress=False)
    assert isinstance(shown, Reproduction)
    assert shown.cost is None
    assert "every update asks the teacher twins_svt_large" in str(shown)
    assert shown.recipes[0].name == "tnt_s_from_twins_svt_large"
    assert {"tnt_s_imagenet", "tnt_s_384_cifar10"} < {one.name for one in shown.recipes}
    written = json.loads(file.read_text())
    assert (written["cost"], written["model"]) == (None, MODEL)
    assert written["recipes"][1]["reproduced"] == "not yet run"


def test_a_model_is_shown_with_the_proxy_of_its_family(
    expect: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrail.reproduction.proxies.SHIPPED", expect("cifar10_tnt", *around(50, 60, 70)))
    shown = vitrail.reproduce("tnt_s_from_twins_svt_large", progress=False)
    assert isinstance(shown, Reproduction)
    assert f"the proxy of its family, cifar10_tnt: vitrail reproduce {MODEL} --proxy" in str(shown)


def test_every_model_with_a_published_recipe_finds_it_first() -> None:
    for family in FAMILIES:
        for model, variant in family.variants.items():
            names = find_recipes(model)
            if variant.top1 and variant.source == "official":
                assert names[0].endswith("_imagenet"), model
            assert not [name for name in names if name not in list_recipes()]


def test_the_images_of_every_recipe_are_counted() -> None:
    assert TRAIN_IMAGES.keys() == VAL_IMAGES.keys()
    for name in list_recipes():
        data = read_recipe(name).layer.values["data"]
        set_name = data.get("name") or data["root"]
        assert set_name in TRAIN_IMAGES, name


def test_the_header_of_a_recipe_is_read_field_by_field() -> None:
    header = read_header(
        "# A model on images (someone, 2022).\n"
        "#   torchrun --nproc-per-node 4 -m vitrail train x data.root=y\n"
        "# Published: 81.5 (top-1,\n# as they say).\n"
        "# Reproduced: not yet run.\n"
        "model: {name: x}\n"
    )
    assert (header.title, header.published, header.reproduced, header.settings, header.processes) == (
        "A model on images", "81.5 (top-1, as they say)", "not yet run", "", 4,
    )  # fmt: skip
    assert read_header("model: {name: x}\n").title == ""


def test_the_proxies_differ_in_their_model_alone() -> None:
    tnt, ptnt = (read_recipe(name).layer.values for name in ("cifar10_tnt", "cifar10_ptnt"))
    assert {**ptnt, "model": None} == {**tnt, "model": None}
    assert find_variant(ptnt["model"]["name"])[0].name == "pyramid_tnt"
