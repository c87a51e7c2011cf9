"""Words become files: fetched from real servers, checked, recorded, found again, and refused in one line."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file as save_safetensors

import vitrail
from support.displays import Notebook
from support.weight_files import save, theirs
from support.weights_server import COMMIT, Served, Server, of_hub, serving
from vitrail.display import Quiet
from vitrail.errors import CheckpointError, ConfigError
from vitrail.models.registry import create_model
from vitrail.weights.loading import load_model, open_model
from vitrail.weights.published import resolve
from vitrail.weights.published.catalogue import Published, find_row
from vitrail.weights.published.resolve import fetch, find_origin, locate_weights, resolve_weights
from vitrail.weights.request import LoadRequest

NAME = "71.7_T2T_ViT_7.pth.tar"


def row_of(word: str) -> Published:
    row = find_row(word)
    assert row is not None
    return row


@pytest.fixture(scope="module")
def t2t_vit_7(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a file of the shapes of the published T2T-ViT-7."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("t2t") / "w"
    save(path, {"state_dict_ema": create_model("t2t_vit_7").state_dict()})
    return path.read_bytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of published weights, which is not there yet; downloads are allowed."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in resolve.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def mirror(cache: Path, t2t_vit_7: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return a server that all of the catalogue is fetched from, with T2T-ViT-7."""
    with serving({f"/w/{NAME}": Served(t2t_vit_7)}) as server:
        monkeypatch.setenv("VITRAIL_WEIGHTS_MIRROR", f"{server.url}/w/")
        yield server


def refusal(word: str, **asked: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_model(word, LoadRequest(**asked))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Fetching


def test_weights_are_fetched_once_and_say_where_they_are_from(mirror: Server, cache: Path, t2t_vit_7: bytes) -> None:
    opened = open_model("t2t_vit_7")
    assert opened.record.model == "t2t_vit_7"
    origin = {
        "name": "t2t_vit_7:official",
        "address": f"https://github.com/yitu-opensource/T2T-ViT/releases/download/main/{NAME}",
        "source": f"{mirror.url}/w/{NAME}",
        "sha256": hashlib.sha256(t2t_vit_7).hexdigest(),
    }
    assert opened.account.origin == opened.record.provenance["pretrained"] == origin
    assert open_model("pretrained", LoadRequest(model="t2t_vit_7")).account.origin == origin
    assert find_origin("pretrained", "t2t_vit_7") == origin
    assert mirror.asked(f"/w/{NAME}") == [""]
    assert sorted(path.name for path in cache.iterdir()) == [".vitrail", NAME]
    assert not list((cache / ".vitrail").glob("*.part*"))


def test_model_that_is_loaded_by_name_has_the_weights(mirror: Server, t2t_vit_7: bytes, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(t2t_vit_7)
    expected = load_model(tmp_path / "w", model="t2t_vit_7").state_dict()
    for model in (vitrail.load_model("t2t_vit_7"), vitrail.create_model("t2t_vit_7", pretrained=True)):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_model_is_created_with_another_head_on_published_weights(mirror: Server) -> None:
    with pytest.warns(UserWarning, match="its head is dropped, and that of 5 classes is fresh"):
        model = vitrail.create_model("t2t_vit_7", pretrained="official", num_classes=5, image_size=64)
    assert model.training
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert not vitrail.create_model("t2t_vit_7", num_classes=5, image_size=64).classes
    features = vitrail.create_model("t2t_vit_7", pretrained=True, num_classes=0)
    assert features.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, features.num_features)


def test_cut_download_is_gone_on_with_by_the_next_command(
    mirror: Server, cache: Path, t2t_vit_7: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.files[f"/w/{NAME}"].answers = ["cut 1000000", 404]
    monkeypatch.setattr("time.sleep", lambda _: None)
    wrong = refusal("t2t_vit_7")
    assert wrong.startswith(
        f"t2t_vit_7:official: {NAME} is not here, and cannot be fetched from {mirror.url}/w/{NAME} ("
    )
    assert "the server answers 404 Not Found" in wrong
    assert f"get it from https://github.com/yitu-opensource/T2T-ViT/releases/download/main/{NAME} elsewhere" in wrong
    assert wrong.endswith(f"`vitrail weights add FILE` takes it from anywhere, or put it at {cache / NAME}")
    assert not (cache / NAME).exists()
    assert resolve_weights("t2t_vit_7").read_bytes() == t2t_vit_7
    assert mirror.asked(f"/w/{NAME}")[-1] == "bytes=1000000-"


def test_file_with_another_hash_than_its_name_has_is_not_kept(mirror: Server, cache: Path, t2t_vit_7: bytes) -> None:
    name = "t2t-vit-t-14_8xb64_in1k_20211220-f7378dd5.pth"
    mirror.files[f"/w/{name}"] = Served(t2t_vit_7)
    sha256 = hashlib.sha256(t2t_vit_7).hexdigest()
    assert f"its SHA-256 begins with {sha256[:8]} and not with f7378dd5" in refusal("t2t_vit_t_14:mmpretrain")
    assert not (cache / name).exists()
    assert not list((cache / ".vitrail").glob("*.part*"))


def test_page_that_is_sent_instead_of_the_file_is_not_kept(mirror: Server, cache: Path) -> None:
    mirror.files[f"/w/{NAME}"] = Served(b"<html>please log in</html>", kind="text/html")
    assert refusal("t2t_vit_7") == (
        f"t2t_vit_7:official: what {mirror.url}/w/{NAME} sends is a web page; look what is there, as "
        "VITRAIL_WEIGHTS_MIRROR names it, or unset that"
    )
    assert not (cache / NAME).exists()


@pytest.mark.parametrize("kind", ["zip", "older", "safetensors"])
@pytest.mark.parametrize("says_length", [True, False])
def test_file_that_breaks_off_is_not_kept(
    mirror: Server, cache: Path, tmp_path: Path, kind: str, says_length: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    weights = create_model("t2t_vit_7").state_dict()
    path = tmp_path / "w"
    if kind == "safetensors":
        save_safetensors(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    served = mirror.files[f"/w/{NAME}"] = Served(whole[:3_000_000], etag=None, says_length=says_length)
    wrong = refusal("t2t_vit_7")
    if says_length:
        assert wrong == (
            f"t2t_vit_7:official: {mirror.url}/w/{NAME} is damaged or another file, as it breaks off, or its parts do "
            "not fit together; look what is there, as VITRAIL_WEIGHTS_MIRROR names it, or unset that"
        )
    else:
        assert "it ended after 3,000,000 bytes, which are not the whole file, and the server does not say its" in wrong
    assert not (cache / NAME).exists()
    served.data = whole
    assert resolve_weights("t2t_vit_7").read_bytes() == whole


def test_damaged_file_that_was_put_there_says_what_to_type(mirror: Server, cache: Path, t2t_vit_7: bytes) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(t2t_vit_7[:3_000_000])
    assert refusal("t2t_vit_7") == (
        f"t2t_vit_7:official: {cache / NAME} is damaged or another file, as it breaks off, or its parts do not fit "
        "together; fetch it again: vitrail weights fetch t2t_vit_7:official"
    )
    with pytest.warns(UserWarning, match="do not fit together; it is fetched again"):
        vitrail.fetch_weights("t2t_vit_7:official")
    assert (cache / NAME).read_bytes() == t2t_vit_7


@pytest.mark.thorough
def test_several_threads_and_processes_fetch_once(mirror: Server, cache: Path, t2t_vit_7: bytes) -> None:
    mirror.files[f"/w/{NAME}"].answers = ["wait 1"]
    code = "import vitrail; print(*(one.path for one in vitrail.fetch_weights('t2t_vit_7', progress=False)))"
    environ = {**os.environ}
    others = [
        subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [Notebook() for _ in range(2)]
    threads = [threading.Thread(target=fetch, args=(row_of("t2t_vit_7"), one)) for one in told]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        assert other.communicate()[0] == f"{cache / NAME}\n"
    assert len(mirror.asked(f"/w/{NAME}")) == 1
    notes = [note for one in told for note in one.notes]
    assert notes == ["t2t_vit_7:official: another process fetches it; waiting for that"]


def test_full_disk_is_one_line(mirror: Server, cache: Path, largest_file: Any) -> None:
    with largest_file(1_000_000):
        assert f"{NAME}.part: cannot be written (File too large); free space, or point TORCH_H" in refusal("t2t_vit_7")
    assert not (cache / NAME).exists()


def test_mirror_that_is_no_address_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_WEIGHTS_MIRROR", "/mnt/weights")
    with pytest.raises(ConfigError, match="VITRAIL_WEIGHTS_MIRROR is '/mnt/weights'; it must begin with http:// or"):
        open_model("t2t_vit_7")


@pytest.mark.parametrize(
    ("mirror", "wrong"),
    [
        ("http://joe:secret@127.0.0.1:9/w", "has a user, a password or a query in it, which would be shown"),
        ("joe:secret@127.0.0.1/w", "has a user, a password or a query in it"),
        ("http://joe:sec/ret@127.0.0.1/w", "has a user, a password or a query in it"),
        ("https://127.0.0.1/w?token=secret", "has a user, a password or a query in it"),
        ("http://127.0.0.1/my w", "is 'http://127.0.0.1/my w', which is no address; give one such as https://host"),
        ("http://127.0.0.1/w\xf6lbe", "which is no address"),
        ("http://127.0.0.1:port/w", "which is no address"),
        ("http:///w", "which is no address"),
        ("http://[::1/w", "which is no address"),
    ],
)
def test_mirror_with_secrets_or_blanks_is_refused_at_once(
    cache: Path, mirror: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRAIL_WEIGHTS_MIRROR", mirror)
    with pytest.raises(ConfigError, match=f"VITRAIL_WEIGHTS_MIRROR .*{re.escape(wrong)}") as caught:
        open_model("t2t_vit_7")
    assert "ret" not in str(caught.value).replace("secrets", "")
    assert not cache.exists()


def test_where_a_redirect_led_is_not_recorded(mirror: Server, t2t_vit_7: bytes) -> None:
    mirror.files[f"/w/{NAME}"].answers = ["/cdn/w?signed=secret"]
    mirror.files["/cdn/w"] = Served(t2t_vit_7)
    assert open_model("t2t_vit_7").account.origin["source"] == f"{mirror.url}/w/{NAME}"


# Without a network


@pytest.mark.parametrize("variable", resolve.OFFLINE)
def test_offline_says_what_to_get_and_where_to_put_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    where = f"`vitrail weights add FILE` takes it from anywhere, or put it at {cache}"
    address = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main/71.7_T2T_ViT_7.pth.tar"
    assert refusal("t2t_vit_7") == (
        f"t2t_vit_7:official: {NAME} is not here, and HF_HUB_OFFLINE forbids to fetch it; get it from {address} where "
        f"there is a network: {where}/{NAME}"
    )
    address = "https://huggingface.co/timm/twins_svt_small.in1k/resolve/main/model.safetensors"
    assert f"get it from {address} where there is a network" in refusal("twins_svt_small")
    assert not cache.exists()


def test_address_that_cannot_be_reached_is_told_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setattr("time.sleep", lambda _: None)
    wrong = refusal("t2t_vit_7")
    assert wrong.count("https://") == 1
    assert "get it elsewhere: `vitrail weights add FILE` takes it from anywhere" in wrong


def test_what_takes_a_browser_says_so(cache: Path) -> None:
    assert refusal("twins_svt_small:official") == (
        "twins_svt_small:official: has to be fetched with a browser, from Google Drive, as the README of "
        "https://github.com/Meituan-AutoML/Twins links it; `vitrail weights add FILE` takes it from anywhere, or put "
        f"it at {cache}/twins_svt_small_official.pth"
    )


def test_weights_that_are_here_need_no_network(mirror: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_weights("t2t_vit_7")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("VITRAIL_WEIGHTS_MIRROR")
    mirror.requests.clear()
    assert resolve_weights("t2t_vit_7") == cache / NAME
    assert mirror.requests == []


# What is in the cache


def test_file_that_was_put_there_by_hand_is_taken(cache: Path, t2t_vit_7: bytes) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(t2t_vit_7)
    origin = open_model("t2t_vit_7").account.origin
    assert origin["sha256"] == hashlib.sha256(t2t_vit_7).hexdigest()
    assert "source" not in origin


def test_file_that_changed_since_it_was_fetched_is_refused(mirror: Server, cache: Path) -> None:
    resolve_weights("t2t_vit_7")
    with (cache / NAME).open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"damaged")
    wrong = refusal("t2t_vit_7")
    assert "was changed since it was fetched (its SHA-256 began with" in wrong
    assert wrong.endswith(f"vitrail weights add {cache / NAME} --name t2t_vit_7:official")
    (checked,) = vitrail.verify("t2t_vit_7")
    assert checked.is_whole is False


def test_fetch_replaces_a_file_whose_bytes_changed(mirror: Server, cache: Path, t2t_vit_7: bytes) -> None:
    vitrail.fetch_weights("t2t_vit_7")
    before = (cache / NAME).stat()
    with (cache / NAME).open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"damaged")
    os.utime(cache / NAME, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.warns(UserWarning, match=r"was changed since it was fetched .*; it is fetched again"):
        vitrail.fetch_weights("t2t_vit_7")
    assert (cache / NAME).read_bytes() == t2t_vit_7
    assert len(mirror.asked(f"/w/{NAME}")) == 2
    vitrail.fetch_weights("t2t_vit_7")
    assert len(mirror.asked(f"/w/{NAME}")) == 2


def test_damaged_file_that_cannot_be_fetched_stays(
    mirror: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(b"PK\x03\x04")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="fetch it again: vitrail weights fetch t2t_vit_7:official"):
        vitrail.fetch_weights("t2t_vit_7")
    by_hand = cache / "twins_svt_small_official.pth"
    by_hand.write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"download it again with a browser, .* --name twins_svt_small:official"):
        vitrail.fetch_weights("twins_svt_small:official")
    assert (cache / NAME).exists()


@pytest.mark.parametrize("obstacle", ["folder for the file", "file for a folder"])
def test_what_is_in_the_way_is_named(mirror: Server, cache: Path, obstacle: str) -> None:
    if obstacle == "folder for the file":
        (cache / NAME).mkdir(parents=True)
        wrong = f"{cache / NAME}: is a folder, and the file of t2t_vit_7:official has to be there"
    else:
        cache.parent.parent.mkdir()
        cache.parent.write_text("")
        wrong = f"{cache.parent}: is a file, and the folder of published weights has to be there"
    assert refusal("t2t_vit_7") == f"{wrong}; remove it, or point TORCH_HOME to another folder"


def test_file_that_was_only_touched_is_still_the_same(mirror: Server, cache: Path) -> None:
    resolve_weights("t2t_vit_7")
    os.utime(cache / NAME)
    assert resolve_weights("t2t_vit_7") == cache / NAME


def test_cache_for_reading_alone_is_read(cache: Path, t2t_vit_7: bytes, largest_file: Any) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(t2t_vit_7)
    with largest_file(0):
        assert locate_weights("t2t_vit_7").origin["sha256"] == hashlib.sha256(t2t_vit_7).hexdigest()
    assert not (cache / ".vitrail" / f"{NAME}.json").exists()


def test_damaged_record_is_made_anew(mirror: Server, cache: Path) -> None:
    resolve_weights("t2t_vit_7")
    record = cache / ".vitrail" / f"{NAME}.json"
    kept = json.loads(record.read_text())
    record.write_text("{")
    resolve_weights("t2t_vit_7")
    assert json.loads(record.read_text()) == {**kept, "source": ""}


def test_verify_compares_with_the_recorded_hash(mirror: Server) -> None:
    (checked,) = vitrail.verify("t2t_vit_7")
    assert (checked.path, checked.is_whole) == ("t2t_vit_7", True)
    assert "the SHA-256 that was recorded when it came here" in checked.by


# Which file a word stands for


def test_file_of_that_name_counts_and_that_is_said(
    mirror: Server, t2t_vit_7: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t2t_vit_7").write_bytes(t2t_vit_7)
    opened = open_model("t2t_vit_7", LoadRequest(model="t2t_vit_7"))
    assert opened.account.notes[0] == (
        "t2t_vit_7: the file or folder of that name is taken; pretrained:t2t_vit_7:official are the published weights"
    )
    assert not mirror.requests
    assert open_model("pretrained:t2t_vit_7").account.origin


def test_folder_of_that_name_without_weights_does_not_count(
    mirror: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t2t_vit_7").mkdir()
    assert open_model("t2t_vit_7").account.origin["name"] == "t2t_vit_7:official"
    Path("results").mkdir()
    assert "results: is a folder, not a weight file" in refusal("results")


def test_weights_of_another_model_are_refused(mirror: Server) -> None:
    assert refusal("pretrained:t2t_vit_7", model="tnt_s_patch16_224") == (
        "pretrained:t2t_vit_7: is a t2t_vit_7, not a tnt_s_patch16_224; for that, write pretrained:tnt_s_patch16_224, "
        "or pretrained alone"
    )


@pytest.mark.parametrize("word", ["tnt_s_patch16_225", "twins_svt_smal", "t2t_vit_14_383"])
def test_name_that_is_nearly_one_is_answered_with_it(word: str) -> None:
    assert f"{word}: is no file, and no published weights are called so; did you mean" in refusal(word)


def test_origin_that_is_none_is_told_as_it_was_given(cache: Path) -> None:
    wrong = (
        r"^pretrained='yes': t2t_vit_7 is not published by 'yes'; it is by official, .*; pretrained=True takes the best"
    )
    with pytest.raises(CheckpointError, match=wrong):
        vitrail.create_model("t2t_vit_7", pretrained="yes")
    for given in (True, "yes"):  # nothing is advised that there is not
        none = rf"^pretrained={given!r}: no weights of tnt_ti_patch16_224 are published; .*lists all that there are$"
        with pytest.raises(CheckpointError, match=none):
            vitrail.create_model("tnt_ti_patch16_224", pretrained=given)


def test_empty_name_is_told(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"^a name is empty; `vitrail weights` lists those that there are"):
        vitrail.fetch_weights("")


def test_weights_of_an_origin_are_listed(cache: Path) -> None:
    listed = vitrail.list_weights("mindcv*")
    assert {one.origin for one in listed} == {"mindcv", "mindcv-converted"}


# Hub


@pytest.fixture(scope="module")
def twins() -> bytes:
    """Return model.safetensors of the shapes of timm's Twins-SVT-S."""
    from safetensors.torch import save as encode

    torch.manual_seed(0)
    weights = theirs(create_model("twins_svt_small").state_dict(), "timm", "twins_svt_small")
    return encode({name: tensor.contiguous() for name, tensor in weights.items()})


@pytest.fixture
def hub(cache: Path, tmp_path: Path, twins: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return a stand-in of the Hugging Face Hub that has Twins-SVT-S."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    config = json.dumps({"architecture": "twins_svt_small", "num_classes": 1000}).encode()
    with serving(of_hub("timm/twins_svt_small.in1k", model_safetensors=twins, config_json=config)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield server


def test_weights_of_the_hub_are_fetched_once_at_a_commit_that_is_kept(
    hub: Server, cache: Path, tmp_path: Path, twins: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = open_model("twins_svt_small").account.origin
    assert origin == {
        "name": "twins_svt_small:timm",
        "address": "hf-hub:timm/twins_svt_small.in1k",
        "revision": COMMIT,
        "sha256": hashlib.sha256(twins).hexdigest(),
    }
    asked = len(hub.requests)
    assert open_model("twins_svt_small:timm").account.origin == origin
    assert len(hub.requests) == asked
    shutil.rmtree(tmp_path / "hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids to fetch it" in refusal("twins_svt_small")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert open_model("twins_svt_small").account.origin == origin
    assert hub.requests[-1][1] == f"/timm/twins_svt_small.in1k/resolve/{COMMIT}/model.safetensors"


@pytest.mark.thorough
def test_hub_is_where_its_own_variables_say(hub: Server, cache: Path, tmp_path: Path) -> None:
    code = "import vitrail; print(*(one.path for one in vitrail.fetch_weights('twins_svt_small', progress=False)))"
    environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environ, check=True, capture_output=True, text=True)
    folder = tmp_path / "home/hub/models--timm--twins_svt_small.in1k/snapshots"
    assert done.stdout == f"{folder / COMMIT / 'model.safetensors'}\n"
    assert done.stderr == ""


def test_no_network_is_told_at_once(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://nowhere.invalid")
    assert "cannot be fetched from hf-hub:timm/twins_svt_small.in1k (nowhere.invalid: " in refusal("twins_svt_small")


def test_what_the_library_of_the_hub_logs_is_shown(hub: Server, twins: bytes) -> None:
    path = "/timm/twins_svt_small.in1k/resolve/main/model.safetensors"
    hub.files[path].answers = ["cut 1000000"]
    told = Notebook()
    fetch(row_of("twins_svt_small"), told)
    assert any(note.startswith("twins_svt_small:timm: Error while downloading from http://127.") for note in told.notes)


def test_damaged_file_of_the_hub_is_not_kept(hub: Server, twins: bytes) -> None:
    for path, served in hub.files.items():
        if path.endswith(".safetensors"):
            served.data = twins[:-4] + b"\0\1\0\1"
    assert "is damaged or another file, as its SHA-256 begins with" in refusal("twins_svt_small")
    for served in hub.files.values():
        if len(served.data) == len(twins):
            served.data = twins
    assert open_model("twins_svt_small").account.origin["revision"] == COMMIT


@pytest.mark.parametrize("word", ["twins_svt_small", "hf-hub:timm/twins_svt_small.in1k"])
def test_fetch_replaces_a_damaged_file_of_the_hub(hub: Server, word: str, twins: bytes) -> None:
    (fetched,) = vitrail.fetch_weights(word)
    assert fetched.path is not None
    path = fetched.path if fetched.path.is_file() else fetched.path / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"damaged")
    with pytest.warns(UserWarning, match="it is fetched again"):
        vitrail.fetch_weights(word)
    assert path.read_bytes() == twins


def test_repository_that_is_gone_is_one_line(hub: Server, cache: Path) -> None:
    wrong = refusal("twins_svt_base")
    assert wrong.startswith(
        "twins_svt_base:timm: twins_svt_base.in1k.safetensors is not here, and cannot be fetched from "
    )
    assert wrong.endswith(f"or put it at {cache}/twins_svt_base.in1k.safetensors")
    assert "hf-hub:timm/gone: cannot be downloaded (" in refusal("hf-hub:timm/gone")


def test_any_repository_is_taken_at_a_revision(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    word = f"hf-hub:timm/twins_svt_small.in1k@{COMMIT}"
    opened = open_model(word)
    assert opened.account.origin == {"address": word, "revision": COMMIT}
    assert opened.account.dialect == "official"
    assert find_origin(word) == opened.account.origin
    # what is here needs no network
    open_model("hf-hub:timm/twins_svt_small.in1k")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://nowhere.invalid")
    assert open_model(word).account.origin == opened.account.origin
    assert open_model("hf-hub:timm/twins_svt_small.in1k").account.origin["revision"] == COMMIT
    for word in ("hf-hub:///", "hf-hub:", "hf-hub:a--b..c/d"):
        assert refusal(word) == (
            f"{word}: cannot be downloaded (what follows hf-hub: must be OWNER/NAME, or OWNER/NAME@REVISION); give a "
            "file, or a folder that was downloaded elsewhere"
        )


def test_cut_connection_to_the_hub_is_gone_on_with(hub: Server, twins: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    path = "/timm/twins_svt_small.in1k/resolve/main/model.safetensors"
    hub.files[path].answers = [f"cut {len(twins) // 2}"]
    assert fetch(row_of("twins_svt_small"), Quiet()).stat().st_size == len(twins)
    assert [ranged for ranged in hub.asked(path) if ranged]


# Preprocessing


@pytest.mark.parametrize("word", ["t2t_vit_14_cifar10", "tnt_s:mindcv", "t2t_vit_7"])
def test_images_are_read_as_the_catalogue_says(word: str) -> None:
    row = row_of(word)
    opened = _tiny(row)
    read = opened.record.preprocess
    for key, value in row.preprocess.items():
        assert getattr(read, key) == value
    located = resolve.Located(path=Path("x"), row=replace(row, preprocess={"crop": 0.5}), origin={"name": "x"})
    assert located.describe(opened).record.preprocess.crop == 0.5


def _tiny(row: Published) -> Any:
    """Return a small model as a project would have it, read as the catalogue says nothing of it."""
    import tempfile

    from support.weight_files import tiny, tiny_options

    model = tiny(row.model, num_classes=row.num_classes)
    weights = theirs(model.state_dict(), row.dialect, row.model)
    content = {"net": weights} if row.num_classes != 1000 else weights
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder) / "w.pth", content)
        request = LoadRequest(model=row.model, dialect=row.dialect, options=tiny_options(row.model))
        return open_model(path, request)
