"""Settings of the digits, and how they are refused."""

from typing import Any, get_type_hints

import pytest

from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, resolve
from vitrail.config.sections import DataSection, EvaluateSection, ModelSection, PreprocessSection, WeightsSection
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

SECTIONS = (
    ModelSection,
    DataSection,
    PreprocessSection,
    AugmentSection,
    BalanceSection,
    MultiLabelSection,
    DistillSection,
    TokenLabelsSection,
    OptimSection,
    FreezeSection,
    LoraSection,
    ScheduleSection,
    EmaSection,
    TrainSection,
    OutputSection,
    EvaluateSection,
    WeightsSection,
)


def settings(*tokens: str) -> TrainConfig:
    """Return the configuration of a command line for the digits."""
    return resolve(TrainConfig, [parse_command_line(["data.name=digits", *tokens])]).config


def problem(*tokens: str, kind: Any = TrainConfig) -> str:
    """Return the message with which a command line is refused."""
    base = ["data.name=digits"] if "data" in get_type_hints(kind) else []
    with pytest.raises(ConfigError) as caught:
        resolve(kind, [parse_command_line([*base, *tokens])])
    return str(caught.value)
