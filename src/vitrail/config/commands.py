"""Configuration of each command: its sections of settings, checked one by one and against each other. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from vitrail.config.sections import (
    DataSection,
    EvaluateSection,
    ModelSection,
    PreprocessSection,
    WeightsSection,
)
from vitrail.config.teaching_sections import DistillSection, TokenLabelsSection
from vitrail.config.training_sections import (
    AugmentSection,
    BalanceSection,
    EmaSection,
    FreezeSection,
    LoraSection,
    MultiLabelSection,
    OptimSection,
    OutputSection,
    ScheduleSection,
    TrainSection,
)
from vitrail.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of `vitrail train`."""

    model: ModelSection = field(default_factory=ModelSection)
    weights: WeightsSection = field(default_factory=WeightsSection)
    data: DataSection = field(default_factory=DataSection)
    preprocess: PreprocessSection = field(default_factory=PreprocessSection)
    augment: AugmentSection = field(default_factory=AugmentSection)
    balance: BalanceSection = field(default_factory=BalanceSection)
    multi_label: MultiLabelSection = field(default_factory=MultiLabelSection)
    distill: DistillSection = field(default_factory=DistillSection)
    token_labels: TokenLabelsSection = field(default_factory=TokenLabelsSection)
    optim: OptimSection = field(default_factory=OptimSection)
    freeze: FreezeSection = field(default_factory=FreezeSection)
    lora: LoraSection = field(default_factory=LoraSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    ema: EmaSection = field(default_factory=EmaSection)
    train: TrainSection = field(default_factory=TrainSection)
    output: OutputSection = field(default_factory=OutputSection)

    def __post_init__(self) -> None:
        problems = _find_section_problems(self)
        problems += self._channel_problems()
        problems += self._rate_problems()
        problems += self._sampling_problems()
        problems += self._distillation_problems()
        problems += self._token_label_problems()
        for name, value in (("freeze.until", self.freeze.until), ("lora.rank", self.lora.rank)):
            if value is not None and self.train.shard:
                problems.append(
                    f"{name} does not go with train.shard, which is for training all weights; drop "
                    "one"
                )
        if self.schedule.warmup_epochs > self.train.epochs:
            problems.append(
                f"schedule.warmup_epochs {self.schedule.warmup_epochs:g} is more than train.epochs "
                f"{self.train.epochs}; lower it too"
            )
        if problems:
            raise ConfigError("; ".join(problems))

    def _channel_problems(self) -> list[str]:
        """Say which settings of preprocessing and augmentation do not go with the images' channels and bits."""
        data = self.data
        problems = []
        for name in ("mean", "std"):
            values = getattr(self.preprocess, name)
            if values is not None and len(values) != data.channels:
                problems.append(
                    f"preprocess.{name} is {values}; it must have a number for each of "
                    f"data.channels={data.channels}"
                )
        if (data.channels, data.bits) == (3, 8):
            return problems
        for name in ("auto_augment", "color_jitter"):
            value = getattr(self.augment, name)
            if value:
                problems.append(
                    f"augment.{name}={value} knows only RGB of 8 bits; set it to null, or leave "
                    f"out data.channels={data.channels} and data.bits={data.bits}"
                )
        return problems

    def _rate_problems(self) -> list[str]:
        """Say which learning rates of the schedule are above its peak."""
        peak = self.optim.lr
        if self.optim.lr_base_batch:
            peak *= self.train.batch_size / self.optim.lr_base_batch
        rates = {}
        if self.schedule.warmup_epochs > 0:
            rates["warmup_lr"] = self.schedule.warmup_lr
        if self.schedule.name != "constant":
            rates["min_lr"] = self.schedule.min_lr
        return [
            f"schedule.{name} {rate:g} is above the peak rate {peak:g} of optim.lr; lower it"
            for name, rate in rates.items()
            if rate > peak > 0
        ]

    def _sampling_problems(self) -> list[str]:
        """Say what a sampler that draws by class cannot be combined with."""
        sampler = self.balance.sampler
        if sampler == "natural":
            return []
        problems = []
        if self.train.epoch_images is not None:
            problems.append(
                f"balance.sampler is {sampler}, which gives each class its share of whole epochs; "
                "train.epoch_images cuts them; set one of them to its default"
            )
        if self.data.streaming:
            problems.append(
                f"balance.sampler is {sampler}, which draws from all over the set; data.streaming "
                "reads it in windows; set one of them to its default"
            )
        return problems

    def _distillation_problems(self) -> list[str]:
        """Say what a loss of distillation cannot be combined with."""
        distill, augment = self.distill, self.augment
        problems = self._unlabelled_problems()
        pastes = augment.cutmix or augment.cutmix_minmax
        learns_places = distill.teacher is not None and distill.loss == "tokens"
        if learns_places and pastes and not distill.mixed:
            problems.append(
                "distill.loss is tokens, which matches places, and CutMix moves them; set "
                "distill.mixed=true, or augment.cutmix=0 and augment.cutmix_minmax=null"
            )
        if distill.teacher is None or distill.loss != "dkd":
            return problems
        mixing = {
            "mixup": augment.mixup,
            "cutmix": augment.cutmix,
            "cutmix_minmax": augment.cutmix_minmax,
        }
        for name, value in mixing.items():
            if value:
                problems.append(
                    "distill.loss is dkd, which needs the class of an image, and "
                    f"augment.{name}={value} mixes several; set it to its default, or distill.loss "
                    "to soft"
                )
        return problems

    def _unlabelled_problems(self) -> list[str]:
        """Say what images without labels cannot be trained on by, and what needs such images."""
        distill = self.distill
        if not self.data.unlabelled:
            if distill.labels is None:
                return []
            return [
                f"distill.labels={distill.labels} is for images without labels; leave it out, or set "
                "data.unlabelled=true"
            ]
        if distill.teacher is None:
            return [
                "data.unlabelled is true, so there is nothing to learn but a teacher's features; give "
                "distill.teacher=FILE or a name of published weights"
            ]
        if not distill.learns_features:
            return [
                f"data.unlabelled is true, and distill.loss={distill.loss} learns what a teacher says "
                "of classes; set it to tokens or feature"
            ]
        if self.output.average_best:
            return [
                "output.average_best is true, and data.unlabelled leaves nothing to measure an average "
                "by; set it to false, and ema.decay averages all updates"
            ]
        return []

    def _token_label_problems(self) -> list[str]:
        """Say what token labels cannot be combined with."""
        section, augment = self.token_labels, self.augment
        if section.folder is None:
            return []
        problems = []
        for name in ("cutmix", "cutmix_minmax"):
            if value := getattr(augment, name):
                problems.append(
                    f"augment.{name}={value} pastes pixels, which token_labels.mix_token does with "
                    f"tokens and their labels; set augment.{name} to its default"
                )
        if augment.mixup and section.mix_token:
            problems.append(
                f"augment.mixup={augment.mixup} and token_labels.mix_token={section.mix_token} both "
                "mix the images of a batch; set one of them to 0"
            )
        if self.distill.teacher is not None:
            problems.append(
                "distill.teacher and token_labels.folder are two teachers; set one of them to null"
            )
        for name in ("compile", "shard"):
            if getattr(self.train, name):
                problems.append(f"token_labels.folder does not go with train.{name}=true; drop one")
        return problems


class _IndependentSections:
    """A configuration that is right as soon as each of its sections is."""

    def __post_init__(self) -> None:
        problems = _find_section_problems(self)
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(_IndependentSections):
    """All settings of `vitrail evaluate`."""

    weights: WeightsSection = field(default_factory=WeightsSection)
    data: DataSection = field(default_factory=DataSection)
    preprocess: PreprocessSection = field(default_factory=PreprocessSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(_IndependentSections):
    """Settings of `vitrail predict` that are written as key=value."""

    weights: WeightsSection = field(default_factory=WeightsSection)
    preprocess: PreprocessSection = field(default_factory=PreprocessSection)


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(_IndependentSections):
    """All settings of `vitrail embed`."""

    weights: WeightsSection = field(default_factory=WeightsSection)
    data: DataSection = field(default_factory=DataSection)
    preprocess: PreprocessSection = field(default_factory=PreprocessSection)


@dataclass(frozen=True, kw_only=True)
class CheckConfig(_IndependentSections):
    """Settings of `vitrail check-data`."""

    data: DataSection = field(default_factory=DataSection)
    preprocess: PreprocessSection = field(default_factory=PreprocessSection)


@dataclass(frozen=True, kw_only=True)
class DataConfig(_IndependentSections):
    """Settings of `vitrail pack` and `vitrail resize-data`."""

    data: DataSection = field(default_factory=DataSection)


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(_IndependentSections):
    """Settings of `vitrail convert` that are written as key=value."""

    weights: WeightsSection = field(default_factory=WeightsSection)


@dataclass(frozen=True, kw_only=True)
class DescribedConfig(_IndependentSections):
    """Section `model` of a file of settings, as a description of the model whose weights are used."""

    model: ModelSection = field(default_factory=ModelSection)


def _find_section_problems(config: Any) -> list[str]:
    problems = []
    for section in fields(config):
        for problem in getattr(config, section.name).problems():
            problems.append(f"{section.name}.{problem}")
    return problems
