"""Relevance carried back through attention: rollout, and attention weighted by its gradients.

Both begin at what the head reads and go through one attention after the other, from the last to
the first, by the shares that queries give to keys, averaged over heads.

    Attention rollout (Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928): r becomes (r + r A) / 2,
    as half of a token is what it was. It knows of no class.
    Gradient-weighted attention (Chefer et al. 2021, https://arxiv.org/abs/2103.15679): r becomes r + r A',
    where A' is what is positive of A times the gradient of the class's logit for A.

What goes beyond the papers
    TNT: relevance of the sentences is the papers', from the class token. Within a sentence it is
    divided among the words. For rollout, by their lengths where each block folds them into their sentence,
    which go back through the inner attention. For the other, by what the pixels of each word add to the
    class's logit beyond the image's mean colour, to first order and where it is positive. By what words add
    where they are folded, the map within a patch was no better than an even one: SaCo 0.64 on images of
    benchmarks/explain.py, where the even one has 0.63 and this one 0.94.
    T2T-ViT: relevance of the tokens is the papers'; it goes on through the attention of the soft
    splits, and through each split evenly to the places of the neighbourhood. A performer has the
    shares that its features imply. For gradient-weighted attention, what the pixels of a token's cell have then
    in all is divided among them by what they add, as in TNT: SaCo 0.99 in place of 0.75 there.
    Twins has no class token: relevance begins evenly on the last tokens, whose mean the head reads.
    A key of a reduced map is a cell of tokens, which share what it gets; windows are put where they
    lie, and what their padding gets is lost; a token is made of a cell of the stage before. Each
    stage has a map, of what its own tokens have at its beginning; the first's is the finest. The
    position encoding counts as passing on what it gets. As the identity of r + r A' would leave an even
    ground on all maps, what never went through attention is left out, as it is with a class token. For
    gradient-weighted attention, what the tokens of the first stage have in all that one of the last is made of is
    divided among them by what their pixels add: SaCo 0.98 in place of 0.72 there.
    PyramidTNT is carried as Twins is; a sentence is divided among the two by two that it was merged of.
    For gradient-weighted attention, the words that one sentence of the last stage is made of divide what
    they have by what their pixels add, and a sentence of the first stage has what its words have: SaCo
    0.98 in place of 0.81 there. Rollout ends at the sentences.

Shapes
    b images, s = n + 1 tokens (class token first), n sentences or tokens, bn = b * n, p words of a sentence,
    q queries, m keys
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from vitrail.explanation.attention import Level, Recorded, record_attention, require_attention
from vitrail.explanation.placing import (
    cut_windows,
    divide,
    join_windows,
    share_cells,
    spread_cells,
    spread_merged,
    spread_split,
    to_grid,
)
from vitrail.explanation.target import Classes, settle_classes, to_evidence
from vitrail.models.family import VisionModel
from vitrail.models.pyramid_tnt import SIDE, STRIDE, PyramidTNT
from vitrail.models.t2t_vit import T2TViT
from vitrail.models.tnt import TNT
from vitrail.models.twins import Twins

Maps = Mapping[str, Tensor]
"""Maps (b, h, w) by what their places are, such as sentences and words; the finest is the last."""
SPLITS = ((2, 3, 2), (4, 3, 2), (8, 7, 4))
"""Of T2T-ViT's soft splits from the last to the first: how many times finer than the tokens what it
splits is, the side of its neighbourhoods, and its stride."""


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode meanwhile, without dropout."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def roll_out(model: VisionModel, images: Tensor, classes: Classes) -> Maps:
    """Return attention rollout, which is the same for all classes; each map sums to at most 1.

    Args:
        model: A model of one of our families.
        images: Normalised images (b, c, h, w).
        classes: Of which class of each image the map is asked for, though it is the same for all.

    Raises:
        ConfigError: The model's attention is not known.
    """
    with torch.no_grad():
        return _carry(_Pass.of(model, images, classes, is_rollout=True))


def weigh_by_gradient(model: VisionModel, images: Tensor, classes: Classes) -> Maps:
    """Return gradient-weighted attention: how much of a class's logit each place brought about, never below 0.

    Args:
        model: A model of one of our families.
        images: Normalised images (b, c, h, w).
        classes: The class for each image.

    Raises:
        ConfigError: The model's attention is not known.
    """
    with torch.enable_grad():
        passed = _Pass.of(model, images.detach().requires_grad_(), classes, is_rollout=False)
    with torch.no_grad():
        return _carry(passed)


@dataclass(frozen=True)
class _Pass:
    """One pass of a model: its attention, what is folded, and gradients where they are wanted."""

    model: VisionModel
    size: tuple[int, int]
    """Height and width of the images."""
    count: int
    recorded: Sequence[Recorded]
    weights: Sequence[Tensor]
    """Of each attention, the shares averaged over heads, or what is positive of their product with
    the gradient (b, q, m)."""
    folded: Sequence[Tensor]
    """For rollout, the length of what each word adds to its sentence, in the stem and in each block
    of a TNT (b, n, p)."""
    added: Tensor | None
    """What each pixel adds to the logit beyond the mean colour (b, h, w); None for rollout."""

    @property
    def is_rollout(self) -> bool:
        """Whether there are no gradients."""
        return self.added is None

    @classmethod
    def of(cls, model: VisionModel, images: Tensor, classes: Classes, *, is_rollout: bool) -> _Pass:
        require_attention(model)
        inputs: list[Tensor] = []
        folds = _folds_of(model) if is_rollout else []

        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs.append(args[0])

        handles = [fold.register_forward_pre_hook(keep) for fold in folds]
        try:
            with in_evaluation(model), record_attention(model) as recorded:
                logits = model(images)
        finally:
            for handle in handles:
                handle.remove()
        size = (images.shape[2], images.shape[3])
        chosen = settle_classes(classes, logits)
        if is_rollout:
            weights = [one.shares.mean(dim=1) for one in recorded]
            folded = []
            for fold, x in zip(folds, inputs, strict=True):
                folded.append(_measure(fold, x, _words(model)))
            return cls(model, size, len(images), recorded, weights, folded, None)
        score = to_evidence(logits).gather(1, chosen[:, None]).sum()
        outputs = [one.output for one in recorded]
        *gradients, of_pixels = torch.autograd.grad(
            score, [*outputs, images], materialize_grads=True
        )
        weights = []
        for one, gradient in zip(recorded, gradients, strict=True):
            # in place, as those of T2T-ViT's first split are of 3,136 queries and as many keys
            weights.append(one.gradient(gradient).mul_(one.shares).clamp_(min=0).mean(dim=1))
        beyond = images - images.mean(dim=(2, 3), keepdim=True)
        added = (beyond * of_pixels).detach().sum(dim=1)
        return cls(model, size, len(images), recorded, weights, (), added)

    def places(self, *levels: Level) -> list[int]:
        """Return the places of the attention of some levels, from the last to the first."""
        chosen = [place for place, one in enumerate(self.recorded) if one.level in levels]
        return chosen[::-1]

    def join(self, kept: Tensor, given: Tensor) -> Tensor:
        """Return the relevance of the tokens before an attention, from what they keep and what queries give them."""
        return (kept + given) / 2 if self.is_rollout else kept + given

    def go_through(self, relevance: Tensor, place: int) -> Tensor:
        """Carry the relevance (b, n) of tokens through an attention among them."""
        return self.join(relevance, _give(relevance, self.weights[place]))


def _carry(passed: _Pass) -> Maps:
    if isinstance(passed.model, TNT):
        return _carry_tnt(passed, passed.model)
    if isinstance(passed.model, T2TViT):
        return _carry_t2t(passed, passed.model)
    if isinstance(passed.model, Twins):
        return _carry_twins(passed, passed.model)
    assert isinstance(passed.model, PyramidTNT)
    return _carry_pyramid(passed, passed.model)


def _give(relevance: Tensor, weights: Tensor) -> Tensor:
    """Return what the keys (b, m) get of the relevance of the queries (b, q)."""
    return (relevance[:, None] @ weights)[:, 0]


def _begin_at_class_token(passed: _Pass, level: Level) -> Tensor:
    """Return the relevance (b, n) of all tokens but the class token, where that begins with all of it."""
    places = passed.places(level)
    tokens = passed.weights[places[0]].shape[-1]
    relevance = passed.weights[0].new_zeros(passed.count, tokens)
    relevance[:, 0] = 1
    for place in places:
        relevance = passed.go_through(relevance, place)
    return relevance[:, 1:]


def _carry_tnt(passed: _Pass, model: TNT) -> Maps:
    sentences = _begin_at_class_token(passed, "sentence")  # (b, n)
    weights = _weigh_by_length(passed) if passed.added is None else _cut_words(passed.added, model)
    words = divide(sentences, weights.reshape(*sentences.shape, -1))  # (b, n, p)

    (rows, columns), side = model.config.grid, model.config.words
    grid = words.reshape(-1, rows, columns, side, side).transpose(2, 3)
    return {
        "sentences": to_grid(sentences, model.config.grid),
        "words": grid.reshape(-1, rows * side, columns * side),
    }


def _weigh_by_length(passed: _Pass) -> Tensor:
    """Return the weights of the words in their sentences (bn, p) for rollout."""
    words = torch.zeros_like(passed.folded[0]).flatten(0, 1)  # (bn, p)
    blocks = zip(passed.places("word"), passed.folded[:0:-1], strict=True)
    for place, folded in blocks:
        words = passed.go_through(words + folded.flatten(0, 1), place)
    return words + passed.folded[0].flatten(0, 1)


def _cut_words(added: Tensor, model: TNT) -> Tensor:
    """Return what is positive of what the pixels of each word add (b, n, p)."""
    (rows, columns), side, stride = model.config.grid, model.config.words, model.config.inner_stride
    cells = added.unflatten(2, (columns, side, stride)).unflatten(1, (rows, side, stride))
    of_words = cells.sum(dim=(3, 6)).transpose(2, 3)  # (b, rows, columns, side, side)
    return of_words.reshape(len(added), rows * columns, side**2).clamp(min=0)


def _carry_t2t(passed: _Pass, model: T2TViT) -> Maps:
    tokens = _begin_at_class_token(passed, "token")
    rows, columns = model.config.grid
    relevance = tokens
    places = iter(passed.places("split"))
    for factor, side, stride in SPLITS[:2]:
        relevance = spread_split(relevance, (rows * factor, columns * factor), side, stride)
        relevance = passed.go_through(relevance, next(places))
    _, side, stride = SPLITS[2]
    pixels = to_grid(spread_split(relevance, passed.size, side, stride), passed.size)
    if passed.added is not None:
        pixels = share_cells(pixels, passed.added.clamp(min=0), passed.size[0] // rows)
    return {"tokens": to_grid(tokens, model.config.grid), "pixels": pixels}


def _carry_twins(passed: _Pass, model: Twins) -> Maps:
    sizes = [passed.size]
    for side in model.config.patch_sizes:
        sizes.append((sizes[-1][0] // side, sizes[-1][1] // side))
    patch, *sides = model.config.patch_sizes

    def spread(relevance: Tensor, stage: int) -> Tensor:
        return spread_cells(relevance, sizes[stage + 1], sides[stage])

    maps = _carry_stages(passed, "blocks", model.config.sr_ratios, sizes[1:], spread)
    tokens = maps.pop("stage-1")
    if passed.added is not None:
        added = avg_pool2d(passed.added[:, None], patch)[:, 0]
        tokens = share_cells(tokens, added.clamp(min=0), math.prod(sides))
    return {**maps, "tokens": tokens}


def _carry_pyramid(passed: _Pass, model: PyramidTNT) -> Maps:
    sizes = model.config.grids(passed.size)

    def spread(relevance: Tensor, stage: int) -> Tensor:
        return spread_merged(relevance, sizes[stage])

    maps = _carry_stages(passed, "stages", model.config.sr_ratios, sizes, spread)
    sentences = maps.pop("stage-1")
    if passed.added is None:
        return {**maps, "sentences": sentences}
    rows, columns = sizes[0]
    even = spread_cells(sentences.flatten(1), (rows * SIDE, columns * SIDE), SIDE)
    added = avg_pool2d(passed.added[:, None], STRIDE // SIDE)[:, 0].clamp(min=0)
    cell = SIDE * 2 ** (len(sizes) - 1)
    words = share_cells(to_grid(even, (rows * SIDE, columns * SIDE)), added, cell)
    sentences = avg_pool2d(words[:, None], SIDE, divisor_override=1)[:, 0]
    return {**maps, "sentences": sentences, "words": words}


def _carry_stages(
    passed: _Pass,
    stages: str,
    ratios: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    spread: Callable[[Tensor, int], Tensor],
) -> dict[str, Tensor]:
    """Return a map for each stage, the last first, where relevance begins evenly on the last tokens.

    Args:
        passed: The pass of a model of several stages.
        stages: Name of the modules that hold the stages.
        ratios: Side of the cells that the attention of each stage reduces its map by.
        sizes: Height and width of each stage's map.
        spread: Carries the relevance of the next stage's tokens to those of a stage, by its index.
    """
    height, width = sizes[-1]
    relevance = passed.weights[0].new_full((passed.count, height * width), 1 / (height * width))
    kept = relevance
    places = passed.places("window", "reduced", "sentence")
    maps = {}
    for stage in reversed(range(len(sizes))):
        for place in places:
            if passed.recorded[place].name.startswith(f"{stages}.{stage}."):
                given = _give_on_map(passed, place, relevance, ratios[stage])
                relevance = passed.join(relevance, given)
        # what never went through attention is even everywhere
        tokens = relevance if passed.is_rollout else relevance - kept
        maps[f"stage-{stage + 1}"] = to_grid(tokens, sizes[stage])
        if stage:
            relevance, kept = spread(relevance, stage - 1), spread(kept, stage - 1)
    return maps


def _give_on_map(passed: _Pass, place: int, relevance: Tensor, cell: int) -> Tensor:
    """Return what tokens get as keys of an attention in windows, or as cells of a reduced map."""
    one, weights = passed.recorded[place], passed.weights[place]
    if one.windows is not None:
        given = _give(cut_windows(relevance, one.windows), weights)
        return join_windows(given, one.windows)
    assert one.grid is not None
    return spread_cells(_give(relevance, weights), one.grid, cell)


def _folds_of(model: VisionModel) -> list[nn.Module]:
    """Return the layers that fold words into sentences: that of the stem, then those of the blocks."""
    if not isinstance(model, TNT):
        return []
    return [
        model.proj,
        *(model.get_submodule(f"blocks.{i}.proj") for i in range(model.config.depth)),
    ]


def _words(model: VisionModel) -> int:
    assert isinstance(model, TNT)
    return model.config.words**2


def _measure(fold: nn.Module, folded: Tensor, words: int) -> Tensor:
    """Return the length of what each word adds to its sentence, as a share of all words' (b, n, p)."""
    assert isinstance(fold, nn.Linear)
    weight = fold.weight.unflatten(1, (words, -1))
    lengths = torch.einsum("bnpe,dpe->bnpd", folded.unflatten(2, (words, -1)), weight).norm(dim=3)
    return divide(lengths.new_ones(lengths.shape[:2]), lengths)
