"""How far attention reaches and how alike tokens are, over the depth of a network."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vitrail
from support.chromium import CHROMIUM, Page
from support.commands import refused, run
from support.explained_models import NAMES, PYRAMID, build, random_images
from vitrail.errors import DataError
from vitrail.explanation.attention import record_attention
from vitrail.explanation.depth import measure_depth, measure_likeness, measure_reach


def reach_plainly(shares: Tensor, queries: list[tuple[float, float]], keys: list[tuple[float, float]]) -> Tensor:
    """Return the mean distance of each head, one query and one key after the other."""
    found = torch.zeros(shares.shape[1])
    for image in shares:
        for head, of_queries in enumerate(image):
            for query, of_keys in zip(queries, of_queries, strict=True):
                total = of_keys.sum().item()
                for key, share in zip(keys, of_keys, strict=True):
                    found[head] += share.item() / total * math.dist(query, key)
    return found / (len(shares) * len(queries))


def grid(rows: int, columns: int, step: float) -> list[tuple[float, float]]:
    return [((row + 0.5) * step, (column + 0.5) * step) for row in range(rows) for column in range(columns)]


def test_reach_is_the_mean_distance_by_shares() -> None:
    torch.manual_seed(0)
    shares = torch.rand(2, 3, 6, 2).softmax(-1)
    queries, keys = grid(2, 3, 4), grid(1, 2, 8)
    found = measure_reach(shares, torch.tensor(queries), torch.tensor(keys))
    torch.testing.assert_close(found, reach_plainly(shares, queries, keys))
    at_itself = torch.eye(6).expand(1, 1, 6, 6)
    assert measure_reach(at_itself, torch.tensor(queries), torch.tensor(queries)).item() == 0


def test_padding_is_left_out() -> None:
    torch.manual_seed(0)
    shares = torch.rand(2, 1, 4, 4).softmax(-1)
    places = grid(2, 2, 4)
    real = torch.tensor([[True, True, True, True], [True, False, True, False]])
    found = measure_reach(shares, torch.tensor(places), torch.tensor(places), real)
    whole = reach_plainly(shares[:1], places, places) * 4
    part = reach_plainly(shares[1:, :, ::2, ::2], places[::2], places[::2]) * 2
    torch.testing.assert_close(found, (whole + part) / 6)


def test_likeness_is_the_mean_cosine_of_pairs() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(3, 5, 8)
    for image, found in zip(tokens, measure_likeness(tokens), strict=True):
        pairs = [torch.cosine_similarity(image[i], image[j], 0) for i in range(5) for j in range(5) if i != j]
        assert found.item() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-6)
    alike = torch.ones(1, 4, 3)
    assert measure_likeness(alike).item() == pytest.approx(1)
    assert measure_likeness(torch.randn(3, 1, 4)).isnan().all()  # nothing to compare with


@pytest.mark.parametrize("name", NAMES)
def test_every_attention_and_block_has_its_numbers(name: str) -> None:
    model = build(name, image_size=(64, 96))
    images = random_images(model)
    with torch.no_grad():
        before = model(images)
    reaches, likenesses = measure_depth(model, images)
    with record_attention(model) as recorded, torch.no_grad():
        model(images)
    assert [(one.name, one.level, one.layer) for one in reaches] == [
        (one.name, one.level, one.layer) for one in recorded
    ]
    for reach, one in zip(reaches, recorded, strict=True):
        assert len(reach.pixels) == one.shares.shape[1]
        assert all(0 < pixels < math.hypot(64, 96) for pixels in reach.pixels)
    assert all(-1 <= one.cosine <= 1 for one in likenesses)
    levels = {"word", "sentence"} if "tnt" in name else {"token"}
    assert {one.level for one in likenesses} == levels
    assert len(likenesses) == len({(one.name, one.level) for one in likenesses})
    with torch.no_grad():
        assert torch.equal(model(images), before)


def test_words_and_sentences_are_measured_apart() -> None:
    model = build("tnt_ti_patch16_224", image_size=(32, 48), depth=1)
    images = random_images(model)
    with record_attention(model) as recorded, torch.no_grad():
        model(images)
    reaches, _ = measure_depth(model, images)
    words = reach_plainly(recorded[0].shares, grid(4, 4, 4), grid(4, 4, 4))
    torch.testing.assert_close(torch.tensor(reaches[0].pixels), words)
    places = grid(2, 3, 16)
    sentences = reach_plainly(recorded[1].shares[:, :, 1:, 1:], places, places)
    torch.testing.assert_close(torch.tensor(reaches[1].pixels), sentences)


def test_places_of_a_pyramid_are_those_of_its_stage() -> None:
    model = build(PYRAMID, image_size=(64, 96))
    images = random_images(model)
    with record_attention(model) as recorded, torch.no_grad():
        model(images)
    reaches, _ = measure_depth(model, images)
    shares, found = ({one.name: one for one in each} for each in (recorded, reaches))
    for name, queries, keys in (
        ("stages.0.blocks.0.inner_attn", grid(4, 4, 2), grid(4, 4, 2)),
        ("stages.0.blocks.0.outer_attn", grid(8, 12, 8), grid(2, 3, 32)),
        ("stages.1.blocks.1.outer_attn", grid(4, 6, 16), grid(2, 3, 32)),
        ("stages.2.blocks.0.inner_attn", grid(4, 4, 8), grid(4, 4, 8)),
        ("stages.3.blocks.0.outer_attn", grid(1, 2, 64), grid(1, 2, 64)),
    ):
        expected = reach_plainly(shares[name].shares, queries, keys)
        torch.testing.assert_close(torch.tensor(found[name].pixels), expected)


def test_even_attention_of_twins_reaches_as_far_as_its_map() -> None:
    model = build("twins_svt_small", image_size=64)
    with torch.no_grad():
        for place, parameter in model.named_parameters():
            if ".attn.q" in place:
                parameter.zero_()
    reaches, _ = measure_depth(model, random_images(model))
    reduced = next(one for one in reaches if one.level == "reduced")
    assert reduced.name == "blocks.1.1.attn"
    queries, keys = torch.tensor(grid(8, 8, 8)), torch.tensor(grid(2, 2, 32))
    assert reduced.pixels[0] == pytest.approx(torch.cdist(queries, keys).mean().item(), rel=1e-4)
    for one in reaches:
        # padding of windows takes no share of what is even among the rest
        assert one.pixels == pytest.approx([one.even] * len(one.pixels), rel=1e-3)


def test_a_folder_of_images_has_plots_and_numbers(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images, output = image_folder / "val" / "red", tmp_path / "depth"
    (images / "broken.jpg").write_bytes(b"no image")
    assert run("explain", tiny_checkpoint, images, "--by-layer", "--output", output) == 1
    printed = capsys.readouterr()
    assert f"page: {output / 'index.html'}" in printed.out
    assert "means over 4 images" in printed.out
    assert "broken.jpg: not an image of a known format" in printed.err
    numbers = json.loads((output / "depth.json").read_text())
    assert [one["name"] for one in numbers["attention"]] == [
        "blocks.0.inner_attn", "blocks.0.outer_attn", "blocks.1.inner_attn", "blocks.1.outer_attn",
    ]  # fmt: skip
    assert [(one["level"], len(one["pixels"])) for one in numbers["attention"][:2]] == [("word", 2), ("sentence", 3)]
    page = (output / "index.html").read_text()
    assert page.count("<figure>") == 4
    assert page.count('class="single"') == 2 * (2 + 3)
    assert "words, within their sentence" in page
    assert "http" not in page


def test_numbers_are_means_over_all_images(image_folder: Path, tiny_checkpoint: Path) -> None:
    images = sorted((image_folder / "train").glob("*/*"))[:6]
    model = vitrail.load_model(tiny_checkpoint)
    assert model.preprocess is not None
    reaches, likenesses = measure_depth(model, torch.stack([model.preprocess(path) for path in images]))
    found = vitrail.measure_depth(tiny_checkpoint, images, progress=False)
    assert (found.images, found.page) == (6, None)
    for one, expected in zip(found.attention, reaches, strict=True):
        assert one.pixels == pytest.approx(expected.pixels, rel=1e-4)
    for one, expected in zip(found.similarity, likenesses, strict=True):
        assert one.cosine == pytest.approx(expected.cosine, abs=1e-4)
    assert len(found.records()) == 2 * (2 + 3)


def test_a_data_set_is_measured_as_its_files_are(image_folder: Path, tiny_checkpoint: Path) -> None:
    of_files = vitrail.measure_depth(tiny_checkpoint, image_folder / "val", limit=100, progress=False)
    of_data = vitrail.measure_depth(tiny_checkpoint, data={"root": image_folder}, limit=100, progress=False)
    assert of_data.images == of_files.images == len(list((image_folder / "val").glob("*/*")))
    for one, other in zip(of_data.attention, of_files.attention, strict=True):
        assert one.pixels == pytest.approx(other.pixels, rel=1e-4)


def test_what_has_no_layers_is_one_line(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image = image_folder / "val" / "red" / "red_0.jpg"
    exported = tmp_path / "best.torchscript"
    vitrail.export(tiny_checkpoint, format="torchscript", output=exported, progress=False)
    assert refused(capsys, "explain", exported, image, "--by-layer") == (
        f"error: {exported}: is an exported file, which has answers and no layers to look into; give the weight file"
    )
    assert refused(capsys, "explain", tiny_checkpoint, image, "--by-layer", "--class", "red") == (
        "error: --class red: does not go with --by-layer; leave one of them out"
    )
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="not counted"), pytest.raises(DataError, match="none of the 1 images"):
        vitrail.measure_depth(tiny_checkpoint, tmp_path / "broken.jpg", progress=False)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.thorough
def test_the_plots_are_drawn(image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    vitrail.measure_depth(tiny_checkpoint, image_folder / "val", output=tmp_path / "depth", progress=False)
    with Page() as page:
        for width, is_phone in ((1200, False), (390, True)):
            page.resize(width, 800, is_phone=is_phone)
            page.open((tmp_path / "depth" / "index.html").as_uri())
            assert page.ask(
                "[...document.querySelectorAll('svg')].every(one => one.getBoundingClientRect().width > 100)"
            )
            assert page.ask("document.documentElement.scrollWidth <= innerWidth")
        assert page.complaints == []
