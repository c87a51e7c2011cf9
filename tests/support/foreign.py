"""Files of other projects, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import Layer, flatten, read_yaml, resolve
from vitrail.migrate.mindcv import MINDCV
from vitrail.migrate.model_zoo import T2T, TWINS, ZOO_TNT
from vitrail.migrate.translate import translate

FILES = Path(__file__).parents[1] / "migrate" / "foreign"
PROJECT_OF = {
    "tnt_s_gpu": MINDCV,
    "svt_s_gpu": MINDCV,
    "pcpvt_l_gpu": MINDCV,
    "tnt_s_patch16_224": ZOO_TNT,
    "t2t_vit_19": T2T,
    "svt_s": TWINS,
    "svt_s_params": TWINS,
    "pcpvt_l": TWINS,
}


def content(name: str) -> dict[str, Any]:
    return dict(read_yaml(FILES / f"{name}.yaml").values)


def translated(name: str, processes: int = 8, **flags: Any) -> TrainConfig:
    return resolve(TrainConfig, [translate(content(name), name, flags, processes=processes).layer]).config


def changed(config: TrainConfig) -> dict[str, Any]:
    """Return the dotted settings that are not our defaults."""
    default = flatten(resolve(TrainConfig, [Layer("", {"data": {"root": "x"}})]).config)
    return {key: value for key, value in flatten(config).items() if value != default[key]}


def remarks(name: str, **flags: Any) -> list[str]:
    return [f"{kind}: {text}" for kind, text in translate(content(name), name, flags, processes=8).remarks()]


def written(folder: Path, name: str, **changes: Any) -> Path:
    """Write a file of theirs with some values changed, and return where."""
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump({**content(name), **changes}))
    return path
