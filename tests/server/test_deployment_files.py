"""The files of docs/deploy/: clients asked of a real server, and commands and paths that exist."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from support.serving import Server, encoded, start
from support.tiny_model import save_tiny
from vitrail.cli.app import app
from vitrail.server.app import PATHS
from vitrail.weights.loading import load_model

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
KEY = "a-key-that-nobody-guesses"
CLIENTS = {"client.py": sys.executable, "client.mjs": "node", "client.sh": "sh"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path, list[Path], str]]:
    """Return a server that wants a key, its model, two images, and what the first is."""
    folder = tmp_path_factory.mktemp("deployed")
    checkpoint = save_tiny(folder)
    images = [folder / "good image.png", folder / "broken.png"]
    images[0].write_bytes(encoded(Image.new("RGB", (50, 40), (200, 50, 40)), "PNG"))
    images[1].write_bytes(b"broken")
    model = load_model(checkpoint)
    logits = model(model.preprocess(images[0]).unsqueeze(0))
    assert model.classes is not None
    server = start(checkpoint, VITRAIL_API_KEY=KEY)
    yield server, checkpoint, images, model.classes[int(logits.argmax())]
    server.process.kill()


def run_client(name: str, server: Server, *images: Path, key: str = KEY) -> subprocess.CompletedProcess[str]:
    program = CLIENTS[name]
    if shutil.which(program) is None or (name == "client.sh" and shutil.which("curl") is None):
        pytest.skip(f"{program} or curl is not installed")
    words = [program, str(DEPLOY / name), server.url, *map(str, images)]
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "VITRAIL_API_KEY": key}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["client.py", "client.mjs"])
def test_a_client_prints_classes_or_the_reason(name: str, served: tuple[Server, Path, list[Path], str]) -> None:
    server, _, images, best = served
    done = run_client(name, server, *images)
    assert done.returncode == 0, done.stderr
    good, bad = done.stdout.splitlines()
    assert good.startswith(f"{images[0]} {best} 0.")
    assert bad.split()[:8] == [str(images[1]), *["not", "an", "image", "of", "a", "known", "format;"]]
    assert "the API key is wrong" in run_client(name, server, images[0], key="wrong").stdout


@pytest.mark.parametrize("name", ["client.py", "client.mjs"])
def test_a_client_prints_all_labels_of_a_model_that_gives_any_number(name: str, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(encoded(Image.new("RGB", (50, 40), (200, 50, 40)), "PNG"))
    for thresholds, wanted in (((0.0, 0.0, 1.0), ["blue", "green"]), ((1.0, 1.0, 1.0), ["no"])):
        server = start(save_tiny(tmp_path, thresholds=thresholds), VITRAIL_API_KEY=KEY)
        done = run_client(name, server, image)
        server.process.kill()
        assert done.returncode == 0, done.stderr
        words = done.stdout.removeprefix(f"{image} ").split(", ")
        assert sorted(word.split()[0] for word in words) == wanted


def test_curl_sends_all_images_at_once(served: tuple[Server, Path, list[Path], str]) -> None:
    server, _, images, best = served
    done = run_client("client.sh", server, *images)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert results[0]["topk"][0]["name"] == best
    assert results[1]["error"].startswith("not an image of a known format; read are JPEG, PNG")
    wrong = run_client("client.sh", server, images[0], key="wrong")
    assert wrong.returncode == 22
    assert "the API key is wrong" in wrong.stdout


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_is_short(name: str) -> None:
    assert len((DEPLOY / name).read_text().splitlines()) <= 30


def understood(words: list[str]) -> dict[str, Any]:
    """Return what the command line makes of `vitrail WORDS`."""
    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert command.__name__ == "serve"
    return bound.arguments


def test_the_image_copies_what_exists_and_runs_a_command_that_is_understood() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert name == "model" or (ROOT / name).exists(), name
    words = {line.split()[0]: line.partition(" ")[2] for line in lines if line and not line.startswith("#")}
    entry = json.loads(words["ENTRYPOINT"]) + json.loads(words["CMD"])
    assert entry[0] == "vitrail"
    assert understood(entry[1:])["host"] == "0.0.0.0"
    assert words["USER"] != "root"
    health = re.search(r"127\.0\.0\.1:(\d+)(/\w+)", words["HEALTHCHECK"])
    assert health is not None
    assert (health[1], health[2] in PATHS) == (words["EXPOSE"], True)
    extras = re.search(r"\.\[([\w,]+)\]", "".join(lines))
    assert extras is not None
    assert "serve" in extras[1].split(",")


def test_the_service_runs_a_command_that_is_understood(tmp_path: Path) -> None:
    text = (DEPLOY / "vitrail.service").read_text()
    start = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    stop = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert start is not None
    assert stop is not None
    assert understood(shlex.split(start[1])[1:])["api_key_file"] == Path("%d/key")
    assert int(stop[1]) > 30  # --timeout-s
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed, which would look at the rest")
    unit = tmp_path / "vitrail.service"
    unit.write_text(text.replace("/opt/vitrail/bin/vitrail", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert "vitrail.service" not in done.stderr, done.stderr


def test_the_manifest_asks_what_the_server_answers() -> None:
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in PATHS
        assert asked["port"] in ports
    assert service["spec"]["ports"][0]["targetPort"] in ports
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > before + 30  # --timeout-s
    names = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert {"VITRAIL_API_KEY", "OMP_NUM_THREADS"} <= names.keys()
    assert int(names["OMP_NUM_THREADS"]) == container["resources"]["limits"]["cpu"]
    served = understood(["serve", *container["args"]])
    assert served["artifact"] == Path("/model/best.onnx")
    name, namespace = service["metadata"]["name"], "default"
    assert served["host_name"] == [name, f"{name}.{namespace}.svc.cluster.local"]
