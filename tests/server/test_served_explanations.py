"""Explanations over HTTP: those of `vitrail explain`, few at a time, between predictions, and the page of them."""

from __future__ import annotations

import asyncio
import io
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vitrail
from support.chromium import CHROMIUM, Page
from support.serving import FORM, Server, encoded, form, start
from support.tiny_model import fill_head, save_tiny
from vitrail.explanation import perturbation
from vitrail.explanation.explainer import NOT_FINITE
from vitrail.explanation.perturbation import AT_ONCE, STEPS, count_squares
from vitrail.inference.predictor import Predictor, open_predictor
from vitrail.server.explanations import Explanations, Question
from vitrail.server.metrics import Metrics
from vitrail.server.settings import Limits, Serving
from vitrail.server.upload import Refused

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
PHOTO = encoded(Image.fromarray(PIXELS), "PNG")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("explained"))


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Server]:
    running = start(checkpoint, "--max-explanations", 1)
    yield running
    running.process.kill()


def explained(server: Server, query: str = "") -> dict[str, Any]:
    status, found, headers = server.ask("POST", f"/explain{query}", PHOTO, content_type="image/png")
    assert status == 200, found
    assert headers["cache-control"] == "no-store"
    return found


@pytest.mark.parametrize(
    ("query", "arguments"),
    [
        ("", {}),
        ("?class=green", {"class_name": "green"}),
        ("?class=0&method=rollout", {"class_name": "0", "method": "rollout"}),
        ("?method=occlusion", {"method": "occlusion"}),
        ("?method=integrated-gradients&class=red", {"class_name": "red", "method": "integrated-gradients"}),
    ],
)
def test_maps_are_those_of_explain(
    server: Server, checkpoint: Path, tmp_path: Path, query: str, arguments: dict[str, Any]
) -> None:
    (tmp_path / "photo.png").write_bytes(PHOTO)
    (expected,) = vitrail.explain(checkpoint, tmp_path / "photo.png", **arguments, device="cpu", progress=False)
    predicted = server.send(PHOTO)[1]["results"][0]["topk"]
    found = explained(server, query)
    assert found["method"] == expected.method
    assert [choice["class"] for choice in found["topk"]] == [choice["class"] for choice in predicted]
    for ours, theirs in zip(found["topk"], predicted, strict=True):
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
    assert found["explained"]["name"] == expected.classes[0].name
    assert [one["level"] for one in found["maps"]] == list(expected.maps)
    for one in found["maps"]:
        values = np.load(io.BytesIO(b64decode(one["values"])))
        np.testing.assert_allclose(values, expected.maps[one["level"]][0], atol=1e-5)
        assert values.shape == (one["height"], one["width"])
        assert (values.min(), values.max()) == (pytest.approx(one["least"]), pytest.approx(one["largest"]))
        with Image.open(io.BytesIO(b64decode(one["image"]))) as image:
            assert (image.mode, image.size) == ("RGBA", (one["width"], one["height"]))
            opacity = np.asarray(image)[:, :, 3]
        strengths = np.abs(values) if found["is_signed"] else values
        assert opacity.flat[strengths.argmax()] == 255
    with Image.open(io.BytesIO(b64decode(found["view"]))) as view:
        model = vitrail.load_model(checkpoint)
        assert model.preprocess is not None
        seen = open_predictor(checkpoint, device="cpu").preprocess.view(torch.from_numpy(PIXELS).permute(2, 0, 1))
        np.testing.assert_array_equal(np.asarray(view), seen.permute(1, 2, 0).numpy())


THREE = "it has blue, green, red"
REFUSALS = [
    ("?class=gren", PHOTO, 400, "class='gren': this model has no such class; did you mean 'green'? It has blue"),
    ("?class=3", PHOTO, 400, f"class='3': this model has no such class; {THREE}"),
    ("?class=%E2%80%AE", PHOTO, 400, rf"class='\u202e': this model has no such class; {THREE}"),
    ("?method=rolout", PHOTO, 400, "method='rolout': unknown; did you mean 'rollout'? There are: rollout, gradient"),
    ("?clas=red", PHOTO, 400, "'clas': unknown; did you mean 'class'? There are: class, method"),
    ("?class=red&class=blue", PHOTO, 400, "class and method are given at most once each"),
    ("", b"no image", 422, "not an image of a known format"),
    ("", b"", 400, "the request holds no image"),
]


@pytest.mark.parametrize(("query", "body", "status", "reason"), REFUSALS, ids=[reason for *_, reason in REFUSALS])
def test_what_cannot_be_explained_gets_the_reason(
    server: Server, query: str, body: bytes, status: int, reason: str
) -> None:
    got, found, headers = server.ask("POST", f"/explain{query}", body)
    assert (got, list(found)) == (status, ["error"])
    assert found["error"].startswith(reason)
    assert "retry-after" not in headers
    server.until_empty()


def test_a_form_of_one_file_is_taken_and_of_two_is_not(server: Server) -> None:
    assert server.ask("POST", "/explain", form(PHOTO), content_type=FORM)[0] == 200
    status, found, _ = server.ask("POST", "/explain", form(PHOTO, PHOTO), content_type=FORM)
    assert (status, found["error"]) == (413, "the request has more than 1 file")
    assert server.ask("GET", "/explain")[:2] == (
        405, {"error": "GET is not answered here; this path takes POST"}
    )  # fmt: skip


def test_more_explanations_than_are_held_are_told_to_come_again(server: Server) -> None:
    refused = server.measure('vitrail_requests_total{path="/explain",status="429"}')
    with ThreadPoolExecutor(6) as pool:
        ask = lambda _: server.ask("POST", "/explain?method=occlusion", PHOTO)  # noqa: E731
        answers = list(pool.map(ask, range(6)))
        prediction = server.send(PHOTO)
    statuses = [status for status, *_ in answers]
    assert prediction[0] == 200
    assert set(statuses) == {200, 429}
    _, found, headers = answers[statuses.index(429)]
    assert found["error"] == "too many explanations are waiting; try again later"
    assert int(headers["retry-after"]) >= 1
    assert server.measure('vitrail_requests_total{path="/explain",status="429"}') == refused + statuses.count(429)
    assert server.measure("vitrail_explanation_seconds_count") > 0
    assert server.measure("vitrail_held_explanations") == 0
    assert server.measure('vitrail_images_total{outcome="explained"}') > 0
    server.until_empty()


@pytest.mark.thorough
def test_an_exported_file_has_occlusion_alone(checkpoint: Path, tmp_path: Path) -> None:
    exported = tmp_path / "best.torchscript"
    vitrail.export(checkpoint, format="torchscript", output=exported, progress=False)
    answering = start(exported)
    found = explained(answering)
    assert (found["method"], found["is_signed"], [one["level"] for one in found["maps"]]) == (
        "occlusion",
        True,
        ["pixels"],
    )
    status, refused, _ = answering.ask("POST", "/explain?method=rollout", PHOTO)
    assert (status, refused["error"]) == (
        400,
        "method=rollout: this model is an exported file, which has answers and neither gradients nor attention; take "
        "occlusion, or give the weight file",
    )
    assert "rollout" not in answering.ask("GET", "/")[1]["text"]
    answering.process.kill()


def test_a_server_that_explains_nothing_says_so(checkpoint: Path) -> None:
    answering = start(checkpoint, "--max-explanations", 0)
    status, found, _ = answering.ask("POST", "/explain", PHOTO)
    assert (status, found) == (404, {"error": "nothing is here; /openapi.json says what there is"})
    assert "/explain" not in answering.ask("GET", "/openapi.json")[1]["paths"]
    assert "<code>/explain</code>" not in answering.ask("GET", "/")[1]["text"]
    answering.process.kill()


def test_labels_of_a_multi_label_model_and_logits_that_overflow(tmp_path: Path) -> None:
    several = save_tiny(tmp_path, thresholds=(0.999, 0.999, 0.999))
    answering = start(several)
    found = explained(answering)
    assert found["labels"] == []
    assert found["explained"]["probability"] < 0.999
    assert "topk" not in found
    answering.process.kill()
    fill_head(several, 3e38)
    answering = start(several)
    status, found, _ = answering.ask("POST", "/explain", PHOTO)
    assert (status, found) == (422, {"error": NOT_FINITE})
    answering.process.kill()


# What follows needs no server.

SERVING = Serving(max_explanations=2, limits=Limits(timeout_s=5))
VIEW = torch.zeros(3, 32, 32, dtype=torch.uint8)


def explaining(
    predictor: Predictor, test: Callable[[Explanations, ThreadPoolExecutor], Any], serving: Serving = SERVING
) -> None:
    """Run a test with explanations of a predictor."""

    async def run() -> None:
        with ThreadPoolExecutor(1) as engine:
            metrics = Metrics(lambda: 0, lambda: 0)
            explanations = Explanations(predictor, engine, serving, metrics)
            running = asyncio.create_task(explanations.run())
            await test(explanations, engine)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


def slowed(checkpoint: Path, seconds: float) -> tuple[Predictor, list[int]]:
    """Return what answers as an exported file does, slowly, and a list that grows with the images of each call."""
    predictor = open_predictor(checkpoint, device="cpu")
    network, calls = predictor.network, []

    def run(images: Tensor) -> Tensor:
        time.sleep(seconds)
        calls.append(len(images))
        return network.run(images)

    return replace(predictor, network=replace(network, run=run, model=None)), calls


OCCLUSION = Question("occlusion", ())


def test_predictions_have_their_turn_between_the_answers_of_an_explanation(checkpoint: Path) -> None:
    predictor, calls = slowed(checkpoint, 0.02)

    async def test(explanations: Explanations, engine: ThreadPoolExecutor) -> None:
        explaining = asyncio.create_task(explanations.explain(VIEW, OCCLUSION, ("a", "1")))
        while len(calls) < 3 and not explaining.done():
            await asyncio.sleep(0.001)
        for _ in range(5):
            before = len(calls)
            await asyncio.wrap_future(engine.submit(lambda: None))
            assert len(calls) - before <= 2
        assert not explaining.done()
        await explaining

    explaining(predictor, test)
    assert max(calls) <= AT_ONCE
    assert sum(calls) == pytest.approx(count_squares(32, 32), abs=AT_ONCE)


def test_an_explanation_that_nobody_waits_for_ends_and_frees_its_place(checkpoint: Path) -> None:
    predictor, calls = slowed(checkpoint, 0.02)

    async def test(explanations: Explanations, engine: ThreadPoolExecutor) -> None:
        explaining = asyncio.create_task(explanations.explain(VIEW, OCCLUSION, ("a", "1")))
        while not calls and not explaining.done():
            await asyncio.sleep(0.001)
        explaining.cancel()
        await asyncio.gather(explaining, return_exceptions=True)
        assert explanations.room.images == 0
        await asyncio.sleep(0.1)
        before = len(calls)
        await asyncio.sleep(0.1)
        assert len(calls) == before

    explaining(predictor, test)


def test_an_address_that_holds_all_places_gives_one_up(checkpoint: Path) -> None:
    predictor, _ = slowed(checkpoint, 0.005)

    async def test(explanations: Explanations, engine: ThreadPoolExecutor) -> None:
        much = [asyncio.create_task(explanations.explain(VIEW, OCCLUSION, ("much", str(n)))) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="too many explanations are waiting"):
            await explanations.explain(VIEW, OCCLUSION, ("much", "2"))
        assert (await explanations.explain(VIEW, OCCLUSION, ("little", "1"))).method == "occlusion"
        first, last = await asyncio.gather(*much, return_exceptions=True)
        assert not isinstance(first, BaseException)
        assert isinstance(last, Refused)
        assert (last.status, last.reason) == (429, "too many explanations are waiting; try again later")

    explaining(predictor, test)


def test_an_explanation_that_would_take_too_long_is_refused_early(checkpoint: Path) -> None:
    predictor, calls = slowed(checkpoint, 0.1)

    async def test(explanations: Explanations, engine: ThreadPoolExecutor) -> None:
        with pytest.raises(Refused) as caught:
            await explanations.explain(VIEW, OCCLUSION, ("a", "1"))
        assert caught.value.status == 503
        assert caught.value.reason.startswith("the explanation asks the model for 225 answers, which takes about ")
        assert caught.value.reason.endswith(
            " s here, and this server answers within 0.5 s; ask for a method of one pass, which a weight file has, or "
            "start it with a longer timeout_s"
        )

    explaining(predictor, test, replace(SERVING, limits=Limits(timeout_s=0.5)))
    assert len(calls) < 6


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (224, 224), (9, 50), (2, 2)])
def test_as_many_squares_are_counted_as_are_covered(size: tuple[int, int]) -> None:
    answered = []

    def answer(images: Tensor) -> Tensor:
        answered.append(len(images))
        return images.mean((1, 2, 3))[:, None].expand(-1, 2)

    perturbation.occlude(answer, torch.ones(1, 1, *size), torch.tensor([0]))
    assert sum(answered) == count_squares(*size) + 1  # the image itself
    answered.clear()
    perturbation.integrate_gradients(answer, torch.ones(1, 1, *size), torch.tensor([0]))
    assert sum(answered) == STEPS


def test_a_package_that_is_missing_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturbation, "find_spec", lambda name: None)

    async def test(explanations: Explanations, engine: ThreadPoolExecutor) -> None:
        with pytest.raises(Refused, match="need captum, which is not installed") as caught:
            await explanations.explain(VIEW, OCCLUSION, ("a", "1"))
        assert caught.value.status == 501

    explaining(open_predictor(checkpoint, device="cpu"), test)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_lays_the_map_over_the_picture(server: Server, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(PHOTO)
    with Page() as page:
        page.resize(1200, 900)
        page.open(server.url)
        page.choose("#files", [tmp_path / "photo.png"])
        page.until("document.querySelector('.rests') !== null")
        page.press("Tab")  # from the field of files, which has the focus after a reload
        page.press("Tab")
        assert page.ask("document.activeElement.className") == "rests"
        page.type_enter()
        shown = "document.querySelector('.stack .map')?.naturalWidth"
        page.until(f"{shown} === 8")
        assert page.ask("document.activeElement.parentElement.innerText").startswith("Class")
        best = page.ask("document.querySelector('.answer-of h2').textContent")
        assert page.ask("document.querySelector('.stack').ariaLabel") == (
            f"Map of words for {best}, by gradient-attention, over the image as the model saw it"
        )
        # every control has a name, and the keyboard reaches and moves it
        unnamed = "[...document.querySelectorAll('.controls :is(input, select)')].filter(one => !one.labels.length)"
        assert page.ask(f"{unnamed}.length") == 0
        page.press("Tab")
        page.press("Tab")
        assert page.ask("document.activeElement.value") == "words"
        page.press("ArrowUp")
        page.until(f"{shown} === 2")
        page.press("Tab")
        before = page.ask("document.activeElement.value")
        page.press("ArrowLeft")
        after = page.ask("document.activeElement.value")
        assert int(after) == int(before) - 5
        assert page.ask("document.querySelector('.map').style.opacity") == f"{int(after) / 100:g}"
        assert page.ask("document.querySelector('output').textContent") == f"{after} %"
        # another class and another method keep the level where there is one
        page.ask(change("[...document.querySelectorAll('select')][0]", "green"))
        page.until("document.querySelector('.stack').ariaLabel.startsWith('Map of sentences for green')")
        page.ask(change("[...document.querySelectorAll('select')][1]", "grad-cam"))
        page.until("document.querySelector('.stack').ariaLabel.includes('by grad-cam')")
        assert page.ask("document.querySelector('.scale i').className") == "signed"
        for width in (1200, 390):
            page.resize(width, 844, is_phone=width == 390)
            assert page.ask(f"document.documentElement.scrollWidth <= {width}")
        assert page.complaints == []
        # what is refused leaves the map, and the controls that say of what it is
        page.ask("document.querySelector('select').append(new Option('gone'))")
        page.ask(change("document.querySelector('select')", "gone"))
        page.until("document.querySelector('.controls .problem').textContent.includes('has no such class')")
        chosen = "[...document.querySelectorAll('select')].map(one => one.value)"
        assert page.ask(chosen) == ["green", "grad-cam"]
    server.until_empty()


def change(element: str, value: str) -> str:
    return f"{{ const one = {element}; one.value = '{value}'; one.dispatchEvent(new Event('change')); }}"
