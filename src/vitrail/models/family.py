"""A family of models: its configuration, named variants and published facts, and the methods of every model."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from itertools import chain
from numbers import Integral, Real
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.errors import shorten
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.kernels.linear import Linear
from vitrail.models.dialects import Dialect

Pooling = Literal["head", "cls", "mean", "max"]
"""How the tokens of an image become one vector: as the head reads them, the class token, or over
the map."""
MAX_SIDE = 4096
"""Pixels of height or width that a model takes: one such image, normalised, is 200 MB."""
MAX_CHANNELS = 1000
MAX_BLOCKS = 1000
"""Blocks, or entries of a tuple such as `depths`; the deepest published model has 24."""
MAX_WHOLE = 2**31 - 1
"""Upper bound of a number of channels, heads or classes."""
BLOCK = re.compile(r"blocks(\.\d+)+|stages\.\d+(\.blocks\.\d+)?")
"""Names of the blocks of this package's own families, and of their stages."""
MAX_REAL = 1e6
"""Upper bound of a ratio or epsilon."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The configuration that all models share; a family adds its own sizes."""

    image_size: int | tuple[int, int] = 224
    """Pixels; one number for a square, or (height, width)."""
    in_channels: int = 3
    num_classes: int = 1000
    """0 builds the model without a head."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block; earlier blocks grow linearly towards it."""
    drop_rate: float = 0.0
    """Dropout rate of the tokens that enter the blocks, behind an attention, and behind both layers
    of an MLP."""

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int | str):
            object.__setattr__(self, "image_size", tuple(self.image_size))
        if problems := check_numbers(self) or self.problems():
            raise ValueError("; ".join(problems))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (
            (self.image_size, self.image_size)
            if isinstance(self.image_size, int)
            else self.image_size
        )

    @property
    def head_bias(self) -> bool:
        """Whether the head has a bias."""
        return True

    def has_option(self, name: str) -> bool:
        """Say whether a model of this kind may have a setting of that name."""
        return name in {setting.name for setting in fields(self)}

    def list_options(self) -> dict[str, Any]:
        """Return each setting by the name that `with_options` takes."""
        return asdict(self)

    def with_options(self, **options: Any) -> ModelConfig:
        """Return this configuration with some of its settings changed."""
        return replace(self, **options)

    def problems(self) -> list[str]:
        """Say what is wrong with this configuration, each as one clause."""
        problems = []
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            problems.append(
                f"image_size has {len(self.image_size)} numbers; give one, or height and width"
            )
        elif min(self.size) < 1:
            problems.append(f"image_size is {self.image_size}; it must be positive")
        elif max(self.size) > MAX_SIDE:
            problems.append(
                f"image_size is {self.image_size}; it must be at most {MAX_SIDE} pixels a side"
            )
        if not 1 <= self.in_channels <= MAX_CHANNELS:
            problems.append(f"in_channels is {self.in_channels}; it must be 1 to {MAX_CHANNELS}")
        if self.num_classes < 0:
            problems.append(
                f"num_classes is {self.num_classes}; it must be at least 1, or 0 for no head"
            )
        for name in ("drop_path_rate", "drop_rate"):
            if not 0 <= (rate := getattr(self, name)) < 1:
                problems.append(f"{name} is {rate}; it must be from 0 to below 1")
        return problems


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelConfig):
    """What the configurations of this package's own families share beside that: how GELU and norms are computed."""

    gelu: Literal["erf", "tanh"] = "erf"
    """`tanh` is MindSpore's default and what weights trained there expect."""
    norm_eps: float = 1e-5
    final_norm_eps: float | None = None
    """Epsilon of the norm before the head; None means norm_eps."""
    dynamic_image_size: bool = False
    """Take images of any size, for dense tasks: padded right and bottom with zeros to whole
    patches, tables of positions resized, maps cut back to the image."""

    @property
    def multiple(self) -> int:
        """Pixels that the sides of images are padded to a multiple of."""
        return 1

    @property
    def head_norm_eps(self) -> float:
        """Epsilon of the norm before the head."""
        return self.norm_eps if self.final_norm_eps is None else self.final_norm_eps

    def problems(self) -> list[str]:
        """Say what is wrong with this configuration, each as one clause."""
        problems = super().problems()
        if self.gelu not in ("erf", "tanh"):
            problems.append(f"gelu is {shorten(self.gelu)}; it must be 'erf' or 'tanh'")
        if self.norm_eps <= 0 or (self.final_norm_eps is not None and self.final_norm_eps <= 0):
            problems.append("norm_eps and final_norm_eps must be positive")
        return problems


def check_numbers(config: ModelConfig) -> list[str]:
    """Say which fields, or entries of tuples, are not numbers as their defaults are, or beyond all reason."""
    problems = []
    for setting in fields(config):
        name, value, default = setting.name, getattr(config, setting.name), setting.default
        first = default[0] if isinstance(default, tuple) else default
        entries = value if isinstance(value, tuple) else (value,)
        if isinstance(default, bool):
            if not isinstance(value, bool):
                problems.append(f"{name} is {shorten(value)}; it must be true or false")
            continue
        if isinstance(first, str) or value is None or default is MISSING:
            continue
        if isinstance(first, int):
            if any(isinstance(n, bool) or not isinstance(n, Integral) for n in entries):
                problems.append(f"{name} is {shorten(value)}; it takes whole numbers")
            elif any(abs(n) > MAX_WHOLE for n in entries):
                problems.append(f"{name} is {shorten(value)}; it must be at most {MAX_WHOLE:,}")
        elif any(isinstance(n, bool) or not isinstance(n, Real) for n in entries):
            raise TypeError(f"{name} is {shorten(value)}; it takes numbers")
        elif not all(abs(n) <= MAX_REAL for n in entries):  # NaN is not
            problems.append(
                f"{name} is {shorten(value)}; it must be a number of at most {MAX_REAL:,.0f}"
            )
        if len(entries) > MAX_BLOCKS:
            problems.append(f"{name} has {len(entries):,} entries; it may have {MAX_BLOCKS:,}")
    return problems


def check_depth(name: str, depth: int) -> list[str]:
    """Say so when a model has more blocks than any should."""
    if depth <= MAX_BLOCKS:
        return []
    return [f"{name} is {depth:,} blocks; it must be at most {MAX_BLOCKS:,}"]


def check_heads(dim_name: str, dim: int, heads_name: str, heads: int) -> list[str]:
    """Say so when `heads` does not divide `dim`."""
    if heads > 0 and dim > 0 and dim % heads == 0:
        return []
    return [f"{dim_name} {dim} cannot be split over {heads_name} {heads}"]


def check_multiple(size: tuple[int, int], multiple: int) -> list[str]:
    """Say so, with the nearest sizes, when height or width is not a positive multiple of `multiple`."""
    if all(n > 0 and n % multiple == 0 for n in size):
        return []
    below = tuple(max(n // multiple, 1) * multiple for n in size)
    above = tuple(max(-(-n // multiple), 1) * multiple for n in size)
    nearest = " or ".join(f"{h}x{w}" for h, w in dict.fromkeys((below, above)))
    return [
        f"image_size {size[0]}x{size[1]} is not a multiple of {multiple}; the nearest sizes are "
        f"{nearest}"
    ]


C = TypeVar("C", bound=ModelConfig)


@dataclass(frozen=True, kw_only=True)
class Variant(Generic[C]):
    """One named model and the facts published about it."""

    config: C
    params: int | None = None
    """All parameters, frozen ones included, as the official code counts with 1000 classes; None
    where nobody wrote it down."""
    trainable: int | None = None
    macs: int | None = None
    """Multiply-adds of one image of its own size: convolutions, linear layers and attention
    products, as torch counts them."""
    top1: float | None = None
    """ImageNet-1k validation accuracy in percent, as published; None where nothing was
    published."""
    top5: float | None = None
    source: str = ""
    """Publication or project that the accuracy is from."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: float = 0.9
    """Evaluation resizes the short side to image_size / crop, then cuts the centre."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["crop", "squash", "letterbox"] = "crop"
    """How an image comes to the network's size."""
    weights: str = ""
    """Where weights of it lie, as hf-hub:OWNER/NAME or an address, of a model that the catalogue of
    published weights does not have; empty for none."""


Grid = tuple[int, int]
"""Rows and columns."""
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of weights by their official names."""


def count_classes(shapes: Shapes) -> int:
    """Return how many classes weights are for; 0 where they have no head."""
    return shapes["head.weight"][0] if "head.weight" in shapes else 0


def count_numbers(shapes: Shapes, pattern: str) -> int:
    """Return how many different numbers stand in names where a pattern has its group."""
    matches = [re.match(pattern, name) for name in shapes]
    return len({match[1] for match in matches if match})


def _read_classes(shapes: Shapes) -> dict[str, Any]:
    return {"num_classes": count_classes(shapes)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Family(Generic[C]):
    """Everything the toolkit needs to know about one architecture; nothing else of it knows a family by its name."""

    name: str
    title: str = ""
    """Name of the family in messages; empty for `name`."""
    paper: str
    code: str
    model: Callable[[C], VisionModel[C]]
    variants: Mapping[str, Variant[C]]
    tiny: Mapping[str, Any]
    """Overrides that shrink any variant to something that runs in milliseconds, for tests and
    trials."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Our names of models, by the names that other projects use."""
    dialects: tuple[Dialect, ...] = (Dialect(name="official"),)
    """How projects name the weights and what they compute with them, the official code's first."""
    implied: Callable[[Shapes], dict[str, Any]] = _read_classes
    """Read fields of the configuration from the shapes of weights: `num_classes`, `in_channels`
    where it is told, and `positions`, the rows of a table without those of extra tokens. A KeyError
    says that they are of another family."""
    by_order: Callable[[Mapping[str, Tensor]], Mapping[str, str]] | None = None
    """Match names in a file that no dialect has to names of one that has, by order and shapes; none
    for other files."""
    by_entry: Mapping[tuple[str, int], Mapping[str, Any]] = field(default_factory=dict)
    """How images were read for weights of so many classes that stand in a certain entry of a
    training file."""
    channels: Mapping[str, Literal["summed", "averaged"]] = field(default_factory=dict)
    """Weights that change with the channels of images: layers that sum over all channels, side by
    side in the second dimension, and norms over them, in the first. The first one named is the
    layer that reads images. Without any, a model is not adapted to other channels."""
    positions: tuple[str, ...] = ()
    """Tables of positions (1, extra tokens and then the grid, d), resized to other image sizes."""
    paired_positions: Callable[[C], Mapping[str, tuple[Grid, Grid]]] | None = None
    """Tables (1, heads, n, m) of a number for each pair of positions of two grids, with both grids,
    resized to other image sizes."""
    fixed_positions: Callable[[int, int], Tensor] | None = None
    """Compute a table of positions from its numbers of rows and channels, where it is not
    trained."""
    unread: tuple[str, ...] = ()
    """Parameters that nothing reads, kept for the official code's files; a model without a head has
    none of them."""
    additions: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration, with values, that add weights to a model which compute nothing
    while they are 0."""
    head: tuple[str, ...] = ("head",)
    """The layers that give the logits, each with a row of its weight for each class."""
    fresh_head: Callable[[C], dict[str, Tensor]] | None = None
    """Make the weights of a new head, where it is another than a linear layer behind `norm`."""
    refit: Callable[[Mapping[str, Tensor], C], dict[str, Tensor]] | None = None
    """Bring weights to the image size of a configuration, where `positions` does not say it all."""
    has_hidden_buffers: bool = False
    """Whether the model has values that no file holds, so that it cannot be built without memory
    for its weights."""
    kernels: tuple[str, ...] = ()
    """Operators that its networks have a faster body for than PyTorch's layers."""
    library_name: str = ""
    """What a library calls the model, where it is not one of this package."""
    library_arguments: Callable[[C], dict[str, Any]] = lambda config: {}
    """What the library has to be told for a configuration, beside the number of classes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name)

    @property
    def projects(self) -> tuple[str, ...]:
        """The projects whose names for the weights are known, the official code's first."""
        return tuple(dict.fromkeys(chain.from_iterable(one.projects for one in self.dialects)))


@dataclass(frozen=True, kw_only=True)
class Library:
    """Models of another package, each with a family of its own that is made when it is asked for."""

    prefix: str
    """What stands before the package's name of a model, such as `timm:`."""
    find: Callable[[str], Family[Any] | None]
    """Return the family of a model by its whole name; None where there is none."""
    list_names: Callable[[], list[str]]
    """Return the whole names of all models."""


@dataclass(frozen=True)
class FeatureLevel:
    """One map that `forward_intermediates` can return."""

    num_channels: int
    reduction: int
    """Pixels of the image to one pixel of the map, along each side."""
    module: str
    """Name of the module after which the map is taken."""


class VisionModel(nn.Module, ABC, Generic[C]):
    """The methods of every model. Families differ in `embed`, in their blocks and in how tokens are pooled."""

    config: C
    num_features: int
    """Channels that enter the head."""
    feature_levels: tuple[FeatureLevel, ...]
    num_layers: int
    """The largest value of `layer_of`."""
    num_class_tokens: int = 0
    """Tokens that stand before those of the map, such as a class token."""
    norm: nn.Module
    """The final norm, before the head."""
    head: nn.Module
    head_names: tuple[str, ...] = ("head",)
    """Names of the layers that give the logits."""
    embedding: str = ""
    """Name of the module that makes the first tokens of an image; empty where nothing is known of
    it."""
    in_float: tuple[type[nn.Module], ...] = ()
    """Kinds of modules whose layers are not computed in 8 bits."""
    grad_checkpointing: bool = False
    classes: tuple[str, ...] = ()
    """Names of the logits, of loaded weights that have them."""
    thresholds: tuple[float, ...] | None = None
    """Sigmoid of each logit from which its class is an answer, of loaded multi-label weights."""
    preprocess: Callable[..., Tensor] | None = None
    """Turn a path, bytes or image into an input (c, h, w), of loaded weights that say how."""

    @abstractmethod
    def levels(
        self, images: Float[Tensor, "b c h w"]
    ) -> Iterator[tuple[Float[Tensor, "b n d"], tuple[int, int]]]:
        """Yield what leaves each of `feature_levels`: extra tokens, then those of a map; and its height and width."""

    @abstractmethod
    def pool(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Reduce tokens to what enters the head."""

    @abstractmethod
    def no_weight_decay(self) -> set[str]:
        """Return the parameters, other than biases and one-dimensional ones, that the paper exempts from decay."""

    @abstractmethod
    def layer_of(self, parameter_name: str) -> int:
        """Return the depth of a parameter: 0 for the stem, `num_layers` for the final norm and head."""

    def get_classifier(self) -> nn.Module:
        """Return the layer that gives the logits."""
        return self.head

    def is_of_head(self, parameter_name: str) -> bool:
        """Say whether a parameter is one of a layer that gives the logits."""
        return parameter_name.startswith(tuple(f"{name}." for name in self.head_names))

    def map_size(self, level: int) -> tuple[int, int]:
        """Return height and width of a level's map, for images of the size that the model was built for."""
        reduction = self.feature_levels[level].reduction
        height, width = self.config.size
        return height // reduction, width // reduction

    def parts(self) -> list[str]:
        """Return the names of the parts that a layer begins with: blocks in their order, then the norm."""
        blocks = [name for name, _ in self.named_modules() if BLOCK.fullmatch(name)]
        return [*blocks, "norm"]

    def count_vector(self, level: int, pooling: Pooling) -> int:
        """Return how many numbers `forward_vectors` gives an image."""
        return self.feature_levels[level].num_channels

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return the tokens after the final norm (class token first, where there is one)."""
        return self.forward_maps(images, [])[0]

    def forward_intermediates(
        self,
        images: Float[Tensor, "b c h w"],
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Return feature maps (NCHW), one for each chosen level of `feature_levels`, and compute nothing behind them.

        Args:
            images: Normalised images.
            indices: Levels to return, always in the order of `feature_levels`; negative ones count
                from the end, a single number n means the last n, None means all.
            norm: Apply the final norm to every map; in a pyramid, to the last one.
        """
        return self.forward_maps(images, indices, norm=norm, stop_early=True)[1]

    def forward_maps(
        self,
        images: Float[Tensor, "b c h w"],
        indices: int | Sequence[int] | None,
        *,
        norm: bool = False,
        stop_early: bool = False,
    ) -> tuple[
        Float[Tensor, "b n d"], list[Float[Tensor, "b _ _ _"]], list[Float[Tensor, "b _ _"]]
    ]:
        """Return the tokens after the final norm, the chosen maps, and what stands before each, of one pass.

        Before a map stands the class token, where a model has one.

        Args:
            images: Normalised images.
            indices: Levels to return, given as for `forward_intermediates`.
            norm: Apply the final norm to every map, or in a pyramid to the last one.
            stop_early: Compute nothing behind the last chosen level, and return its tokens.
        """
        chosen = self.level_indices(indices)
        maps, prefixes = [], []
        tokens = images
        for index, (tokens, (height, width)) in enumerate(self.levels(images)):
            if index in chosen:
                level_tokens = self.normalised(tokens, index) if norm else tokens
                one = to_map(level_tokens[:, -height * width :], height, width)
                maps.append(self._without_padding(one, index, images))
                prefixes.append(level_tokens[:, : -height * width])
            if stop_early and index >= max(chosen, default=0):
                return self.normalised(tokens, index), maps, prefixes
        return self.norm(tokens), maps, prefixes

    def _without_padding(self, one: Tensor, index: int, images: Tensor) -> Tensor:
        """Return the part of a level's map that the images cover, where they were padded to whole patches."""
        reduction = self.feature_levels[index].reduction
        rows, columns = (-(-side // reduction) for side in images.shape[-2:])
        is_padded = one.shape[2] > rows or one.shape[3] > columns
        return one[:, :, :rows, :columns] if is_padded else one

    def normalised(self, tokens: Float[Tensor, "b n d"], index: int) -> Float[Tensor, "b n d"]:
        """Return tokens of a level after the final norm, which in a pyramid is for the last level alone."""
        level, last = self.feature_levels[index], self.feature_levels[-1]
        return self.norm(tokens) if level.reduction == last.reduction else tokens

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The ways in which `forward_vectors` makes one vector of an image's tokens."""
        of_map: tuple[Pooling, ...] = ("head", "mean", "max")
        return (*of_map, "cls") if self.num_class_tokens else of_map

    def forward_vectors(
        self, images: Float[Tensor, "b c h w"], level: int = -1, pooling: Pooling = "head"
    ) -> Float[Tensor, "b d"]:
        """Return one vector an image from a level, after the final norm, and compute nothing behind that level.

        In a pyramid the final norm is for the last level alone.

        Args:
            images: Normalised images.
            level: Index in `feature_levels`; a negative one counts from the end.
            pooling: What is made of the tokens: `head` is what the head reads, `cls` the class
                token, `mean` and `max` are over the map.

        Raises:
            ValueError: There is no such level, or no class token.
        """
        if pooling not in self.poolings:
            raise ValueError(f"pooling is {pooling!r}; this model has {', '.join(self.poolings)}")
        (index,) = self.level_indices([level])
        tokens, _, _ = self.forward_maps(images, [index], stop_early=True)
        if pooling == "head":
            return self.pool(tokens)
        if pooling == "cls":
            return tokens[:, 0]
        of_map = tokens[:, self.num_class_tokens :]
        return of_map.mean(dim=1) if pooling == "mean" else of_map.amax(dim=1)

    def forward_head(
        self, tokens: Float[Tensor, "b n d"], pre_logits: bool = False
    ) -> Float[Tensor, "b k"]:
        """Return logits (b, num_classes), or with `pre_logits` the features that enter the head (b, d)."""
        features = self.pool(tokens)
        return features if pre_logits else self.head(features)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return logits (b, num_classes)."""
        return self.forward_head(self.forward_features(images))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a freshly initialised one, for classes without names; 0 classes removes it."""
        self.classes, self.thresholds = (), None
        parameter = next(self.parameters())
        self.config = replace(self.config, num_classes=num_classes)
        head = build_head(self.num_features, num_classes, self.config.head_bias)
        self.head = head.to(device=parameter.device, dtype=parameter.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def run(self, block: nn.Module, *args: Any) -> Any:
        """Call a block, through a checkpoint when one is asked for."""
        if self.grad_checkpointing and torch.is_grad_enabled() and self.training:
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def level_indices(self, indices: int | Sequence[int] | None) -> set[int]:
        """Resolve the `indices` of `forward_intermediates`."""
        n = len(self.feature_levels)
        if indices is None:
            return set(range(n))
        if isinstance(indices, int):
            if not 1 <= indices <= n:
                raise ValueError(
                    f"indices is {indices}; as a single number it means the last ones, from 1 to "
                    f"all {n}"
                )
            return set(range(n - indices, n))
        if outside := [i for i in indices if i not in range(-n, n)]:
            raise ValueError(
                f"indices has {outside}; this model has levels 0 to {n - 1}, or {-n} to -1 from "
                "the end"
            )
        return {i % n for i in indices}


def build_head(num_features: int, num_classes: int, bias: bool = True) -> nn.Module:
    """Build a classifier, initialised as all three papers do."""
    if num_classes == 0:
        return nn.Identity()
    head = Linear(num_features, num_classes, bias=bias)
    init_linear(head)
    return head


def init_linear(module: nn.Module) -> None:
    """Initialise a Linear or LayerNorm as all three papers do; leave anything else alone."""
    if isinstance(module, nn.Linear):
        # cut at +-2 absolute, so in effect a plain normal
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def to_map(tokens: Float[Tensor, "b n d"], height: int, width: int) -> Float[Tensor, "b d h w"]:
    """Lay tokens, row by row, out as a map."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, height, width)


def block_index(parameter_name: str) -> int | None:
    """Return i of a name that starts with `blocks.i.`, else None."""
    match = re.match(r"blocks\.(\d+)\.", parameter_name)
    return int(match[1]) if match else None


def gelu(kind: Literal["erf", "tanh"]) -> nn.GELU:
    """Build the GELU, computed by erf or approximated by tanh."""
    return nn.GELU(approximate=cast(str, {"erf": "none", "tanh": "tanh"}[kind]))
