"""A model from any weight file that its users hold, with an account of every weight and the preprocessing it needs."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from vitrail.classes.matching import match_by_order, read_class_names
from vitrail.classes.names import canonical
from vitrail.config.commands import ConvertConfig, DescribedConfig
from vitrail.config.resolve import Layer, resolve
from vitrail.config.sections import PreprocessSection, WeightsSection
from vitrail.display import Display
from vitrail.errors import CheckpointError, ConfigError
from vitrail.imagenet import COUNT, wnids
from vitrail.images.pixels import describe_channels
from vitrail.images.preprocess import Preprocess, describe_normalisation, fit_statistics
from vitrail.models.family import ModelConfig, VisionModel
from vitrail.models.registry import FAMILIES, build_config, canonical_name, find_variant
from vitrail.weights.adapt import Positions, adapt, as_two_logits, shared_rows
from vitrail.weights.checkpoint import KEY, Record, build_model, check_fit, config_of, load_weights, parse_record
from vitrail.weights.digest import DIGESTS, check_weights
from vitrail.weights.formats.weight_file import WeightFile, open_weights
from vitrail.weights.image_config import read_images, read_labels
from vitrail.weights.recognise import FREE, Entry, Reading, translate
from vitrail.weights.subtree import Found, Subtree, find_weights

OURS = "vitrail"
MAX_BYTES = 4 * 2**30
"""Of the weights of one model; the largest here has 400 million."""
NUMERICS = ("gelu", "norm_eps", "final_norm_eps", "embed_norm_eps")
"""Fields of a model's configuration that change its output but no weight's shape."""
RATES = ("drop_path_rate", "drop_rate")
"""Fields of a model's configuration that matter in training only."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """What became of every weight of a file."""

    path: str
    dialect: str
    model: str
    entries: tuple[Entry, ...]
    numerics: Mapping[str, Any] = field(default_factory=dict)
    """GELU and epsilons that the weights expect, whatever is asked for."""
    notes: tuple[str, ...] = ()
    """What the file does not say itself, and what was taken."""
    doubts: tuple[str, ...] = ()
    """What may be wrong all the same."""

    def counts(self) -> dict[str, int]:
        """Return how many weights of ours, or of theirs where they have none here, fared alike."""
        found: Counter[str] = Counter()
        for entry in self.entries:
            found[entry.what] += len(entry.ours or entry.theirs)
        return dict(found)

    def summarised(self) -> list[tuple[str, int, list[str]]]:
        """Return what was done, to how many weights, and two examples, for each kind of deed."""
        rows = []
        for what, count in self.counts().items():
            of_kind = [entry for entry in self.entries if entry.what == what]
            shown = [entry for entry in of_kind if entry.note][:2] or of_kind[:2]
            rows.append((what, count, [str(entry) for entry in shown]))
        return rows

    def summary(self) -> str:
        """Return one line."""
        counted = ", ".join(f"{count} {what}" for what, count in self.counts().items())
        return f"{self.path}: {self.dialect} {self.model}, {counted}"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Weights by official names, and all that is known of them."""

    record: Record
    """Its classes are empty where the file names none."""
    weights: Mapping[str, Tensor]
    account: Account
    order_is_assumed: bool = False
    """Whether the names of the classes were given to the logits by their order alone."""

    def build(self, device: str | torch.device = "cpu") -> VisionModel:
        """Build the model, ready for inference."""
        with torch.device("meta"):
            model = build_model(self.record, self.account.path)
        load_weights(model, self.weights, self.account.path)
        model.classes, model.thresholds = self.record.classes, self.record.thresholds
        model.preprocess = self.record.preprocess
        return model.eval().to(device)


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a file of settings says of the model whose weights are read: taken where these leave it open."""

    origin: str
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How a file is to be read, where it leaves a choice."""

    dialect: str | None = None
    """Name of the project whose names it uses."""
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model's configuration: of a size that was never published, or for other images or channels."""
    entry: str | None = None
    """Where in the file the weights are: entries and prefixes, joined by dots."""
    average: bool = True
    """Take the moving average of the weights, where there is one."""
    partial: bool = False
    """Take a file that lacks weights, which are then fresh, or has others, which are then skipped."""
    positions: Positions = "resized"
    names: str | None = None
    """File that names the logits of a file without names."""
    classes: Sequence[str] | None = None
    """Names of the logits wanted; None leaves them as they are."""
    by_order: bool = False
    """Let the order of these decide which logit is whose, where the file names them otherwise."""
    two_logits: bool = True
    """Let the one logit of a binary classifier become two, for the softmax that everything else takes."""
    described: Described | None = None
    """What is wanted only so far as the weights do not contradict it."""

    @property
    def in_all(self) -> Wanted:
        """What is wanted, with what is described put below it."""
        if (described := self.described) is None:
            return self
        return replace(self, model=self.model or described.model, options={**described.options, **self.options})

    def __post_init__(self) -> None:
        if self.positions not in get_args(Positions):
            raise ConfigError(f"positions is {self.positions!r}; it must be one of {', '.join(get_args(Positions))}")
        if self.classes is not None:
            if isinstance(self.classes, str) or not all(isinstance(name, str) for name in self.classes):
                raise ConfigError("classes must be a list of names")
            if twice := [name for name, count in Counter(map(canonical, self.classes)).items() if count > 1]:
                raise ConfigError(f"classes has {twice[0]!r} twice; each name stands for one logit")


def wanted(section: WeightsSection, **given: Any) -> Wanted:
    """Return what the settings want of a file, with some of it given otherwise."""
    names = {"names" if name == "classes" else name: value for name, value in vars(section).items()}
    return Wanted(**{**names, **given})


def wanted_by(layers: Sequence[Layer]) -> Wanted:
    """Return how settings want a weight file, and what the model is by a file of settings among them."""
    only = [Layer(one.origin, {"weights": one.values["weights"]}) for one in layers if "weights" in one.values]
    asked = wanted(resolve(ConvertConfig, only).config.weights)
    described = None
    for layer in layers:
        if layer.model:
            model = resolve(DescribedConfig, [Layer(layer.origin, {"model": layer.model})]).config.model
            options = {**model.options, "image_size": model.image_size}
            options = {key: value for key, value in options.items() if value is not None and key not in asked.options}
            name = model.name if "name" in layer.model and asked.model is None else None
            described = Described(origin=layer.origin, model=name, options=options)
    return replace(asked, described=described)


def check_described(record: Record, asked: Wanted, path: str, *, exported: bool = False) -> None:
    """Refuse weights, or what was exported of them, of which a file of settings says something else than they do.

    Raises:
        ConfigError: It describes another model, or the same with another image size or arithmetic.
    """
    if (described := asked.described) is None:
        return
    if described.model is not None and canonical_name(described.model) != record.model:
        raise ConfigError(
            f"{described.origin}: is for {described.model}, and {path} holds a {record.model}; give the settings that "
            "it was made with, or leave them out"
        )
    source = config_of(record, path)
    stated = build_config(record.model, **{**asdict(source), **described.options})
    for name in described.options:
        there, here = (c.size if name == "image_size" else getattr(c, name) for c in (source, stated))
        if there != here:
            way = f"say which counts: weights.options.{name}={_shown(there)} or weights.options.{name}={_shown(here)}"
            if exported:
                way = f"export it again with weights.options.{name}={_shown(here)}, or leave the settings out"
            raise ConfigError(
                f"{described.origin}: has {name} {_shown(here)}, and {path} was made with {_shown(there)}; {way}"
            )


def _shown(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if isinstance(value, tuple):
        return str(value[0]) if len(set(value)) == 1 else f"[{','.join(map(str, value))}]"
    return str(value)


def tell(opened: Opened, display: Display) -> None:
    """Show what a file of another project was taken for, and what may be wrong with that."""
    if opened.account.dialect != OURS:
        display.note(opened.account.summary())
    for note in opened.account.notes:
        display.note(note)
    for doubt in opened.account.doubts:
        display.warn(doubt)


def override_preprocess(stored: Preprocess, wanted: PreprocessSection, display: Display) -> Preprocess:
    """Return the preprocessing of a file with explicit settings put over it, saying what they change."""
    changes = {
        name: value for name, value in vars(wanted).items() if value is not None and value != getattr(stored, name)
    }
    for name, value in changes.items():
        display.warn(
            f"preprocess.{name} is {value} instead of {getattr(stored, name)}, which the weights were validated with"
        )
    return replace(stored, **changes)


def open_model(path: Path | str, asked: Wanted | None = None) -> Opened:
    """Read the weights of a model, from a file of this or another project, and adapt them to what is wanted.

    Raises:
        CheckpointError: No such file, damaged, not understood or in two ways, or not all weights are accounted for.
        ConfigError: What is wanted is no model.
    """
    asked = asked or Wanted()
    file = open_weights(path)
    check_digest(file)
    is_ours = KEY in file.metadata
    if asked.dialect == OURS and not is_ours:
        raise CheckpointError(f"{file.path}: was not written by vitrail; leave weights.dialect out to find its dialect")
    if asked.entry is not None and is_ours:
        raise CheckpointError(f"{file.path}: was written by vitrail and holds one model; leave weights.entry out")
    opened = _open_ours(file, asked) if is_ours and asked.dialect in (None, OURS) else _open_theirs(file, asked)
    check_described(opened.record, asked, opened.account.path)
    return _adapted(_named(_widened(opened, asked), asked), asked)


def load_model(
    path: Path | str,
    device: str | torch.device = "cpu",
    *,
    dialect: str | None = None,
    model: str | None = None,
    entry: str | None = None,
    average: bool = True,
    partial: bool = False,
    positions: Positions = "resized",
    classes: Sequence[str] | None = None,
    **options: Any,
) -> VisionModel:
    """Load a model from any weight file, ready for inference.

    The model's `preprocess` turns a path, bytes or image into its input, and its `classes` name the logits:

        model = vitrail.load_model("runs/digits/best.safetensors")
        logits = model(model.preprocess("seven.png").unsqueeze(0))
        print(model.classes[logits.argmax()])

    A model that gives any number of classes has `thresholds`: an image has those whose sigmoid reaches theirs.

    Args:
        path: A file of vitrail, of the official projects, timm, mmpretrain or MindSpore; a folder of timm's, or
            `hf-hub:OWNER/NAME`.
        device: Where the model is wanted.
        dialect: Name of the project whose names the file uses, where two would fit.
        model: Name of the model, where the shapes fit two or are of no published one.
        entry: Where in the file the weights are, where that leaves a choice: an entry such as state_dict or ema.model,
            or what stands before their names, such as net.
        average: Take the moving average of the weights, where the file has one.
        partial: Take a file that lacks weights, which are then fresh, or has others, which are then skipped.
        positions: Of T2T-ViT at another image size: resized from the file's, or fresh for that size.
        classes: Names of the logits wanted; rows of the head are kept for those that the file has too, and all of them
            where the file names none and has as many.
        options: Fields of the model's configuration, such as image_size, in_channels or num_classes.

    Raises:
        CheckpointError: No such file, damaged, not understood or in two ways, or not all weights are accounted for.
        ConfigError: An unknown model or option.
    """
    opened = open_model(
        path,
        Wanted(
            dialect=dialect, model=model, options=options, entry=entry, average=average, partial=partial,
            positions=positions, classes=classes, two_logits=False,
        ),
    )  # fmt: skip
    for doubt in opened.account.doubts:
        warnings.warn(doubt, stacklevel=2)
    return opened.build(device)


def check_digest(file: WeightFile) -> bool:
    """Compare a file with the digest that it was written with, and say whether it has one.

    Raises:
        CheckpointError: It is damaged.
    """
    if not any(name in file.metadata for name in DIGESTS):
        return False
    file.check(file.tensors)
    size = sum(held.dtype.itemsize * math.prod(held.shape) for held in file.tensors.values())
    if size > MAX_BYTES:
        raise CheckpointError(f"{file.path}: holds {size:,} bytes of weights, and no model here has so many")
    return check_weights(file.path, {name: file.load(name) for name in file.tensors}, file.metadata, KEY)


def _open_ours(file: WeightFile, asked: Wanted) -> Opened:
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    record = parse_record(file.metadata, file.path, shapes)
    if asked.model and canonical_name(asked.model) != record.model:
        raise CheckpointError(f"{file.path}: is a {record.model}, not a {asked.model}")
    weights = file.read({name: name for name in file.tensors})
    entries = (Entry("loaded", tuple(weights), tuple(weights)),)
    found = numerics(config_of(record, file.path))
    account = Account(path=str(file.path), dialect=OURS, model=record.model, entries=entries, numerics=found)
    return Opened(record=record, weights=weights, account=account)


def _open_theirs(file: WeightFile, asked: Wanted) -> Opened:
    where, said = str(file.path), _said_numerics(file)
    described, asked = asked.described, asked.in_all
    model = canonical_name(asked.model) if asked.model else None
    there = find_weights(
        file, entry=asked.entry, average=asked.average, partial=asked.partial, dialect=asked.dialect, model=model,
        options={**said, **asked.options},
    )  # fmt: skip
    notes, doubts = [*there.notes], [*there.doubts]
    reading = _with_size(_choose(there.readings, file, asked), file, doubts)
    doubts += _other_model_said(file, reading)
    weights = file.read(there.tree.names)
    found = translate(weights, reading)
    doubts += [f"{where}: {doubt}" for doubt in reading.dialect.doubts]
    if not reading.is_whole:
        doubts.append(f"{where}: {len(reading.missing)} weights are missing and fresh, {len(reading.misfits)} skipped")
        fresh = find_variant(reading.model)[0].model(reading.config).state_dict()
        found = fresh | found
    if others := sorted(
        {str(weights[name].dtype) for link in reading.links for name in link.theirs} - {"torch.float32"}
    ):
        notes.append(f"{where}: holds {', '.join(others)}, which became torch.float32")
    if file.passed_over:
        notes.append(
            f"{where}: objects of {', '.join(file.passed_over[:3])}{', ...' * (len(file.passed_over) > 3)} are passed "
            "over or read as plain values; nothing of them is run"
        )
    preprocess, classes, told, unsure = _describe(file, reading, there.tree, is_named=asked.names is not None)
    record = Record(
        model=reading.model,
        options=asdict(reading.config),
        classes=classes,
        preprocess=preprocess,
        provenance={
            "converted_from": {"file": file.path.name, "dialect": reading.dialect.name, "entry": there.tree.entry}
        },
    )
    expected = numerics(find_variant(reading.model)[1].config, {**reading.dialect.options, **said})
    if described is not None:
        notes += [
            f"{where}: {name} is {value}, as {described.origin} has it; in {reading.dialect.name} files it is "
            f"{expected[name]}, which weights.options.{name}={expected[name]} takes"
            for name, value in described.options.items()
            if name in expected and value != expected[name]
        ]
    account = Account(
        path=where,
        dialect=reading.dialect.name,
        model=reading.model,
        entries=tuple(_entries(there, reading)),
        numerics=expected,
        notes=(*notes, *told, *(f"{where}: {note}" for note in reading.dialect.notes)),
        doubts=(*doubts, *unsure),
    )
    return Opened(record=record, weights=found, account=account)


def _choose(readings: list[Reading], file: WeightFile, asked: Wanted) -> Reading:
    """Return the only reading, or the one that the file itself names; two that fit are never guessed between."""
    first = readings[0]
    if not first.is_whole and not asked.partial:
        count, found = len(first.missing), len(first.misfits)
        listed = ", ".join(dict.fromkeys([*first.missing[:2], *first.misfits[:2]]))
        raise CheckpointError(
            f"{file.path}: does not fit the model: {count} weights missing, {found} unexpected or of another shape "
            f"({listed}); nearest is {first}. To take what fits, weights.partial=true; for another size, "
            "weights.options.NAME=VALUE"
        )
    said = _said_model(file)
    named = [reading for reading in readings if said in (reading.model, *_aliases(reading.model))]
    if len(named) == 1:
        return named[0]
    if not asked.model and _is_known(said):
        raise CheckpointError(
            f"{file.path}: says that it is {said}, and its weights are those of {' or '.join(map(str, readings))}; "
            f"weights.model={first.model} takes it for that"
        )
    if len(readings) == 1:
        return first
    models = sorted({reading.model for reading in readings})
    ways = " or ".join(map(str, readings))
    setting = f"weights.model={models[0]}" if len(models) > 1 else f"weights.dialect={first.dialect.name}"
    raise CheckpointError(f"{file.path}: fits {ways} equally; say which it is, such as {setting}")


def _said_model(file: WeightFile) -> str:
    """Return the model that a file, or config.json beside it, says it holds; empty where neither does."""
    said = str(file.config.get("architecture") or file.arch or "").lower().split(".")[0]
    bare = said.removeprefix("vitrail_")  # as `vitrail.timm` names those that timm has too
    return bare if _is_known(bare) else said


def _is_known(model: str) -> bool:
    return any(model in (*family.variants, *family.aliases) for family in FAMILIES)


def _other_model_said(file: WeightFile, reading: Reading) -> list[str]:
    """Say it where a file, or config.json beside it, calls its weights another model than they are read as.

    The options of a training script may call a model anything, so a name there that is unknown says nothing.
    """
    said, in_config = _said_model(file), bool(file.config.get("architecture"))
    if not said or said in (reading.model, *_aliases(reading.model)) or not (in_config or _is_known(said)):
        return []
    who = "its config.json says" if in_config else "says"
    which = said if _is_known(said) else f"{said[:60]}, which is no model here"
    return [f"{file.path}: {who} that it is {which}, and it is read as {reading.model}, which its weights fit"]


def _pretrained(file: WeightFile) -> Mapping[str, Any]:
    """Return what config.json says of the images, in timm's newer or older place."""
    said = file.config.get("pretrained_cfg", file.config)
    if not isinstance(said, Mapping):
        raise CheckpointError(f"{file.path}: the pretrained_cfg of its config.json is no mapping; use the original")
    return said


def _said_numerics(file: WeightFile) -> dict[str, Any]:
    """Return what config.json says that timm is to build the model with, where it is more than its weights tell."""
    said = file.config.get("model_args") or {}
    if not isinstance(said, Mapping):
        raise CheckpointError(f"{file.path}: the model_args of its config.json are no mapping; use the original")
    return {name: value for name, value in said.items() if name in NUMERICS}


def _with_size(reading: Reading, file: WeightFile, doubts: list[str]) -> Reading:
    """Take the image size from config.json, where the weights do not tell it."""
    size = _pretrained(file).get("input_size")
    if not isinstance(size, list) or len(size) != 3 or hasattr(reading.config, "grid"):
        return reading
    try:
        return replace(reading, config=replace(reading.config, image_size=tuple(size[1:])))
    except (TypeError, ValueError) as error:
        doubts.append(
            f"{file.path}: the input_size of its config.json cannot be ({error}); the model's own "
            f"{'x'.join(map(str, reading.config.size))} is taken, and weights.options.image_size sets another"
        )
        return reading


def _aliases(model: str) -> list[str]:
    return [alias for alias, name in find_variant(model)[0].aliases.items() if name == model]


def _describe(
    file: WeightFile, reading: Reading, tree: Subtree, *, is_named: bool
) -> tuple[Preprocess, tuple[str, ...], list[str], list[str]]:
    """Return how images were read and what the logits mean, by what the file says, or else by its dialect.

    Returns:
        The preprocessing, the names of the logits, what is to be said of both, and what may be wrong.
    """
    where, told = str(file.path), []
    (family, card), config = find_variant(reading.model), reading.config
    read: dict[str, Any] = {
        "crop": card.crop, "interpolation": card.interpolation, "mean": card.mean, "std": card.std,
        **reading.dialect.preprocess,
    }  # fmt: skip
    entry = tree.prefix.split(".")[0]
    if transfer := family.by_entry.get((entry, config.num_classes)):
        read |= transfer
        told.append(
            f"{where}: its entry {entry} is that of the official transfer to {config.num_classes} classes, so images "
            f"are read as there: {', '.join(f'{name} {value}' for name, value in transfer.items())}; preprocess.crop "
            "and its like change that"
        )
    said = _pretrained(file)
    if (channels := config.in_channels) != 3:
        read["channels"] = channels
        read["mean"], read["std"] = fit_statistics(channels, read["mean"], read["std"])
        if "mean" not in said or "std" not in said:
            told.append(_of_statistics(where, channels, read["mean"], read["std"]))
    images = read_images(said, read, channels)
    told += [f"{where}: its config.json {note}" for note in images.notes]
    unsure = [f"{where}: its config.json {doubt}" for doubt in images.doubts]
    preprocess = Preprocess.from_dict({**Preprocess(size=config.size).to_dict(), **read, **images.values})
    classes = config.num_classes
    labels = read_labels(file.config)
    names = tuple(canonical(str(label)) for label in labels or ())
    if names and len(names) == len(set(names)) == classes:
        return preprocess, names, told, unsure
    if labels is not None:
        told.append(f"{where}: the class names of its config.json are not {classes} different names, and left out")
    if is_named:
        return preprocess, (), told, unsure
    if classes == COUNT:
        told.append(f"{where}: its {classes} classes are taken for ImageNet's, in their usual order")
        return preprocess, wnids(), told, unsure
    if classes:
        told.append(f"{where}: names none of its {classes} classes; they go by number")
    return preprocess, (), told, unsure


def _of_statistics(where: str, channels: int, mean: Sequence[float], std: Sequence[float]) -> str:
    return (
        f"{where}: for {describe_channels(channels)}, {describe_normalisation(mean, std)}, which it does not say; "
        "preprocess.mean and preprocess.std change that"
    )


def _entries(there: Found, reading: Reading) -> list[Entry]:
    """Return one entry for each weight, by the names that stand in the file."""
    whole = there.tree.names

    def full(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(whole.get(name, name) for name in names)

    entries = []
    for link in reading.links:
        same = link.how.name == "renamed" and link.theirs == link.ours
        entries.append(Entry("loaded" if same else link.how.name, full(link.theirs), link.ours))
    entries += [Entry("zero-filled", ours=(name,), note="the project has none") for name in reading.zeros]
    entries += [Entry("new", ours=(name,), note="missing in the file") for name in reading.missing]
    entries += [Entry("skipped", theirs=full((name,)), note="not of the model") for name in reading.misfits]
    entries += [
        Entry("skipped", theirs=full((name,)), note=what) for name, what in {**reading.skipped, **there.skipped}.items()
    ]
    return entries


def _widened(opened: Opened, asked: Wanted) -> Opened:
    """Return a binary classifier of one logit as one of two."""
    record, path = opened.record, opened.account.path
    given = asked.options.get("num_classes")
    if not asked.two_logits or record.options["num_classes"] != 1 or record.thresholds is not None or given == 1:
        return opened
    with torch.device("meta"):
        check_fit(build_model(record, path).state_dict(), opened.weights, path)
    weights, entry = as_two_logits(opened.weights)
    note = (
        f"{path}: has one output z, so two classes: probabilities are the sigmoid of z for class 1 and the rest for "
        "class 0, which is the answer below 0.5"
    )
    account = replace(
        opened.account, entries=_merged(opened.account.entries, [entry]), notes=(*opened.account.notes, note)
    )
    record = replace(record, options={**record.options, "num_classes": 2}, classes=())
    return replace(opened, record=record, weights=weights, account=account)


def _named(opened: Opened, asked: Wanted) -> Opened:
    """Name the logits of a file that does not do so itself, by another file."""
    if asked.names is None:
        return opened
    record, path, names = opened.record, opened.account.path, read_class_names(asked.names)
    if len(names) != (count := record.options["num_classes"]):
        raise ConfigError(f"weights.classes {asked.names}: names {len(names)} classes, and {path} has {count} outputs")
    if record.classes and record.classes != names:
        index = next(i for i, pair in enumerate(zip(record.classes, names, strict=True)) if len({*pair}) > 1)
        raise ConfigError(
            f"weights.classes {asked.names}: {path} names its classes itself, and otherwise: index {index} is "
            f"{record.classes[index]} there and {names[index]} here; drop the setting"
        )
    return replace(opened, record=replace(record, classes=names))


def _merged(before: Sequence[Entry], added: Sequence[Entry]) -> tuple[Entry, ...]:
    """Return an account in which later entries stand instead of earlier ones of the same weights."""
    touched = {name for entry in added for name in entry.ours}
    kept = [replace(e, ours=tuple(name for name in e.ours if name not in touched)) for e in before]
    return (*(entry for entry in kept if entry.ours or entry.what == "skipped"), *added)


def _adapted(opened: Opened, asked: Wanted) -> Opened:
    record, path, options = opened.record, opened.account.path, dict(asked.options)
    source = config_of(record, path)
    if asked.classes is not None and options.setdefault("num_classes", len(asked.classes)) != len(asked.classes):
        raise ConfigError(f"num_classes is {options['num_classes']}, but {len(asked.classes)} classes are named")
    target = build_config(record.model, **{**asdict(source), **options})
    if asked.positions == "fresh" and not find_variant(record.model)[0].fixed_positions:
        having = " and ".join(family.title for family in FAMILIES if family.fixed_positions)
        raise ConfigError(f"{path}: positions=fresh is for {having}; {record.model} learns its own or has none")
    family = find_variant(record.model)[0]
    added = {
        name for name, value in family.additions.items() if getattr(source, name) != getattr(target, name) == value
    }
    for name, value in _architecture(source).items():
        if getattr(target, name) != value and name not in added:
            raise ConfigError(f"{path}: was made with {name}={value}, which its weights cannot change")
    is_kept = asked.classes is None and target.num_classes == source.num_classes
    classes = record.classes if is_kept else tuple(map(canonical, asked.classes or ()))
    told, doubts, in_order = _head_kept(record, target.num_classes, classes, path, by_order=asked.by_order)
    if any(getattr(source, name) != getattr(target, name) for name in (*FREE, *added)) or classes != record.classes:
        with torch.device("meta"):
            expected = build_model(record, path).state_dict()
        read = {name: value for name, value in opened.weights.items() if name in expected or name not in family.unread}
        check_fit(expected, read, path)
    weights, entries = adapt(
        opened.weights, source, target, path, model=record.model, old_classes=record.classes, new_classes=classes,
        keep_head=in_order, positions=asked.positions,
    )  # fmt: skip
    thresholds = record.thresholds
    if thresholds is not None and not is_kept and not in_order:  # those of new classes are still to be tuned
        known = dict(zip(record.classes, thresholds, strict=True))
        thresholds = tuple(known.get(name, 0.5) for name in classes or [""] * target.num_classes)
    preprocess, notes = replace(record.preprocess, size=target.size), (*opened.account.notes, *told)
    if (channels := target.in_channels) != preprocess.channels:
        mean, std = fit_statistics(channels, preprocess.mean, preprocess.std)
        preprocess = replace(preprocess, channels=channels, mean=mean, std=std)
        notes = (*notes, _of_statistics(path, channels, mean, std))
    record = replace(record, options=asdict(target), classes=classes, preprocess=preprocess, thresholds=thresholds)
    account = replace(
        opened.account, entries=_merged(opened.account.entries, entries), notes=notes,
        doubts=(*opened.account.doubts, *doubts),
    )  # fmt: skip
    return Opened(record=record, weights=weights, account=account, order_is_assumed=in_order)


def _head_kept(
    record: Record, num_classes: int, classes: Sequence[str], path: str, *, by_order: bool
) -> tuple[list[str], list[str], bool]:
    """Return notes and doubts about the head that other classes need, and whether it stays as it is.

    Raises:
        DataError: Order is to decide, and there are other numbers of classes.
    """
    count, old = record.options["num_classes"], record.classes
    if by_order:
        told = match_by_order(old, count, classes, path)
        if told or not old:
            told = told or f"{path}: names no classes; its outputs are taken for those of the data by their order"
            return [], [told], True
    if num_classes in (0, count) and (num_classes == 0 or tuple(old) == tuple(classes)):
        return [], [], False
    if count == 0:
        return [f"{path}: has no head; that of {num_classes} classes is fresh"], [], False
    if not old and num_classes == count:
        doubt = (
            f"{path}: names no classes; its head is kept, and the order of its {count} outputs is taken for that of "
            f"the classes wanted, of which {classes[0]} is the first; weights.classes=FILE names them"
        )
        return [], [doubt], True
    rows = len(shared_rows(old, classes))
    if rows:
        return (
            [f"{path}: {rows} of {num_classes} rows of the head are kept, by class name; the others are fresh"],
            [],
            False,
        )
    why = f"none of its {count} classes is among the {num_classes} wanted"
    if not classes:
        why = f"it has {count} classes, and {num_classes} are wanted that nothing names"
    elif not old:
        why = f"it has {count} classes without names, and {num_classes} are wanted"
    return [], [f"{path}: its head is dropped, and that of {num_classes} classes is fresh: {why}"], False


def numerics(config: ModelConfig, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a model computes with beside its weights, with some of it changed."""
    found = {name: value for name, value in {**asdict(config), **(changes or {})}.items() if name in NUMERICS}
    if found["final_norm_eps"] is None:
        found["final_norm_eps"] = found["norm_eps"]
    return found


def _architecture(config: ModelConfig) -> dict[str, Any]:
    """Return what shapes follow from, and no adaptation can change."""
    return {name: value for name, value in asdict(config).items() if name not in (*FREE, *NUMERICS, *RATES)}
