"""Adapt an opened model to a request: two logits for one, class names, another head, image size or channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from vitrail.classes.matching import match_by_order, read_class_names
from vitrail.classes.names import canonical
from vitrail.errors import ConfigError
from vitrail.images.preprocess import Preprocess, fit_statistics
from vitrail.models.family import ModelConfig
from vitrail.models.registry import FAMILIES, build_config
from vitrail.weights.account import merge_entries
from vitrail.weights.adapt import adapt, as_two_logits, shared_rows
from vitrail.weights.checkpoint import Record, build_model, check_fit, config_of
from vitrail.weights.config_fields import ADAPTABLE, find_differences, read_architecture
from vitrail.weights.foreign import note_statistics
from vitrail.weights.opened import Opened
from vitrail.weights.request import LoadRequest


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What happens to the head of a model that other classes are asked of."""

    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    is_kept_in_order: bool = False
    """Whether it stays as it is, since the order of the classes is assumed."""
    dropped: str = ""
    """The doubt about a head that is dropped for one of another number of classes."""


def adapt_model(opened: Opened, request: LoadRequest) -> Opened:
    """Return an opened model with the logits, classes, image size and channels that are asked for.

    Raises:
        CheckpointError: The weights are not those of the model, or its channels cannot be adapted.
        ConfigError: What is asked for is no model, or another one.
    """
    opened = _with_two_logits(opened, request)
    opened = _with_class_names(opened, request)
    return _with_options(opened, request)


def _with_two_logits(opened: Opened, request: LoadRequest) -> Opened:
    """Return a binary classifier of one logit as one of two."""
    record, path = opened.record, opened.account.path
    is_binary = record.options["num_classes"] == 1 and not record.is_multi_label
    if not request.two_logits or not is_binary or request.options.get("num_classes") == 1:
        return opened
    _check_weights(record, opened.weights, path)
    weights, entry = as_two_logits(opened.weights, record.family)
    note = (
        f"{path}: has one output z, so two classes: probabilities are the sigmoid of z for class 1 "
        "and the rest for class 0, which is the answer below 0.5"
    )
    entries = merge_entries(opened.account.entries, [entry])
    account = replace(opened.account, entries=entries, notes=(*opened.account.notes, note))
    record = replace(record, options={**record.options, "num_classes": 2}, classes=())
    return replace(opened, record=record, weights=weights, account=account)


def _with_class_names(opened: Opened, request: LoadRequest) -> Opened:
    """Name the logits of a file that does not do so itself, by another file."""
    if request.names is None:
        return opened
    record, path = opened.record, opened.account.path
    names, count = read_class_names(request.names), record.options["num_classes"]
    if len(names) != count:
        raise ConfigError(
            f"weights.classes {request.names}: names {len(names)} classes, and {path} has {count} "
            "outputs"
        )
    if record.classes and record.classes != names:
        pairs = enumerate(zip(record.classes, names, strict=True))
        index, (there, here) = next((index, pair) for index, pair in pairs if pair[0] != pair[1])
        raise ConfigError(
            f"weights.classes {request.names}: {path} names its classes itself, and otherwise: "
            f"index {index} is {there} there and {here} here; drop the setting"
        )
    return replace(opened, record=replace(record, classes=names))


def _with_options(opened: Opened, request: LoadRequest) -> Opened:
    """Return a model with the options and classes of a request, its weights adapted to them."""
    record, path = opened.record, opened.account.path
    source = config_of(record, path)
    target = _target_config(record, source, request)
    added = _check_target(record, source, target, request, path)

    # the head, by the classes of both sides
    is_kept = request.classes is None and target.num_classes == source.num_classes
    classes = record.classes if is_kept else tuple(map(canonical, request.classes or ()))
    head = _plan_head(record, target.num_classes, classes, path, by_order=request.by_order)

    # the weights
    differing = find_differences(source, vars(target))
    changes = [name for name in (*ADAPTABLE, *added) if name in differing]
    if changes or classes != record.classes:
        _check_weights(record, opened.weights, path)
    weights, entries = adapt(
        opened.weights,
        source,
        target,
        path,
        family=record.family,
        old_classes=record.classes,
        new_classes=classes,
        keep_head=head.is_kept_in_order,
        positions=request.positions,
    )

    # what is said of them
    thresholds = record.thresholds
    if thresholds is not None and not is_kept and not head.is_kept_in_order:
        known = dict(zip(record.classes, thresholds, strict=True))
        names = classes or [""] * target.num_classes
        # those of new classes are still to be tuned
        thresholds = tuple(known.get(name, 0.5) for name in names)
    made = dict(record.provenance)
    if classes != record.classes or target.num_classes != source.num_classes:
        made.pop("training_counts", None)  # they are of the classes that the file had
    preprocess, notes = _adapt_preprocess(record.preprocess, target, path)
    return Opened(
        record=replace(
            record,
            options=asdict(target),
            classes=classes,
            preprocess=preprocess,
            thresholds=thresholds,
            provenance=made,
        ),
        weights=weights,
        account=replace(
            opened.account,
            entries=merge_entries(opened.account.entries, entries),
            notes=(*opened.account.notes, *head.notes, *notes),
            doubts=(*opened.account.doubts, *head.doubts),
        ),
        order_is_assumed=head.is_kept_in_order,
        dropped_head=head.dropped,
    )


def _target_config(record: Record, source: ModelConfig, request: LoadRequest) -> ModelConfig:
    options = dict(request.options)
    if request.classes is not None:
        count = options.setdefault("num_classes", len(request.classes))
        if count != len(request.classes):
            raise ConfigError(
                f"num_classes is {count}, but {len(request.classes)} classes are named"
            )
    return build_config(record.model, **{**asdict(source), **options})


def _check_target(
    record: Record, source: ModelConfig, target: ModelConfig, request: LoadRequest, path: str
) -> set[str]:
    """Refuse what weights cannot be adapted to, and return the fields by which the model gets weights that are zeros.

    Raises:
        ConfigError: The target has another architecture, or positions that its family does not
            compute.
    """
    family = record.family
    if request.positions == "fresh" and not family.fixed_positions:
        titles = " and ".join(other.title for other in FAMILIES if other.fixed_positions)
        raise ConfigError(
            f"{path}: positions=fresh is for {titles}; {record.model} learns its own or has none"
        )
    added = set()
    for name, value in family.additions.items():
        if getattr(source, name) != getattr(target, name) == value:
            added.add(name)
    for name, value in read_architecture(source).items():
        if getattr(target, name) != value and name not in added:
            raise ConfigError(
                f"{path}: was made with {name}={value}, which its weights cannot change"
            )
    return added


def _check_weights(record: Record, weights: Mapping[str, Tensor], path: str) -> None:
    """Refuse weights that are not those of a record's model; what nothing reads may be there or not."""
    with torch.device("meta"):
        expected = build_model(record, path).state_dict()
    unused = record.family.unread
    read = {
        name: value for name, value in weights.items() if name in expected or name not in unused
    }
    check_fit(expected, read, path)


def _adapt_preprocess(
    preprocess: Preprocess, target: ModelConfig, path: str
) -> tuple[Preprocess, list[str]]:
    """Return the preprocessing for another image size and other channels, and what is to be said of it."""
    preprocess = replace(preprocess, size=target.size)
    channels = target.in_channels
    if channels == preprocess.channels:
        return preprocess, []
    mean, std = fit_statistics(channels, preprocess.mean, preprocess.std)
    return replace(preprocess, channels=channels, mean=mean, std=std), [
        note_statistics(path, channels, mean, std)
    ]


def _plan_head(
    record: Record, num_classes: int, classes: Sequence[str], path: str, *, by_order: bool
) -> _Head:
    """Return what happens to the head of a model for other classes.

    Args:
        record: Describes the model.
        num_classes: Number of logits it is to have.
        classes: Names of these; empty where they are not known.
        path: The file, for messages.
        by_order: Let the order of the classes decide which logit is whose.

    Raises:
        DataError: Order is to decide, and there are other numbers of classes.
    """
    count, old = record.options["num_classes"], record.classes
    if by_order:
        doubt = match_by_order(old, count, classes, path)
        if not doubt and not old:
            doubt = f"{path}: names no classes; its outputs are taken for those of the data by their order"
        if doubt:
            return _Head(doubts=(doubt,), is_kept_in_order=True)
    if num_classes == 0 or (num_classes == count and tuple(old) == tuple(classes)):
        return _Head()
    if count == 0:
        return _Head(notes=(f"{path}: has no head; that of {num_classes} classes is fresh",))
    if not old and num_classes == count:
        doubt = (
            f"{path}: names no classes; its head is kept, and the order of its {count} outputs is "
            f"taken for that of the classes wanted, of which {classes[0]} is the first; "
            "weights.classes=FILE names them"
        )
        return _Head(doubts=(doubt,), is_kept_in_order=True)
    if rows := len(shared_rows(old, classes)):
        note = f"{path}: {rows} of {num_classes} rows of the head are kept, by class name; the others are fresh"
        return _Head(notes=(note,))
    doubt = _explain_dropped_head(count, old, num_classes, classes, path)
    return _Head(doubts=(doubt,), dropped=doubt if count != num_classes else "")


def _explain_dropped_head(
    count: int, old: Sequence[str], num_classes: int, classes: Sequence[str], path: str
) -> str:
    if not classes:
        why = f"it has {count} classes, and {num_classes} are wanted that nothing names"
    elif not old:
        why = f"it has {count} classes without names, and {num_classes} are wanted"
    else:
        why = f"none of its {count} classes is among the {num_classes} wanted"
    return f"{path}: its head is dropped, and that of {num_classes} classes is fresh: {why}"
