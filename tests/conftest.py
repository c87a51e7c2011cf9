"""One thread, a fixed terminal, and the folder of images and the weight file that many tests start from."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import hypothesis
import pytest

from support.tiny_model import CLASSES, save_tiny

# before anything imports torch or rich; processes that tests start inherit it
os.environ.update(OMP_NUM_THREADS="1", TERM="xterm", COLUMNS="200", LINES="50")
# where manifests are kept
os.environ["XDG_CACHE_HOME"] = (_cache := tempfile.TemporaryDirectory()).name
# where `datasets` keeps what it has prepared; it asks nobody
os.environ.update(HF_HOME=f"{_cache.name}/huggingface", HF_HUB_OFFLINE="1")
# a kernel would be compiled anew in that cache; tests that want one compile it
os.environ["VITRAIL_KERNELS"] = "plain"
for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "UV"):
    os.environ.pop(variable, None)

# tests in the background, or under nohup, would hand these down as ignored to the processes that they send them to
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# the same examples in every run, however busy the machine is
hypothesis.settings.register_profile("vitrail", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("vitrail")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep torch, where the collected tests import it, to one thread."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what else runs on this machine out of what a run says."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Run the code as users do, without the checks of shapes and types that the tests add."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def largest_file() -> Callable[[int], AbstractContextManager[None]]:
    """Return a context in which the system refuses to write beyond some bytes of a file, as a full disk does."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Path]:
    """Be a user who may not write in the folder that is returned, nor read it, even where the tests are run by root."""
    tmp_path.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield tmp_path
        os.seteuid(0)
    else:
        yield tmp_path
    tmp_path.chmod(0o700)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Return a folder with train (8) and val (4) images of three classes, each noise around a colour."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    root = tmp_path / "images"
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in zip(CLASSES, ((40, 60, 200), (40, 190, 60), (200, 50, 40)), strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = generator.integers(-30, 31, (32, 40, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{number}.jpg", quality=90)
    return root


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Path:
    """Return the weight file of an untrained tiny TNT for the classes of `image_folder`."""
    return save_tiny(tmp_path)
