"""Token labels: maps cut out as views are, MixToken, targets and loss against forms written out plainly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitrail.config.teaching_sections import TokenLabelsSection
from vitrail.data.loader import Batch
from vitrail.distillation.token_head import add_token_head, mark_box, mix_tokens, set_box, take_answers
from vitrail.distillation.token_labels import TokenLabels, align, token_loss
from vitrail.distillation.token_maps import FIRST_LINE, SHARD, MapFiles, MapLayout
from vitrail.distillation.token_teacher import classify_tokens
from vitrail.errors import DataError
from vitrail.images.batch_augment import draw_box, make_soft_targets
from vitrail.models.registry import create_model, find_variant
from vitrail.training.step import _cut

CPU = torch.device("cpu")
STUDENTS = {
    "tnt_s_patch16_224": (4, 4),
    "tnt_s_legacy_patch16_224": (4, 4),
    "t2t_vit_7": (4, 4),
    "twins_svt_small": (2, 2),
    "twins_pcpvt_small": (2, 2),
}
"""A model of each kind, with the grid of its last map at 64 pixels."""


def tiny(name: str, classes: int = 5) -> Any:
    torch.manual_seed(1)
    return create_model(name, **{**find_variant(name)[0].tiny, "image_size": 64, "num_classes": classes})


def sample(one: Tensor, y: float, x: float) -> Tensor:
    """Return a map (k, h, w) between its cells, whose centres are at whole numbers, and at its edges what is there."""
    height, width = one.shape[1:]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    up, side = y - top, x - left
    above = one[:, top, left] * (1 - side) + one[:, top, right] * side
    below = one[:, bottom, left] * (1 - side) + one[:, bottom, right] * side
    return above * (1 - up) + below * up


def cut_out_plainly(one: Tensor, place: tuple[float, ...], size: tuple[int, int]) -> Tensor:
    """Cut a map out as a view was: each cell is the mean over points spread evenly inside it, a map's cell apart."""
    left, top, right, bottom, is_mirrored = place
    height, width = one.shape[1:]
    cell_h, cell_w = (bottom - top) * height / size[0], (right - left) * width / size[1]
    down, along = math.ceil(cell_h), math.ceil(cell_w)
    out = torch.zeros(one.shape[0], *size)
    for row in range(size[0]):
        for column in range(size[1]):
            for i in range(down):
                for j in range(along):
                    y = top * height + cell_h * (row + (i + 0.5) / down) - 0.5
                    x = left * width + cell_w * (column + (j + 0.5) / along) - 0.5
                    out[:, row, column] += sample(one, y, x) / (down * along)
    return out.flip(2) if is_mirrored else out


def test_a_map_is_cut_out_as_bilinear_sampling_written_out_does() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(4, 3, 6, 9, generator=generator)
    places = [
        (0.1, 0.2, 0.7, 0.9, 0.0),
        (0.1, 0.2, 0.7, 0.9, 1.0),
        (0.0, 0.0, 0.3, 1.0, 0.0),
        (0.4, 0.4, 0.45, 0.6, 1.0),
    ]
    for size in ((4, 4), (1, 1), (8, 12)):
        aligned = align(maps, torch.tensor(places), size)
        for one, place, found in zip(maps, places, aligned, strict=True):
            torch.testing.assert_close(found, cut_out_plainly(one, place, size), atol=1e-5, rtol=1e-5)


def test_the_whole_image_gives_the_map_back_and_a_flip_mirrors_it() -> None:
    maps = torch.randn(2, 3, 5, 7)
    places = torch.tensor([[0.0, 0, 1, 1, 0], [0, 0, 1, 1, 1]])
    aligned = align(maps, places, (5, 7))
    torch.testing.assert_close(aligned[0], maps[0])
    torch.testing.assert_close(aligned[1], maps[1].flip(2))


def test_a_view_of_a_crop_is_labelled_by_the_cells_that_it_shows() -> None:
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    lower_right = align(maps, torch.tensor([[0.5, 0.5, 1, 1, 0]]), (2, 2))
    torch.testing.assert_close(lower_right, maps[:, :, 2:, 2:])


@pytest.mark.parametrize("name", STUDENTS)
def test_mixing_tokens_is_mixing_by_a_mask(name: str) -> None:
    grid, box = STUDENTS[name], (0, 1, 1, 2)
    model = tiny(name)
    add_token_head(model, grid)
    images = torch.randn(3, 3, 64, 64)
    stem, kept = model.get_submodule(model.embedding), []
    model.train()
    for wanted in (None, box):
        set_box(model, wanted)
        torch.manual_seed(0)  # the performer of T2T-ViT drops something in every training
        out = stem(images)
        kept.append(out[0] if isinstance(out, tuple) else out)
    plain, mixed = (one.reshape(3, -1) for one in kept)
    side = 64 // model.feature_levels[0].reduction
    cells, after = plain.reshape(3, side, side, -1), mixed.reshape(3, side, side, -1)
    scale = side // grid[0]
    for image in range(3):
        for row in range(side):
            for column in range(side):
                inside = row // scale == 0 and column // scale == 1
                source = 2 - image if inside else image
                assert torch.equal(after[image, row, column], cells[source, row, column])
    model.eval()  # where nothing is mixed
    out = stem(images)
    set_box(model, None)
    again = stem(images)
    assert torch.equal(*(one[0] if isinstance(one, tuple) else one for one in (out, again)))


def test_words_and_sentences_of_a_pyramid_are_mixed_alike() -> None:
    torch.manual_seed(1)
    tiny_size = {**find_variant("ptnt_ti_patch16_192")[0].tiny, "image_size": (96, 64)}
    model = create_model("ptnt_ti_patch16_192", **tiny_size).train()
    grid, box, images = model.map_size(-1), (0, 1, 0, 1), torch.randn(3, 3, 96, 64)
    assert grid == (2, 1)  # of whose three cells of 32 pixels the last is half one
    add_token_head(model, grid)
    plain = model.get_submodule(model.embedding)(images)
    set_box(model, box)
    mixed = model.get_submodule(model.embedding)(images)
    for before, after in zip(plain, mixed, strict=True):
        before, after = (part.reshape(3, 12, 8, -1) for part in (before, after))
        assert torch.equal(after[:, :6], before.flip(0)[:, :6])
        assert torch.equal(after[:, 6:], before[:, 6:])
    assert take_answers_of(model, images).shape == (3, 2, 7)


def take_answers_of(model: Any, images: Tensor) -> Tensor:
    model(images)
    return take_answers(model)


@pytest.mark.parametrize("name", ["tnt_s_patch16_224", "twins_svt_small"])
def test_where_a_stem_sees_single_cells_mixing_tokens_is_pasting_pixels(name: str) -> None:
    grid, (top, bottom, left, right) = STUDENTS[name], (1, 2, 0, 2)
    model = tiny(name).train()
    add_token_head(model, grid)
    images = torch.randn(4, 3, 64, 64)
    pasted, side = images.clone(), 64 // grid[0]
    pasted[:, :, top * side : bottom * side, left * side : right * side] = images.flip(0)[
        :, :, top * side : bottom * side, left * side : right * side
    ]
    set_box(model, (top, bottom, left, right))
    by_tokens, tokens = model(images), take_answers(model)
    set_box(model, None)
    torch.testing.assert_close(by_tokens, model(pasted))
    torch.testing.assert_close(tokens, take_answers(model))


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_tokens_are_classified_in_training_alone(name: str, checkpointing: bool) -> None:
    grid, model = STUDENTS[name], tiny(name)
    before = model.eval()(torch.ones(2, 3, 64, 64))
    add_token_head(model, grid)
    model.set_grad_checkpointing(checkpointing)
    assert torch.equal(model(torch.ones(2, 3, 64, 64)), before)
    model.train()
    images = torch.randn(2, 3, 64, 64)
    torch.manual_seed(0)
    model(images)
    answers = take_answers(model)
    head: Any = model.get_classifier().get_submodule("token_head")
    torch.manual_seed(0)
    expected = head(model.forward_features(images)[:, -grid[0] * grid[1] :])
    torch.testing.assert_close(answers, expected)
    answers.sum().backward()
    assert head.weight.grad is not None


def test_boxes_are_drawn_by_key_and_leave_the_share_that_is_told() -> None:
    drawn = [draw_box((7, 5), 1.0, 1.0, key) for key in range(300)]
    assert drawn == [draw_box((7, 5), 1.0, 1.0, key) for key in range(300)]
    boxes = [one for one in drawn if one is not None]
    assert len({box for box, _ in boxes}) > 50
    for (top, bottom, left, right), share in boxes:
        assert 0 <= top < bottom <= 7
        assert 0 <= left < right <= 5
        assert share == pytest.approx(1 - (bottom - top) * (right - left) / 35)
    assert not any(draw_box((7, 5), 1.0, 0.0, key) for key in range(20))
    half = sum(draw_box((7, 5), 1.0, 0.5, key) is not None for key in range(300))
    assert 90 < half < 170
    assert mark_box((8, 8), (0, 1, 1, 2), (2, 2)).nonzero().tolist() == [
        [row, column] for row in range(4) for column in range(4, 8)
    ]


def test_the_loss_is_that_of_a_plain_loop() -> None:
    answers, targets = torch.randn(3, 4, 5), torch.rand(3, 4, 5)
    expected = 0.0
    for image in range(3):
        for token in range(4):
            total = sum(math.exp(float(one)) for one in answers[image, token])
            for k in range(5):
                share = math.exp(float(answers[image, token, k])) / total
                expected -= float(targets[image, token, k]) * math.log(share) / 4
    assert float(token_loss(answers, targets)) == pytest.approx(expected, rel=1e-5)


def write_maps(folder: Path, logits: Tensor, topk: int, unknown: tuple[int, ...] = ()) -> MapFiles:
    images, _, k = logits.shape
    layout = MapLayout(k, topk, (2, 3))
    files = MapFiles(folder, layout, images)
    records = layout.pack(range(images), logits)
    for index in unknown:
        records[index] = np.zeros((), layout.record)
    layout.seal(range(images), records)
    for shard in range(files.shards):
        places = files.places(shard)
        with files.open_for(shard, 0) as file:
            file.write(records[places.start : places.stop].tobytes())
    return files


def labels_of(files: MapFiles, **section: Any) -> TokenLabels:
    return TokenLabels(
        section=TokenLabelsSection(folder="x", **section),
        files=files,
        about={},
        digest="",
        grid=(2, 3),
        smoothing=0.1,
        device=CPU,
    )


def batch_of(indices: list[int], places: list[tuple[float, ...]]) -> Batch:
    numbers = torch.tensor(indices)
    return Batch(torch.zeros(len(indices), 3, 4, 4, dtype=torch.uint8), numbers % 5, numbers, numbers, [],
                 torch.tensor(places))  # fmt: skip


def test_all_classes_kept_are_the_dense_map(tmp_path: Path) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 6, 5) * 3
    files = write_maps(tmp_path, logits, 5)
    files.check_sizes()
    maps = files.layout.unpack(files.read([0, 1, 2, 3]), CPU)
    dense = logits.log_softmax(2).transpose(1, 2).reshape(4, 5, 2, 3)
    torch.testing.assert_close(maps, dense, atol=5e-3, rtol=1e-3)
    # of fewer, the kept ones are as probable, and the others have equal shares of the rest
    (tmp_path / "few").mkdir()
    few = write_maps(tmp_path / "few", logits, 2)
    shares = few.layout.unpack(few.read([0, 1, 2, 3]), CPU).softmax(1)
    exact = dense.softmax(1)
    kept = exact >= exact.topk(2, dim=1).values[:, -1:]
    torch.testing.assert_close(shares[kept], exact[kept], atol=3e-3, rtol=3e-3)
    rest = exact.masked_fill(kept, 0).sum(1) / 3
    torch.testing.assert_close(shares[~kept], rest[:, None].expand(-1, 5, -1, -1)[~kept], atol=3e-3, rtol=3e-2)


@pytest.mark.parametrize("label", ["image", "map", "both"])
def test_targets_are_those_of_a_plain_form(tmp_path: Path, label: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 6, 5) * 3
    labels = labels_of(write_maps(tmp_path, logits, 5, unknown=(2,)), label=label)
    places = [(0.0, 0.0, 1.0, 1.0, 0.0), (0.25, 0.1, 0.9, 0.8, 1.0), (0.0, 0.0, 0.5, 0.5, 0.0)]
    batch = batch_of([3, 1, 2], places)
    weights = torch.tensor([1.0, 2.0, 0.5])[:, None]
    of_labels = make_soft_targets(batch.labels, 5, 0.1) * weights
    targets = labels.make_targets(batch, of_labels)
    assert targets.shape == (3, labels.columns)
    classes, tokens = targets[:, :5], targets[:, 5:].unflatten(1, (6, 5))
    for number, (index, place) in enumerate(zip([3, 1, 2], places, strict=True)):
        if index == 2:  # which has no map
            assert torch.equal(classes[number], of_labels[number])
            assert torch.equal(tokens[number], of_labels[number].expand(6, 5))
            continue
        dense = logits[index].log_softmax(1).T.reshape(5, 2, 3)
        cut = (cut_out_plainly(dense, place, (2, 3)).softmax(0) * 0.9 + 0.1 / 5) * weights[number]
        torch.testing.assert_close(tokens[number], cut.flatten(1).T, atol=5e-3, rtol=1e-2)
        whole = (cut_out_plainly(dense, place, (1, 1)).softmax(0) * 0.9 + 0.1 / 5)[:, 0, 0] * weights[number]
        share = {"image": 0.0, "map": 1.0}.get(label, 0.9)
        if label == "both" and int(whole.argmax()) == int(batch.labels[number]):
            share = 0.5
        expected = share * whole + (1 - share) * of_labels[number]
        torch.testing.assert_close(classes[number], expected, atol=5e-3, rtol=1e-2)


def test_targets_are_mixed_as_the_tokens_are(tmp_path: Path) -> None:
    labels = labels_of(write_maps(tmp_path, torch.randn(3, 6, 5), 5))
    targets = torch.rand(3, 2 * 5 + 30)
    key = next(key for key in range(99) if (drawn := draw_box((2, 3), 1.0, 1.0, key)) and 0 < drawn[1] < 1)
    drawn = draw_box((2, 3), 1.0, 1.0, key)
    assert drawn is not None
    (top, bottom, left, right), share = drawn
    mixed = labels.mix(targets, key)
    torch.testing.assert_close(mixed[:, :10], share * targets[:, :10] + (1 - share) * targets.flip(0)[:, :10])
    for image in range(3):
        for row in range(2):
            for column in range(3):
                inside = top <= row < bottom and left <= column < right
                begin = 10 + 5 * (3 * row + column)
                expected = targets[2 - image if inside else image, begin : begin + 5]
                assert torch.equal(mixed[image, begin : begin + 5], expected)
    assert labels.mix(targets, None) is targets


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_parts_of_a_batch_keep_partners_together(n: int) -> None:
    numbers = torch.arange(n)[:, None]
    for parts in (1, 2, 3, 9):
        seen: list[int] = []
        for images, targets in _cut(numbers, numbers, parts, in_pairs=True):
            assert torch.equal(images, targets)
            assert torch.equal(images + images.flip(0), torch.full_like(images, n - 1))
            seen += images.flatten().tolist()
        assert sorted(seen) == list(range(n))
        grid = (1, 2)
        tokens = torch.rand(n, 2, 3)
        whole = mix_tokens(tokens, grid, (0, 1, 0, 1), grid)
        for part, _ in _cut(numbers, numbers, parts, in_pairs=True):
            chosen = part.flatten()
            assert torch.equal(mix_tokens(tokens[chosen], grid, (0, 1, 0, 1), grid), whole[chosen])


def test_damaged_and_missing_files_are_told(tmp_path: Path) -> None:
    files = write_maps(tmp_path, torch.randn(SHARD + 40, 6, 5), 3)
    path = files.path(1)
    data = bytearray(path.read_bytes())
    data[len(FIRST_LINE) + 35 * files.layout.record.itemsize + 7] ^= 1
    path.write_bytes(data)
    files.read([0, SHARD + 34])
    with pytest.raises(DataError) as caught:
        files.read([SHARD + 35])
    assert str(caught.value).startswith(f"{path}: is damaged at image 36; the same ")
    assert str(caught.value).endswith("make-token-labels as before mends it")
    assert files.count_done(0) == (SHARD, False)
    assert files.count_done(1) == (32, True)
    path.write_bytes(data[:-3])
    with pytest.raises(DataError, match=r"00001\.maps: has [\d,]+ bytes instead of [\d,]+; the same "):
        files.check_sizes()
    path.unlink()
    with pytest.raises(DataError, match=r"00001\.maps: is missing; the same "):
        files.check_sizes()


def test_a_record_belongs_to_its_image(tmp_path: Path) -> None:
    files = write_maps(tmp_path, torch.randn(4, 6, 5), 3)
    length, data = files.layout.record.itemsize, bytearray(files.path(0).read_bytes())
    begin = len(FIRST_LINE)
    data[begin : begin + length], data[begin + length : begin + 2 * length] = (
        data[begin + length : begin + 2 * length],
        data[begin : begin + length],
    )
    files.path(0).write_bytes(data)
    with pytest.raises(DataError, match="is damaged at image 1;"):
        files.read([0])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "is_linear"),
    [
        ("twins_svt_small", True),
        ("tnt_s_patch16_224", False),
        ("t2t_vit_7", False),
        ("timm:resnet18", True),
        ("timm:swin_tiny_patch4_window7_224", True),
        ("timm:vit_tiny_patch16_224", False),
        ("timm:deit_tiny_distilled_patch16_224", False),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_classifier_reads_each_token_of_a_map(name: str, is_linear: bool) -> None:
    if name.startswith("timm:"):
        size = 224 if "swin" in name else 64
        model: Any = create_model(name, num_classes=5, image_size=size)
    else:
        model, size = tiny(name), 64
    model = model.eval()
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        (last,) = model.forward_intermediates(images, [-1])
        grid = (last.shape[2], last.shape[3])
        logits = classify_tokens(model, images, grid)
        assert logits.shape == (2, grid[0] * grid[1], 5)
        if is_linear:  # the mean of what is said of the tokens is what is said of the image
            torch.testing.assert_close(logits.mean(1), model(images), atol=1e-4, rtol=1e-4)
        elif not name.startswith("timm:"):
            tokens = model.forward_features(images)[:, 1:]
            torch.testing.assert_close(logits, nn.functional.linear(tokens, model.head.weight, model.head.bias))
