"""What is published installs and works: the wheel and the sdist, from a clean environment outside of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "vitrail"


def done(*words: object, cwd: Path) -> str:
    """Run a command to its end, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ran = subprocess.run([str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the wheel and the sdist of the files that git knows."""
    if shutil.which("uv") is None or shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs uv, git and the repository")
    folder = tmp_path_factory.mktemp("release")
    source = folder / "source"
    for name in done("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    done("uv", "build", "--quiet", "--out-dir", folder / "dist", cwd=source)
    return folder / "dist"


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {
        path.relative_to(ROOT / "src").as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in inside if not name.endswith("/")} == here
    kinds = {Path(name).suffix for name in here}
    assert {".py", ".yaml", ".html", ".cpp"} <= kinds
    notices = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(("LICENSE", "NOTICE"))]
    assert len(notices) == 2


def test_the_sdist_has_the_package_and_no_tests_or_caches(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = ["/".join(Path(name).parts[1:]) for name in tar.getnames()]
    assert "src/vitrail/recipes/digits.yaml" in names
    assert "pyproject.toml" in names
    folders = {name.split("/", 1)[0] for name in names if "/" in name}
    assert folders == {"src"}


def test_the_installed_wheel_runs_the_quickstart_outside_of_the_repository(dist: Path, tmp_path: Path) -> None:
    # dependencies are those of the environment that tests, as installing torch again would take minutes
    (wheel,) = dist.glob("*.whl")
    environment = tmp_path / "clean"
    done("uv", "venv", "--quiet", "--python", sys.executable, environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    done("uv", "pip", "install", "--quiet", "--no-deps", "--python", python, wheel, cwd=tmp_path)
    site = Path(done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = done(python, "-c", "import vitrail; print(vitrail.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(environment)

    vitrail = environment / "bin" / "vitrail"
    done(vitrail, "train", "train.epochs=1", "schedule.warmup_epochs=0", "data.workers=0", cwd=tmp_path)
    weights = "runs/digits/best.safetensors"
    assert "top-1" in done(vitrail, "evaluate", weights, "data.workers=0", cwd=tmp_path)
    assert "digits-00003.png" in done(vitrail, "predict", weights, "runs/digits/digits-00003.png", cwd=tmp_path)
    assert "tnt_s_patch16_224" in done(vitrail, "models", "tnt_s*", cwd=tmp_path)
