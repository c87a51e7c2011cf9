"""Train backbones for dense tasks on generated scenes: UPerNet on a Twins, RetinaNet on a PyramidTNT; IoU and AP.

uv run python benchmarks/backbones.py
uv run python benchmarks/backbones.py --updates 60 --scenes 40

A scene is a canvas with noise on which handwritten digits of scikit-learn lie, of many sizes and colours; 32 does not
divide its sides. Digits of the held-out scenes are in no training scene. Small networks are trained from nothing, so
these numbers say that a backbone learns under the heads of other libraries, and no more.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cyclopts
import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
from side_by_side import publish
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, box_iou

import vitrail.timm  # noqa: F401 - teaches timm our models

SIZE = (108, 148)
CLASSES = 11
"""Ten digits, and what is behind them, which is class 0."""
HELD_OUT = 397
"""Digits that are in no training scene."""
TWINS: dict[str, Any] = {
    "embed_dims": (32, 64, 128, 256),
    "depths": (2, 2, 2, 2),
    "num_heads": (1, 2, 4, 8),
    "mlp_ratios": (2.0, 2.0, 2.0, 2.0),
}
PYRAMID_TNT: dict[str, Any] = {
    "embed_dims": (64, 96, 128, 128),
    "inner_dims": (4, 8, 8, 8),
    "depths": (2, 2, 2, 1),
    "num_heads": (2, 4, 4, 4),
    "inner_num_heads": (2, 2, 2, 2),
}
BACKGROUND = 0.2
"""Weight of the canvas in the loss of pixels, of which it has nine in ten."""
IS_DIGIT = 0.4
"""How much ink makes a pixel one of the digit."""


@dataclass(frozen=True)
class Scene:
    """An image with the class of every pixel and the box of every digit."""

    image: Tensor
    mask: Tensor
    boxes: Tensor
    labels: Tensor


def draw_scene(digits: np.ndarray, labels: np.ndarray, key: tuple[int, int]) -> Scene:
    """Paste three to six digits on a canvas, none over another; what is drawn follows from the key."""
    rng = np.random.default_rng(key)
    height, width = SIZE
    image = rng.uniform(0, 0.4, (3, 1, 1)) + 0.1 * rng.standard_normal((3, height, width))
    mask = np.zeros(SIZE, dtype=np.int64)
    is_free = np.ones(SIZE, dtype=bool)
    boxes, classes = [], []
    for _ in range(rng.integers(3, 7)):
        which, side = rng.integers(len(digits)), int(rng.integers(18, 41))
        small = torch.from_numpy(digits[which])[None, None]
        ink = interpolate(small, (side, side), mode="bilinear").numpy()[0, 0]
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        place = np.s_[top : top + side, left : left + side]
        colour = rng.uniform(0.5, 1, (3, 1, 1))
        if not is_free[place].all():
            continue
        is_free[place] = False
        image[:, *place] += ink * (colour - image[:, *place])
        mask[place][ink > IS_DIGIT] = labels[which] + 1
        rows, columns = np.nonzero(ink > IS_DIGIT)
        box = [left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1]
        boxes.append(box)
        classes.append(labels[which] + 1)
    return Scene(
        torch.from_numpy(image).float(),
        torch.from_numpy(mask),
        torch.tensor(np.array(boxes), dtype=torch.float32),
        torch.tensor(np.array(classes), dtype=torch.int64),
    )


class Scenes:
    """Scenes of the digits for training, or of those that are held out."""

    def __init__(self, *, held_out: bool, seed: int) -> None:
        images, labels = map(np.asarray, load_digits(return_X_y=True))
        part = slice(-HELD_OUT, None) if held_out else slice(-HELD_OUT)
        self.digits = (images.reshape(-1, 8, 8) / 16)[part].astype(np.float32)
        self.labels = labels[part]
        self.seed = 2 * seed + held_out

    def __getitem__(self, index: int) -> Scene:
        return draw_scene(self.digits, self.labels, (self.seed, index))

    def batch(self, number: int, size: int) -> list[Scene]:
        """Return the scenes of a batch."""
        return [self[index] for index in range(number * size, (number + 1) * size)]


def build_segmenter() -> nn.Module:
    """Build UPerNet on a small Twins; its maps fit images of any size, so the head need not refuse any."""
    options: dict[str, Any] = {"dynamic_img_size": True, **TWINS}
    model = smp.UPerNet(
        "tu-vitrail_twins_svt_small",
        encoder_weights=None,
        decoder_channels=64,
        classes=CLASSES,
        **options,
    )
    model.requires_divisible_input_shape = False
    return model


class Pyramid(nn.Module):
    """A backbone as torchvision's detectors take it: maps, and a feature pyramid over them."""

    def __init__(self, body: nn.Module, channels: list[int], out_channels: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, out_channels
        self.fpn = FeaturePyramidNetwork(channels, out_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(k), one) for k, one in enumerate(self.body(images))))


def build_detector() -> nn.Module:
    """Build RetinaNet on a small PyramidTNT, whose strides of 8 to 64 are those of the detector's levels."""
    body: Any = timm.create_model(
        "ptnt_s_patch16_256", features_only=True, dynamic_img_size=True, img_size=128, **PYRAMID_TNT
    )
    sizes = tuple((2 * stride, 3 * stride) for stride in body.feature_info.reduction())
    tall = (1.0, 1.5, 2.2)  # digits are
    return RetinaNet(
        Pyramid(body, body.feature_info.channels(), 64),
        CLASSES,
        anchor_generator=AnchorGenerator(sizes, (tall,) * len(sizes)),
        min_size=min(SIZE),
        max_size=max(SIZE),
    )


def train(model: nn.Module, lose: Callable[[list[Scene]], Tensor], scenes: Scenes, updates: int, rate: float) -> float:
    """Train a model, print its loss now and then, and return the seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, updates)
    started = time.perf_counter()
    model.train()
    for update in range(updates):
        loss = lose(scenes.batch(update, 8))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if update % 20 == 0 or update == updates - 1:
            print(f"update {update + 1} of {updates}: loss {loss.item():.3f}", flush=True)
    return time.perf_counter() - started


def measure_iou(model: nn.Module, scenes: Scenes, count: int) -> list[float]:
    """Return the intersection over union of each class, over all pixels of the scenes."""
    pairs = torch.zeros(CLASSES, CLASSES)
    with torch.inference_mode():
        for index in range(count):
            scene = scenes[index]
            answer = model(scene.image[None])[0].argmax(0)
            flat = (CLASSES * scene.mask + answer).flatten()
            pairs += flat.bincount(minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    both = pairs.diagonal()
    return (both / (pairs.sum(0) + pairs.sum(1) - both).clamp(min=1)).tolist()


def measure_precision(model: nn.Module, scenes: Scenes, count: int, overlap: float = 0.5) -> list[float]:
    """Return the average precision of each digit, of boxes that overlap by so much."""
    found: list[list[tuple[float, bool]]] = [[] for _ in range(CLASSES)]
    wanted = [0] * CLASSES
    with torch.inference_mode():
        for index in range(count):
            scene = scenes[index]
            (answer,) = model([scene.image])
            for label in range(1, CLASSES):
                truth = scene.boxes[scene.labels == label]
                wanted[label] += len(truth)
                of_label = answer["labels"] == label
                boxes, scores = answer["boxes"][of_label], answer["scores"][of_label]
                found[label] += match(boxes, scores, truth, overlap)
    return [average_precision(found[label], wanted[label]) for label in range(1, CLASSES)]


def match(boxes: Tensor, scores: Tensor, truth: Tensor, overlap: float) -> list[tuple[float, bool]]:
    """Return the score of each box, and whether it is right; each true box makes one right, the best."""
    taken: set[int] = set()
    matches = []
    for number in scores.argsort(descending=True).tolist():
        is_right = False
        if len(truth):
            best, place = box_iou(boxes[number : number + 1], truth)[0].max(0)
            is_right = best.item() >= overlap and place.item() not in taken
            if is_right:
                taken.add(int(place))
        matches.append((scores[number].item(), is_right))
    return matches


def average_precision(matches: list[tuple[float, bool]], wanted: int) -> float:
    """Return the area below the curve of precision, made to fall, over recall."""
    if not matches or not wanted:
        return 0.0
    right = np.array([is_right for _, is_right in sorted(matches, reverse=True)])
    recall = right.cumsum() / wanted
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * falling))


def main(updates: int = 800, scenes: int = 200, seed: int = 0) -> None:
    """Train both for so many updates, measure them on held-out scenes, and write a page beside this file."""
    learnt, kept = Scenes(held_out=False, seed=seed), Scenes(held_out=True, seed=seed)
    torch.manual_seed(seed)
    segmenter = build_segmenter()
    weight = torch.tensor([BACKGROUND] + [1.0] * (CLASSES - 1))

    def lose_pixels(batch: list[Scene]) -> Tensor:
        images, masks = torch.stack([one.image for one in batch]), torch.stack([one.mask for one in batch])
        return cross_entropy(segmenter(images), masks, weight)

    seconds = train(segmenter, lose_pixels, learnt, updates, 1e-3)
    overlaps = measure_iou(segmenter.eval(), kept, scenes)
    table = ["| task | backbone | head | held-out scenes | minutes |", "|-|-|-|-|-:|"]
    ious = f"mean IoU {100 * np.mean(overlaps):.1f} %, of digits alone {100 * np.mean(overlaps[1:]):.1f} %"
    table.append(f"| segmentation | Twins-SVT, 4 x 2 blocks | UPerNet | {ious} | {seconds / 60:.1f} |")

    torch.manual_seed(seed)
    detector = build_detector()

    def lose_boxes(batch: list[Scene]) -> Tensor:
        targets = [{"boxes": one.boxes, "labels": one.labels} for one in batch]
        return torch.stack([*detector([one.image for one in batch], targets).values()]).sum()

    seconds = train(detector, lose_boxes, learnt, updates, 4e-4)
    precisions = measure_precision(detector.eval(), kept, scenes)
    precision = f"AP at IoU 0.5, mean of ten digits, {100 * np.mean(precisions):.1f} %"
    table.append(f"| detection | PyramidTNT, 7 blocks | RetinaNet | {precision} | {seconds / 60:.1f} |")
    notes = [
        f"{updates} updates of 8 scenes of {SIZE[0]}x{SIZE[1]} pixels each, from nothing; {scenes} held-out scenes",
    ]
    publish("backbones", "Backbones for dense tasks on generated scenes", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
