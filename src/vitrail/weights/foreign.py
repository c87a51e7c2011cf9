"""A weight file of another project: which model it holds, its weights by official names, and how images are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from vitrail.classes.names import canonical
from vitrail.errors import CheckpointError, list_values
from vitrail.imagenet import NUM_CLASSES, list_wordnet_ids
from vitrail.images.pixels import describe_channels
from vitrail.images.preprocess import Preprocess, describe_normalisation, fit_statistics
from vitrail.models.registry import FAMILIES, find_family
from vitrail.weights.account import Account, Entry, list_added
from vitrail.weights.checkpoint import Record
from vitrail.weights.config_fields import pick_numerics, read_numerics
from vitrail.weights.formats.weight_file import WeightFile
from vitrail.weights.image_config import read_images, read_labels
from vitrail.weights.opened import Opened
from vitrail.weights.recognise import Reading, translate
from vitrail.weights.request import LoadRequest
from vitrail.weights.search.find import FoundWeights


@dataclass
class Remarks:
    """Sentences for the account of a file, gathered while it is opened."""

    notes: list[str] = field(default_factory=list)
    """What the file does not say itself, and what was taken."""
    doubts: list[str] = field(default_factory=list)
    """What may be wrong all the same."""

    def add(
        self,
        file: WeightFile,
        *,
        notes: Iterable[str] = (),
        doubts: Iterable[str] = (),
        about: str = "",
    ) -> None:
        """Add sentences on a file, or on what of it `about` says, with its path before each."""
        start = f"{file.path}: {about}"
        self.notes += [start + note for note in notes]
        self.doubts += [start + doubt for doubt in doubts]


def recognise_model(
    file: WeightFile, found: FoundWeights, request: LoadRequest, remarks: Remarks
) -> Reading:
    """Return the one reading of the weights that were found: their project, their model and its configuration.

    Raises:
        CheckpointError: The weights do not fit the model, or fit two.
    """
    reading = _choose_reading(file, found.readings, request)
    reading = _with_image_size(file, reading, remarks)
    _doubt_model_name(file, reading, remarks)
    remarks.add(file, doubts=reading.dialect.doubts)
    return reading


def rename_weights(
    file: WeightFile, found: FoundWeights, reading: Reading, remarks: Remarks
) -> dict[str, Tensor]:
    """Read weights from the file and return them by official names, in float32; those that it lacks are fresh."""
    theirs = file.read(found.tree.names)
    weights = translate(theirs, reading)
    if not reading.is_whole:
        remarks.doubts.append(
            f"{file.path}: {len(reading.missing)} weights are missing and fresh, "
            f"{len(reading.misfits)} skipped"
        )
        weights = reading.family.model(reading.config).state_dict() | weights
    dtypes: set[str] = set()
    for link in reading.links:
        tensors = [theirs[name] for name in link.theirs]
        dtypes.update(str(one.dtype) for one in tensors if one.is_floating_point())
    if converted := sorted(dtypes - {"torch.float32"}):
        remarks.notes.append(
            f"{file.path}: holds {', '.join(converted)}, which became torch.float32"
        )
    return weights


def describe_model(
    file: WeightFile,
    found: FoundWeights,
    reading: Reading,
    weights: Mapping[str, Tensor],
    request: LoadRequest,
    remarks: Remarks,
) -> Opened:
    """Return renamed weights with a record and an account: preprocessing, classes, numerics and every entry."""
    if file.passed_over:
        listed = ", ".join(file.passed_over[:3])
        if len(file.passed_over) > 3:
            listed += ", ..."
        remarks.notes.append(
            f"{file.path}: objects of {listed} are passed over or read as plain values; nothing of "
            "them is run"
        )
    numerics = read_numerics(
        reading.variant.config, {**reading.dialect.options, **numerics_of_config(file)}
    )
    _note_described_numerics(file, reading, numerics, request, remarks)
    preprocess = _describe_images(file, reading, found, remarks)
    classes = _describe_classes(file, reading, remarks, is_named=request.names is not None)
    remarks.add(file, notes=reading.dialect.notes)
    source = {"file": file.path.name, "dialect": reading.dialect.name, "entry": found.tree.entry}
    record = Record(
        model=reading.model,
        options=asdict(reading.config),
        classes=classes,
        preprocess=preprocess,
        provenance={"converted_from": source},
    )
    account = Account(
        path=str(file.path),
        dialect=reading.dialect.name,
        model=reading.model,
        entries=tuple(_list_entries(found, reading)),
        numerics=numerics,
        notes=tuple(remarks.notes),
        doubts=tuple(remarks.doubts),
    )
    return Opened(record=record, weights=weights, account=account)


def numerics_of_config(file: WeightFile) -> dict[str, Any]:
    """Return what config.json says that timm is to build the model with, where it is more than its weights tell.

    Raises:
        CheckpointError: It is no mapping.
    """
    arguments = file.config.get("model_args") or {}
    if not isinstance(arguments, Mapping):
        raise CheckpointError(
            f"{file.path}: the model_args of its config.json are no mapping; use the original"
        )
    return pick_numerics(arguments)


def note_statistics(where: str, channels: int, mean: Sequence[float], std: Sequence[float]) -> str:
    """Return the note on a mean and standard deviation that were made for other channels than the file's."""
    return (
        f"{where}: for {describe_channels(channels)}, {describe_normalisation(mean, std)}, which "
        "it does not say; preprocess.mean and preprocess.std change that"
    )


def _choose_reading(file: WeightFile, readings: list[Reading], request: LoadRequest) -> Reading:
    """Return the only reading, or the one that the file itself names; two that fit are never guessed between."""
    first = readings[0]
    if not first.is_whole and not request.partial:
        listed = ", ".join(dict.fromkeys([*first.missing[:2], *first.misfits[:2]]))
        raise CheckpointError(
            f"{file.path}: does not fit the model: {len(first.missing)} weights missing, "
            f"{len(first.misfits)} unexpected or of another shape ({listed}); nearest is {first}. "
            "To take what fits, weights.partial=true; for another size, weights.options.NAME=VALUE"
        )
    stated = _stated_model(file)
    named = [reading for reading in readings if stated in reading.model_names]
    if len(named) == 1:
        return named[0]
    ways = " or ".join(map(str, readings))
    if not request.model and _is_known(stated):
        raise CheckpointError(
            f"{file.path}: says that it is {stated}, and its weights are those of {ways}; "
            f"weights.model={first.model} takes it for that"
        )
    if len(readings) == 1:
        return first
    models = sorted({reading.model for reading in readings})
    setting = (
        f"weights.model={models[0]}" if len(models) > 1 else f"weights.dialect={first.dialect.name}"
    )
    raise CheckpointError(f"{file.path}: fits {ways} equally; say which it is, such as {setting}")


def _stated_model(file: WeightFile) -> str:
    """Return the model that a file, or config.json beside it, says it holds; empty where neither does."""
    stated = str(file.config.get("architecture") or file.arch or "").lower().split(".")[0]
    bare = stated.removeprefix("vitrail_")  # as `vitrail.timm` names those that timm has too
    return bare if _is_known(bare) else stated


def _is_known(model: str) -> bool:
    return find_family(model) is not None or any(model in family.aliases for family in FAMILIES)


def _with_image_size(file: WeightFile, reading: Reading, remarks: Remarks) -> Reading:
    """Take the image size from config.json, where the weights do not tell it."""
    size = _pretrained_config(file).get("input_size")
    if not isinstance(size, list) or len(size) != 3 or hasattr(reading.config, "grid"):
        return reading
    try:
        return replace(reading, config=replace(reading.config, image_size=tuple(size[1:])))
    except (TypeError, ValueError) as error:
        own = "x".join(map(str, reading.config.size))
        remarks.doubts.append(
            f"{file.path}: the input_size of its config.json cannot be ({error}); the model's own "
            f"{own} is taken, and weights.options.image_size sets another"
        )
        return reading


def _doubt_model_name(file: WeightFile, reading: Reading, remarks: Remarks) -> None:
    """Say it where a file, or config.json beside it, calls its weights another model than they are read as.

    The options of a training script may call a model anything, so a name there that is unknown says
    nothing.
    """
    stated, in_config = _stated_model(file), bool(file.config.get("architecture"))
    if not stated or stated in reading.model_names:
        return
    if not in_config and not _is_known(stated):
        return
    who = "its config.json says" if in_config else "says"
    which = stated if _is_known(stated) else f"{stated[:60]}, which is no model here"
    remarks.doubts.append(
        f"{file.path}: {who} that it is {which}, and it is read as {reading.model}, which its "
        "weights fit"
    )


def _pretrained_config(file: WeightFile) -> Mapping[str, Any]:
    """Return what config.json says of the images, in timm's newer or older place."""
    config = file.config.get("pretrained_cfg", file.config)
    if not isinstance(config, Mapping):
        raise CheckpointError(
            f"{file.path}: the pretrained_cfg of its config.json is no mapping; use the original"
        )
    return config


def _note_described_numerics(
    file: WeightFile,
    reading: Reading,
    numerics: Mapping[str, Any],
    request: LoadRequest,
    remarks: Remarks,
) -> None:
    """Say where a settings file has other numerics than the files of the project."""
    if request.described is None:
        return
    for name, value in request.described.options.items():
        if name in numerics and value != numerics[name]:
            remarks.notes.append(
                f"{file.path}: {name} is {value}, as {request.described.origin} has it; in "
                f"{reading.dialect.name} "
                f"files it is {numerics[name]}, which weights.options.{name}={numerics[name]} takes"
            )


def _describe_images(
    file: WeightFile, reading: Reading, found: FoundWeights, remarks: Remarks
) -> Preprocess:
    """Return how images were read: by config.json, or else the official transfer, the dialect, or the paper."""
    variant, config = reading.variant, reading.config
    values: dict[str, Any] = {
        "crop": variant.crop,
        "interpolation": variant.interpolation,
        "resize": variant.resize,
        "mean": variant.mean,
        "std": variant.std,
        **reading.dialect.preprocess,
    }
    entry = found.tree.prefix.split(".")[0]
    if transfer := reading.family.by_entry.get((entry, config.num_classes)):
        values |= transfer
        listed = list_values(transfer)
        remarks.notes.append(
            f"{file.path}: its entry {entry} is that of the official transfer to "
            f"{config.num_classes} classes, so "
            f"images are read as there: {listed}; preprocess.crop and its like change that"
        )
    stated, channels = _pretrained_config(file), config.in_channels
    if channels != 3:
        values["channels"] = channels
        values["mean"], values["std"] = fit_statistics(channels, values["mean"], values["std"])
        if "mean" not in stated or "std" not in stated:
            remarks.notes.append(
                note_statistics(str(file.path), channels, values["mean"], values["std"])
            )
    images = read_images(stated, values, channels)
    remarks.add(file, notes=images.notes, doubts=images.doubts, about="its config.json ")
    return Preprocess.from_dict(
        {**Preprocess(size=config.size).to_dict(), **values, **images.values}
    )


def _describe_classes(
    file: WeightFile, reading: Reading, remarks: Remarks, *, is_named: bool
) -> tuple[str, ...]:
    """Return the names of the logits by config.json, or else ImageNet's for 1000 logits; empty where none are known.

    Args:
        file: What was opened.
        reading: Says how many logits there are.
        remarks: Takes notes on what was assumed.
        is_named: Whether another file will name the logits.
    """
    count = reading.config.num_classes
    labels = read_labels(file.config)
    names = tuple(canonical(str(label)) for label in labels or ())
    if names and len(names) == len(set(names)) == count:
        return names
    if labels is not None:
        remarks.notes.append(
            f"{file.path}: the class names of its config.json are not {count} different names, and "
            "left out"
        )
    if is_named or not count:
        return ()
    if count == NUM_CLASSES:
        remarks.notes.append(
            f"{file.path}: its {count} classes are taken for ImageNet's, in their usual order"
        )
        return list_wordnet_ids()
    remarks.notes.append(f"{file.path}: names none of its {count} classes; they go by number")
    return ()


def _list_entries(found: FoundWeights, reading: Reading) -> list[Entry]:
    """Return one entry for each weight, by the names that stand in the file."""
    in_file = found.tree.names
    entries = []
    for link in reading.links:
        what = link.how.name
        if what == "renamed" and link.theirs == link.ours:
            what = "loaded"
        theirs = tuple(in_file.get(name, name) for name in link.theirs)
        entries.append(Entry(what, theirs, link.ours))
    entries += list_added("zero-filled", reading.zeros, "the project has none")
    entries += list_added("new", reading.missing, "missing in the file")
    for name in reading.misfits:
        entries.append(Entry("skipped", theirs=(in_file.get(name, name),), note="not of the model"))
    for name, reason in {**reading.skipped, **found.skipped}.items():
        entries.append(Entry("skipped", theirs=(in_file.get(name, name),), note=reason))
    return entries
