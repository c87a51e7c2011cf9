"""Saves: whole, checked, the last few kept, and of plain values only."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from vitrail.distributed.processes import processes
from vitrail.errors import CheckpointError
from vitrail.models.family import VisionModel
from vitrail.models.registry import create_model
from vitrail.training.optim.nonfinite import Guard
from vitrail.training.run.state import TrainState, list_states, load_last_state, save_state

TINY = {"image_size": 32, "embed_dim": 24, "inner_dim": 8, "depth": 1, "num_heads": 2, "inner_num_heads": 2}


def tiny(seed: int = 0) -> VisionModel:
    torch.manual_seed(seed)
    return create_model("tnt_ti_patch16_224", num_classes=3, **TINY)


def state_of(model: VisionModel) -> TrainState:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    return TrainState(model, optimizer, None, None, torch.zeros(3, dtype=torch.float64), Guard(torch.device("cpu")))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def test_everything_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    state = state_of(tiny())
    state.model(torch.randn(2, 3, 32, 32)).sum().backward()
    state.optimizer.step()
    state.epoch, state.step, state.rollbacks, state.elapsed_s = 3, 7, 1, 12.5
    state.rows, state.bests = [{"epoch": 1, "train_loss": None}], [{"epoch": 1, "val_top1": 50.0}]
    state.bad_files, state.unread, state.seconds = {("a.jpg", "cut short")}, {("b.jpg", "empty")}, {"data_s": 1.5}
    state.sums += torch.tensor([0.1, 2, 3], dtype=torch.float64)
    state.guard.record(torch.tensor(True), 5)
    with processes("float32", "cpu") as accelerator:
        saved = state.to_dict(accelerator)
        save_state(tmp_path, saved, 31, keep=2)
        other = state_of(tiny(seed=1))
        other.restore(load_last_state(tmp_path, pytest.fail), 0, 1)
        assert same(other.to_dict(accelerator), saved)


def test_sums_of_each_process_go_back_to_it_or_are_shared_out() -> None:
    state = state_of(tiny())
    with processes("float32", "cpu") as accelerator:
        saved = state.to_dict(accelerator)
    saved |= {"sums": [[1.0, 1, 1], [2.0, 2, 2], [4.0, 4, 4]], "unread": [("a", "b")]}
    for world, expected in ((3, [1, 2, 4]), (2, [5, 2]), (1, [7]), (4, [1, 2, 4, 0])):
        for rank in range(world):
            state.restore(saved, rank, world)
            assert state.sums.tolist() == [expected[rank]] * 3
            assert len(state.unread) == (rank == 0)


def test_the_newest_saves_are_kept(tmp_path: Path) -> None:
    for update in (1, 2, 30, 4, 100_000_000):
        save_state(tmp_path, {"epoch": update}, update, keep=3)
    assert [path.name.split(".")[0] for path in list_states(tmp_path)] == [
        "update-100000000", "update-00000030", "update-00000004",
    ]  # fmt: skip
    assert load_last_state(tmp_path, pytest.fail) == {"epoch": 100_000_000}


def test_a_save_of_the_same_update_replaces_it(tmp_path: Path) -> None:
    save_state(tmp_path, {"epoch": 1}, 1, keep=1)
    save_state(tmp_path, {"epoch": 2}, 1, keep=1)
    assert load_last_state(tmp_path, pytest.fail) == {"epoch": 2}
    assert len(list(tmp_path.iterdir())) == 1


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[: len(data) // 2]
    elif how == "emptied":
        data.clear()
    else:
        data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["cut", "emptied", "one bit"])
def test_a_damaged_save_gives_way_to_the_one_before_it_in_one_line(tmp_path: Path, how: str) -> None:
    for update in (1, 2, 3):
        save_state(tmp_path, {"epoch": update, "model": tiny().state_dict()}, update, keep=3)
    newest, middle, _ = list_states(tmp_path)
    damage(newest, how)
    warnings: list[str] = []
    assert load_last_state(tmp_path, warnings.append)["epoch"] == 2
    assert warnings == [
        f"{newest}: is damaged, so the save before it is used ({newest}: its content does not match the checksum in "
        f"its name); renamed to {newest.name}.damaged"
    ]
    assert list_states(tmp_path)[0] == middle
    damage(middle, how)
    assert load_last_state(tmp_path, lambda text: None)["epoch"] == 1


def test_no_save_and_only_damaged_saves_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no save to go on from$"):
        load_last_state(tmp_path, pytest.fail)
    save_state(tmp_path, {"epoch": 1}, 1, keep=1)
    damage(list_states(tmp_path)[0], "cut")
    with pytest.raises(CheckpointError, match=r"none of its 1 saves can be read; put one back from a copy, or move"):
        load_last_state(tmp_path, lambda text: None)
    assert len(list_states(tmp_path)) == 1


class Payload:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.mkdir, (self.made,))


def test_a_save_with_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    save_state(tmp_path, {"epoch": Payload(made)}, 1, keep=1)
    with pytest.raises(CheckpointError, match="none of its 1 saves can be read"):
        load_last_state(tmp_path, lambda text: None)
    assert not made.exists()


def test_a_full_disk_leaves_the_saves_before(
    tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    save_state(tmp_path, {"epoch": 1}, 1, keep=1)
    with largest_file(10_000), pytest.raises(CheckpointError, match=r"\(File too large\); free space or choose"):
        save_state(tmp_path, {"epoch": 2, "model": tiny().state_dict()}, 2, keep=1)
    assert load_last_state(tmp_path, pytest.fail) == {"epoch": 1}
    assert len(list(tmp_path.iterdir())) == 1
