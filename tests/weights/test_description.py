"""What a weight file says of itself is followed only where its tensors and this machine agree."""

from __future__ import annotations

import io
import json
import struct
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from vitrail.config.commands import EvaluateConfig
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.errors import CheckpointError, ConfigError, shorten, suggest
from vitrail.evaluation.evaluate import evaluate
from vitrail.evaluation.settings import inherited_data
from vitrail.images.preprocess import Preprocess
from vitrail.inference.exported import describe
from vitrail.inference.predictor import open_predictor
from vitrail.models.registry import build_config, create_model, find_variant
from vitrail.weights.checkpoint import KEY
from vitrail.weights.convert import convert
from vitrail.weights.digest import DIGESTS, MARK
from vitrail.weights.formats.protobuf import block
from vitrail.weights.loading import load_model, open_model
from vitrail.weights.request import LoadRequest

MADE = {"format": "onnx", "source": "best.safetensors", "sha256": "0" * 64, "precision": "float32", "details": {}}
Change = Callable[[dict[str, Any]], None]


def rewrite(path: Path, change: Change | None = None, text: str | None = None) -> None:
    """Change what a weight file says of itself, and leave its tensors; its digest goes, as for a hostile program."""
    with safe_open(path, "pt") as file:
        metadata = {name: said for name, said in file.metadata().items() if name not in DIGESTS}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if change is not None:
        content = json.loads(metadata[KEY])
        change(content)
        text = json.dumps(content)
    assert text is not None
    safetensors.torch.save_file(weights, path, {**metadata, KEY: text})


def set_at(dotted: str, value: Any) -> Change:
    """Return what replaces one value of a description."""

    def change(content: dict[str, Any]) -> None:
        *above, last = dotted.split(".")
        for name in above:
            content = content[name]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("dotted", "value", "told"),
    [
        ("format", 10**30, r"is of format 1000"),
        (
            "model",
            "tnt_ti_patch16",
            r"unknown model 'tnt_ti_patch16'; did you mean 'tnt_ti_patch16_224'\? `vitrail models` shows",
        ),
        ("model", "twins_svt_small", r"options are not those of twins_svt_small"),
        ("options.depth", 3, r"it says depth 3, and its tensors are of depth 2"),
        ("options.depth", 10**9, r"depth is 1,000,000,000 blocks; it must be at most 1,000"),
        ("options.depth", 10**30, r"depth is 1000000000\d+; it must be at most 2,147,483,647"),
        ("options.depth", True, r"depth is True; it takes whole numbers"),
        ("options.embed_dim", 96, r"it says embed_dim 96, and its tensors are of embed_dim 48"),
        ("options.image_size", 64, r"it says positions 16, and its tensors are of positions 4"),
        ("options.image_size", 10**6, r"image_size is 1000000; it must be at most 4096 pixels a side"),
        ("options.in_channels", 10**6, r"in_channels is 1000000; it must be 1 to 1000"),
        ("options.norm_eps", float("nan"), r"norm_eps is nan; it must be a number of at most 1,000,000"),
        ("options.norm_eps", "tiny", r"norm_eps is 'tiny'; it takes numbers"),
        ("options.mlp_ratio", float("inf"), r"mlp_ratio is inf; it must be a number of at most"),
        ("options.mlp_ratio", 1e-9, r"it says mlp_ratio 1e-09, and its tensors are of mlp_ratio 4.0"),
        ("options.colour", 1, r"unexpected keyword argument 'colour'"),
        ("classes", ["a", "b"], r"it names 2 classes, and its model has 3 outputs"),
        ("classes", ["a", "a", "b"], r"classes has 'a' twice"),
        ("classes", ["a", 5, "b"], r"classes\[1\] is 5; it must be text"),
        ("classes", ["a", "\ud800", "b"], r"classes\[1\] is '.ud800'; it must be text"),
        ("classes", ["a", "x" * 5000, "b"], r"classes\[1\] is 'x+\.\.\.; it must be text of at most 4,096 letters"),
        ("preprocess.size", [64, 64], r"its model takes images of 32x32 pixels and its preprocessing gives 64x64"),
        ("preprocess.size", [32], r"preprocess: size is \(32,\); it must be a positive height and width"),
        ("preprocess.size", [32, 10**9], r"size is \(32, 1000000000\); it must be at most 4096 pixels a side"),
        ("preprocess.crop", 1e-9, r"crop is 1e-09; images of 32 / 1e-09 pixels are too large, at most 8192"),
        ("preprocess.crop", float("nan"), r"crop is nan; it must be above 0 and at most 1"),
        ("preprocess.resize", "pad", r"resize is 'pad'; it must be 'crop', 'squash' or 'letterbox'"),
        ("preprocess.resize", ["crop"], r"resize is \('crop',\); it must be 'crop', 'squash' or 'letterbox'"),
        ("preprocess.mean", [float("nan")] * 3, r"mean is \(nan, nan, nan\)"),
        ("preprocess.mean", [10**4000] * 3, r"it has a number of 4,001 digits"),
        ("preprocess.std", [0.0] * 3, r"each must have 3 numbers, one a channel, std above 0"),
        ("preprocess.std", [1e-300] * 3, r"it must be at least 1e-06"),
        ("preprocess.std", {"a": 1}, r"std is \{'a': 1\}"),
        ("preprocess.channels", 5, r"each must have 5 numbers"),
        ("preprocess.bits", True, r"bits is True; it must be 8 or 16"),
        ("preprocess.interpolation", ["bicubic"], r"interpolation is \('bicubic',\)"),
        ("recipe.data", ["digits"], r"recipe\.data is \['digits'\]; it must be a section of settings"),
        ("metrics", {"val_top1": 1e300}, r"metrics\.val_top1 is 1e\+300; it must be a number below"),
        ("metrics", {"val_top1": "high"}, r"metrics\.val_top1 is 'high'; it must be a number"),
        ("provenance.training_counts", [1, 2], r"provenance\.training_counts are 2 numbers"),
        ("provenance.training_counts", [1, -2, "x"], r"provenance\.training_counts is \[1, -2, 'x'\]"),
        ("provenance.images", None, r"provenance\.images is None; it must be hashes"),
        ("provenance.sketch", "zz", r"provenance\.sketch is 'zz'; it must be hashes"),
        ("provenance.exported", {"format": 1}, r"provenance\.exported\.format is 1; it must be text"),
        (
            "provenance.exported",
            {**MADE, "format": "zip"},
            r"exported\.format is 'zip'; it must be one of onnx, openvino",
        ),
        ("provenance.exported", {**MADE, "format": "openvino"}, r"provenance\.exported\.details\.bin is missing"),
        ("provenance.exported", {**MADE, "batch_size": 0}, r"exported\.batch_size is 0; it must be 1 to 1,000,000"),
        (
            "provenance.exported",
            {**MADE, "details": {"cpu": 5}},
            r"exported\.details is \{'cpu': 5\}; it must be texts",
        ),
        ("thresholds", [0.5, float("nan"), 0.5], r"thresholds is \[0.5, nan, 0.5\]; it must be a list of prob"),
        ("thresholds", [0.5], r"thresholds are 1 numbers, and its model has 3 outputs"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_what_a_file_says_is_not_believed(dotted: str, value: Any, told: str, tiny_checkpoint: Path) -> None:
    text = None
    if isinstance(value, list) and isinstance(value[0], int) and value[0] > 10**1000:
        value, text = ["HUGE"] * 3, "1" + "0" * 4000
    rewrite(tiny_checkpoint, set_at(dotted, value))
    if text is not None:
        with safe_open(tiny_checkpoint, "pt") as file:
            said = file.metadata()[KEY]
        rewrite(tiny_checkpoint, text=said.replace('"HUGE"', text))
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match=told) as caught:
        load_model(tiny_checkpoint)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("name", ["crop", "mean", "std", "interpolation", "size"])
def test_preprocessing_without_a_value_is_no_default(name: str, tiny_checkpoint: Path) -> None:
    rewrite(tiny_checkpoint, lambda content: content["preprocess"].pop(name))
    with pytest.raises(CheckpointError, match=rf"preprocess\.{name} is missing"):
        load_model(tiny_checkpoint)


def test_lists_in_each_other_and_very_long_texts_are_refused(tiny_checkpoint: Path) -> None:
    rewrite(tiny_checkpoint, text="[" * 100_000)
    with pytest.raises(CheckpointError, match="lists within lists without end"):
        load_model(tiny_checkpoint)
    rewrite(tiny_checkpoint, text='"' + "x" * (17 * 2**20) + '"')
    with pytest.raises(CheckpointError, match="it has 17,825,794 letters, and 16,777,216 at most are read"):
        load_model(tiny_checkpoint)


def test_an_older_description_without_a_newer_option_still_loads(tiny_checkpoint: Path) -> None:
    rewrite(tiny_checkpoint, lambda content: content["options"].pop("drop_rate"))
    assert open_model(tiny_checkpoint).record.options["drop_rate"] == 0.0


def test_a_file_of_a_run_whose_loss_was_not_finite_still_loads(tiny_checkpoint: Path) -> None:
    rewrite(tiny_checkpoint, set_at("metrics", {"val_loss": float("nan"), "val_top1": 50.0, "val_top5": None}))
    assert open_model(tiny_checkpoint).record.metrics["val_top1"] == 50.0


def test_a_file_written_for_another_image_size_reads_images_of_that_size(tmp_path: Path) -> None:
    tiny = {**find_variant("twins_svt_small")[0].tiny}
    model = create_model("twins_svt_small", **tiny)
    del tiny["image_size"]
    folder, target = tmp_path / "timm", tmp_path / "other.safetensors"
    folder.mkdir()
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": "twins_svt_small", "pretrained_cfg": {"input_size": [3, 96, 64], "crop_pct": 1.0}}
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, target, "vitrail", asked=LoadRequest(model="twins_svt_small", options=tiny))
    assert open_model(target).record.preprocess.size == (96, 64)
    convert(target, again := tmp_path / "again.safetensors", "vitrail", asked=LoadRequest(options={"image_size": 128}))
    assert open_model(again).record.preprocess.size == (128, 128)
    assert load_model(again)(torch.zeros(1, 3, 128, 128)).isfinite().all()


def test_more_digests_than_a_file_has_are_not_gathered(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes((MARK + "0" * 64).encode() * 1000)
    with pytest.raises(CheckpointError, match="is damaged: it is not what its digest was made of"):
        describe(path)


def test_processes_downloads_and_disk_are_this_machines(tiny_checkpoint: Path, image_folder: Path) -> None:
    section = {"root": str(image_folder), "workers": 60, "download": True, "cache_gb": 1e6, "manifest": "/x/new.npz"}
    rewrite(tiny_checkpoint, set_at("recipe", {"data": section}))
    (layer,) = inherited_data(open_model(tiny_checkpoint).record, [])
    assert layer.values == {"data": {"root": str(image_folder)}}
    evaluate(tiny_checkpoint, [parse_command_line(["evaluate.device=cpu", "data.workers=0"])])


def test_a_set_of_the_hub_is_opened_only_where_it_is_named(tiny_checkpoint: Path) -> None:
    stored = {"name": "hf:stranger/tracker", "revision": "c0" * 20, "val_split": "test", "label_column": "x"}
    record = replace(open_model(tiny_checkpoint).record, recipe={"data": stored})
    with pytest.raises(ConfigError, match=r"names hf:stranger/tracker, a data set .* write data\.name=hf:stranger/tr"):
        inherited_data(record, [])
    rewrite(tiny_checkpoint, set_at("recipe", {"data": stored}))
    with pytest.raises(ConfigError, match="nothing is downloaded because a file says so"):
        evaluate(tiny_checkpoint, [parse_command_line(["evaluate.device=cpu"])])
    (layer,) = inherited_data(record, [parse_command_line(["data.name=hf:stranger/tracker"])])
    assert layer.values["data"] == stored
    (layer,) = inherited_data(replace(record, recipe={"data": {"name": "hf:./here"}}), [])
    assert layer.values["data"] == {"name": "hf:./here"}
    assert inherited_data(record, [parse_command_line(["data.root=/here"])]) == []


def test_a_batch_that_memory_cannot_hold_is_refused(tiny_checkpoint: Path, image_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"preprocess\.size is 4096x4096, of which 1000000 images take \S+ GB and"):
        Preprocess(size=(4096, 4096)).check_batch(1_000_000)
    predictor = open_predictor(tiny_checkpoint, device="cpu")
    with pytest.raises(ConfigError, match="lower the batch size"):
        next(predictor.predict(["a.jpg"], batch_size=10**9))
    words = [f"data.root={image_folder}", "evaluate.device=cpu", "evaluate.batch_size=1000000000"]
    with pytest.raises(ConfigError, match="lower the batch size"):
        evaluate(tiny_checkpoint, [parse_command_line(words)])


@pytest.mark.parametrize("suffix", [".torchscript", ".pt2"])
def test_descriptions_that_grow_when_they_are_read_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    for size, told in (
        (2**26, "is packed so that it grows to 67,108,864 bytes, as PyTorch writes none"),
        (2**20, "has 1,048,576 bytes, or is compressed, which it never is"),
    ):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"model/extra/{KEY}", bytes(size))
        with pytest.raises(CheckpointError, match=told):
            describe(path)


def test_an_exported_file_of_another_format_than_it_says_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rewrite(tiny_checkpoint, set_at("provenance.exported", MADE))
    with safe_open(tiny_checkpoint, "pt") as file:
        said = file.metadata()[KEY]
    path = tmp_path / "model.torchscript"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"model/extra/{KEY}", said)
    with pytest.raises(CheckpointError, match=r"says that it is onnx, and it is torchscript; use the original"):
        describe(path)


def test_archives_with_too_many_entries_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
    data = bytearray(buffer.getvalue())
    data[-10:-6] = struct.pack("<I", 2**31)  # the length of the list of contents
    for name in ("weights.pth", "model.torchscript"):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="a list of contents of 2,147,483,648 bytes"):
        load_model(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="a list of contents of 2,147,483,648 bytes"):
        describe(tmp_path / "model.torchscript")
    data[-2:] = struct.pack("<H", 5)  # a comment, behind which the end of the list is not looked for
    (tmp_path / "model.torchscript").write_bytes(data + b"hello")
    with pytest.raises(CheckpointError, match=r"\(is cut off at its end, or another program added to it; use"):
        describe(tmp_path / "model.torchscript")


def test_xml_in_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    path.write_text("<a>" * 200_000)
    with pytest.raises(CheckpointError, match="elements within elements without end"):
        describe(path)


@pytest.mark.thorough
def test_headers_and_values_of_weight_files_have_bounds(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    header = b"{" + b" " * (49 * 2**20) + b"}"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(CheckpointError, match="has a header of 51,380,226 bytes, and 50,331,648 at most are read"):
        load_model(path)
    tensor = b"\x08\x01" * 100_000 + block(2, "Float32") + block(3, bytes(4))
    (tmp_path / "sizes.ckpt").write_bytes(block(1, block(1, "a") + block(2, tensor)))
    with pytest.raises(CheckpointError, match="has 100,000 sizes for a"):
        load_model(tmp_path / "sizes.ckpt")
    one = block(2, b"\x08\x00" + block(2, "Int8") + block(3, b""))
    (tmp_path / "many.ckpt").write_bytes(b"".join(block(1, block(1, str(index)) + one) for index in range(200_100)))
    with pytest.raises(CheckpointError, match="has more than 200,000 values"):
        load_model(tmp_path / "many.ckpt")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data: {workers: 0x" + "f" * 5000 + "}", r"has a whole number of more than 64 bits, which no setting is"),
        ("data: {root: 0x" + "f" * 5000 + "}", r"has a whole number of more than 64 bits, which no setting is"),
        (f"data: {{workers: {2**63}}}", r"data\.workers is 9223372036854775808; it must be a whole number below 2\^63"),
        (f"data: {{root: {2**63}}}", r"data\.root is 9223372036854775808; it must be text"),
        ("data: {workers: 5000}", r"workers is 5000; it must be from 0 to 1024"),
        ('data: {root: "a\\0b"}', r"data\.root is 'a.x00b'; it must be text without characters that no name"),
        ("data: {root: [" + "x, " * 9999 + "x]}", r"data\.root is \['x', .{20,200}; it must be text"),
        (
            "\n".join([f"a0: &a0 [{'x, ' * 999}x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 9))]),
            r"holds more than 20,000 values, which no setting is",
        ),
        (
            "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 50))]),
            r"nests values more than 16 deep, which no setting is",
        ),
        ("data: &d {root: *d}", r"nests values more than 16 deep, which no setting is"),
    ],
    ids=[
        "hexadecimal",
        "hexadecimal for text",
        "number",
        "number for text",
        "workers",
        "byte 0",
        "long list",
        "aliases",
        "aliases of aliases",
        "alias of itself",
    ],
)
def test_settings_in_a_file_have_bounds(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as caught:
        resolve(EvaluateConfig, [read_yaml(path)])
    assert len(str(caught.value)) < 1000


def test_numbers_of_the_command_line_have_bounds() -> None:
    told = r"data\.workers is '0xf{100,300}\.\.\.; it must be a whole number below 2\^63"
    with pytest.raises(ConfigError, match=told) as caught:
        resolve(EvaluateConfig, [parse_command_line([f"data.workers=0x{'f' * 5000}"])])
    assert len(str(caught.value)) < 1000


def test_sizes_without_reason_are_refused_before_anything_is_built() -> None:
    for options, told in (
        ({"window_size": 10**6}, "window_size is 1000000; it must be at most the 224 of the images"),
        ({"depths": (400, 400, 400, 4)}, "depths is 1,204 blocks; it must be at most 1,000"),
        ({"depths": (1,) * 2000}, "depths has 2,000 entries"),
        ({"mlp_ratios": (float("nan"),) * 4}, "mlp_ratios is"),
    ):
        with pytest.raises(ConfigError, match=told):
            build_config("twins_svt_small", **options)


def test_brief_is_one_short_line() -> None:
    assert shorten("a\x1b[2J\nb") == r"'a\x1b[2J\nb'"
    assert shorten(10**5000) == "a number of about 5,000 digits"
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    for value in (deep, {"x" * 10**6: [10**5000] * 10**5}, b"\xff" * 10**6, torch.zeros(10**4)):
        assert len(shorten(value)) < 100
        assert "\n" not in shorten(value)
    assert suggest("x" * 10**6, ["xx"]) == ""
