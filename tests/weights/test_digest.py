"""A bit that changes anywhere in a weight file or an exported file is told before anything is computed with it."""

from __future__ import annotations

import random
import zipfile
from dataclasses import replace
from pathlib import Path

import jaxtyping
import onnx
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import vitrail
from vitrail.cli.app import main
from vitrail.deploy.compare import gather_sample
from vitrail.deploy.export import export, find_outputs
from vitrail.errors import CheckpointError
from vitrail.inference.exported import describe, with_making
from vitrail.inference.network import open_artifact, read_artifact
from vitrail.weights.checkpoint import KEY, to_metadata
from vitrail.weights.digest import BLANK, DIGESTS, check_archive, check_sealed, digest_weights, seal, seal_archive
from vitrail.weights.loading import open_model

DAMAGED = r"^\S+: (is damaged: it is not what its digest was made of|.*, or is damaged|is damaged, or no file of)"


def flipped(data: bytes, bit: int) -> bytes:
    bent = bytearray(data)
    bent[bit // 8] ^= 1 << bit % 8
    return bytes(bent)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_a_flipped_bit_anywhere_in_a_weight_file_is_told(tiny_checkpoint: Path) -> None:
    data = tiny_checkpoint.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    draw = random.Random(0)
    bits = [*range(72), *(draw.randrange(8 * head) for _ in range(300))]
    bits += [8 * (data.index(name.encode()) + at) for name in (KEY, *DIGESTS) for at in range(len(name))]
    bits += [draw.randrange(8 * head, 8 * len(data)) for _ in range(100)]
    for bit in bits:
        tiny_checkpoint.write_bytes(flipped(data, bit))
        with pytest.raises(CheckpointError, match=DAMAGED) as caught:
            open_model(tiny_checkpoint)
        assert "\n" not in str(caught.value)


def test_whoever_reads_weights_is_told(tiny_checkpoint: Path) -> None:
    data = tiny_checkpoint.read_bytes()
    tiny_checkpoint.write_bytes(flipped(data, 8 * len(data) - 100))  # within a weight
    for reading in (
        vitrail.load_model,
        read_artifact,
        lambda path: vitrail.load_model(path, dialect="official", model="tnt_ti_patch16_224"),
    ):
        with pytest.raises(CheckpointError, match="is damaged: it is not what its digest was made of; copy it again"):
            reading(tiny_checkpoint)


def test_a_file_without_a_digest_is_read_as_before(tiny_checkpoint: Path) -> None:
    expected = open_model(tiny_checkpoint)
    kept = {name: tensor.clone() for name, tensor in expected.weights.items()}  # as the file is written over
    tensors, texts = read(tiny_checkpoint)
    assert {KEY, "format", *DIGESTS} == texts.keys()
    safetensors.torch.save_file(tensors, tiny_checkpoint, {name: texts[name] for name in (KEY, "format")})
    found = open_model(tiny_checkpoint)
    assert found.record == expected.record
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in kept.items())


def test_another_program_may_order_the_file_and_add_texts_but_not_change_it(tiny_checkpoint: Path) -> None:
    tensors, texts = read(tiny_checkpoint)
    backwards = dict(reversed(tensors.items()))
    safetensors.torch.save_file(backwards, tiny_checkpoint, {"author": "someone", **dict(reversed(texts.items()))})
    assert open_model(tiny_checkpoint).record.classes
    halved = {name: tensor.half() for name, tensor in tensors.items()}
    safetensors.torch.save_file(halved, tiny_checkpoint, texts)
    with pytest.raises(CheckpointError, match="has to leave out vitrail_digest and vitrail_digest_again"):
        open_model(tiny_checkpoint)
    safetensors.torch.save_file(halved, tiny_checkpoint, {name: texts[name] for name in (KEY, "format")})
    assert open_model(tiny_checkpoint).weights["cls_token"].dtype == torch.float16
    for lost in (KEY, *DIGESTS):
        safetensors.torch.save_file(tensors, tiny_checkpoint, {k: v for k, v in texts.items() if k != lost})
        with pytest.raises(CheckpointError, match="is damaged"):
            open_model(tiny_checkpoint)


def test_the_digest_of_weights_changes_with_all_that_they_are() -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(()), "c": torch.empty(0, 2)}
    digest = digest_weights(weights, {"x": "y"})
    assert digest == "4d11dbaccba036536896f9f0ef6d6dede95046856c05b2b3520c2539102cc87b"  # the same for ever
    assert digest == digest_weights(dict(reversed(weights.items())), {"x": "y"})
    others = [
        ({**weights, "a": weights["a"].reshape(3, 2)}, {"x": "y"}),
        ({**weights, "a": weights["a"].view(torch.int32)}, {"x": "y"}),
        ({**weights, "a": weights["a"].double()}, {"x": "y"}),
        ({**weights, "b": -weights["b"]}, {"x": "y"}),
        ({**weights, "c": torch.empty(2, 0)}, {"x": "y"}),
        ({"a": weights["a"], "b": weights["b"]}, {"x": "y"}),
        ({**weights, "d": torch.empty(0)}, {"x": "y"}),
        (weights, {"x": "z"}),
        (weights, {}),
    ]
    digests = {digest_weights(*other) for other in others}
    assert len(digests - {digest}) == len(others)
    large = torch.zeros(5_000_000, dtype=torch.bfloat16)
    before = digest_weights({"a": large}, {})
    large[4_999_999] = 1
    assert digest_weights({"a": large}, {}) != before


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported file of the tiny model."""
    from support.tiny_model import save_tiny

    weights = open_model(path := save_tiny(tmp_path_factory.mktemp("exported")))
    jaxtyping.config.update("jaxtyping_disable", True)
    (done,) = export(weights, find_outputs(["torchscript"], path, None), gather_sample(weights.record, None))
    jaxtyping.config.update("jaxtyping_disable", False)
    return done.path


def test_a_flipped_bit_anywhere_in_an_exported_file_is_told(torchscript: Path, tmp_path: Path) -> None:
    data = torchscript.read_bytes()
    draw, path = random.Random(0), tmp_path / torchscript.name
    bits = [draw.randrange(8 * len(data)) for _ in range(100)]
    bits += [draw.randrange(8 * (len(data) - 1000), 8 * len(data)) for _ in range(200)]
    for bit in bits:
        path.write_bytes(flipped(data, bit))
        with pytest.raises(CheckpointError, match=DAMAGED) as caught:
            open_artifact(path)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_within_its_digest_is_told(torchscript: Path, tmp_path: Path) -> None:
    data, path = torchscript.read_bytes(), tmp_path / torchscript.name
    for length in (1, 78, 80, 100, 142, 150, 157, 158, 159, 170, 181, 1000):
        path.write_bytes(data[:-length])
        with pytest.raises(
            CheckpointError, match=r"is damaged: it is (not what|cut off within)|is damaged, or no file"
        ):
            describe(path)


def test_an_archive_without_a_digest_is_compared_with_its_checksums_before_it_runs(
    torchscript: Path, tmp_path: Path
) -> None:
    data, path = torchscript.read_bytes(), tmp_path / torchscript.name
    end = data.rindex(b"PK\x05\x06")
    data = data[: end + 20] + bytes(2)  # as before there were digests
    path.write_bytes(data)
    open_artifact(path)
    assert check_archive(path) > 10
    with zipfile.ZipFile(path) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: -entry.file_size)
    for entry in entries[:3]:
        path.write_bytes(flipped(data, 8 * (data.index(entry.filename.encode(), entry.header_offset) + 400)))
        with pytest.raises(CheckpointError, match=f"is damaged: {entry.filename} does not have its checksum; copy it"):
            describe(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(20_000_000))
    with pytest.raises(CheckpointError, match="is packed so that it grows to 20,000,000 bytes, as PyTorch writes none"):
        describe(path)


def test_weights_are_read_from_an_exported_program_with_a_digest(torchscript: Path) -> None:
    model = vitrail.load_model(torchscript, model="tnt_ti_patch16_224", **read_artifact(torchscript).record.options)
    assert model.num_features


def test_texts_of_a_network_are_sealed_and_may_be_left_out(torchscript: Path, tmp_path: Path) -> None:
    found, path = describe(torchscript), tmp_path / "network.onnx"
    network = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> network (float[b, 3] x) => (float[b, 3] y) { y = Identity (x) }'
    )
    making = replace(found.making, format="onnx")
    record = with_making(found.record, making)
    onnx.helper.set_model_props(network, {**to_metadata(record), **dict.fromkeys(DIGESTS, BLANK)})
    data = bytes(seal([network.SerializeToString()]))
    path.write_bytes(data)
    assert check_sealed(path)
    assert describe(path).making == making
    for bit in range(0, 8 * len(data), 13):
        path.write_bytes(flipped(data, bit))
        with pytest.raises(CheckpointError, match=DAMAGED):
            describe(path)
    changed = onnx.load_from_string(data)
    changed.producer_name = "another program"
    onnx.save(changed, path)
    with pytest.raises(CheckpointError, match=r"or make it anew \(docs/export.md says how to change one on purpose\)$"):
        describe(path)
    kept = [entry for entry in changed.metadata_props if entry.key not in DIGESTS]
    del changed.metadata_props[:]
    changed.metadata_props.extend(kept)
    onnx.save(changed, path)
    assert not check_sealed(path)
    assert describe(path).record == with_making(found.record, making)


def test_a_sealed_archive_is_still_one(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/version", "3")
    path.write_bytes(seal_archive(path.read_bytes()))
    assert check_sealed(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("a/version") == b"3"
        assert len(archive.comment) == len(BLANK) * 2
    path.write_bytes(b"")
    assert not check_sealed(path)


@pytest.mark.thorough
def test_commands_say_that_a_file_is_a_program(
    torchscript: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    warning = f"{torchscript}: is a program, which runs with all your rights; open such files only from somebody"
    output = str(tmp_path / "a.csv")
    weights, report = str(torchscript.with_suffix(".safetensors")), str(tmp_path / "report")
    measured = [f"data.root={image_folder}", "--report", report]
    for words in (
        ["predict", str(torchscript), str(image_folder / "val" / "red"), "--output", output],
        ["evaluate", str(torchscript), *measured],
        ["evaluate", weights, *measured, "--against", str(torchscript)],
        ["bench", str(torchscript), "--rounds", "1", "--batch-size", "1"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert (ended.value.code, capsys.readouterr().err.count(warning)) == (0, 1), words
    with pytest.raises(SystemExit):
        main(["predict", weights, str(image_folder / "val"), "--output", output])
    assert "is a program" not in capsys.readouterr().err
