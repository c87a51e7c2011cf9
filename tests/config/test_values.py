"""Values of settings: read by their type, or refused with what they must be."""

import datetime

import pytest
import yaml

from support.settings import problem, settings


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("train.epochs=1.5", "'1.5'; it must be a whole number"),
        ("train.epochs=many", "'many'; it must be a whole number"),
        ("train.epochs=true", "'true'; it must be a whole number"),
        ("train.epochs=null", "'null'; it must be a whole number"),
        ("data.workers=two", "'two'; it must be a whole number, or null"),
        ("optim.lr=fast", "'fast'; it must be a number"),
        ("optim.lr=true", "'true'; it must be a number"),
        ("optim.lr=null", "'null'; it must be a number"),
        ("optim.lr=[1]", "'[1]'; it must be a number"),
        ("optim.lr={a: 1}", "'{a: 1}'; it must be a number"),
        ("optim.lr=.nan", "'.nan'; it must be a finite number"),
        ("optim.lr=nan", "'nan'; it must be a finite number"),
        ("optim.lr=.inf", "'.inf'; it must be a finite number"),
        ("ema.decay=-inf", "'-inf'; it must be a finite number, or null"),
        ("ema.decay=off", "'off'; it must be a number, or null"),
        ("optim.nesterov=1", "'1'; it must be true or false"),
        ("optim.nesterov=nope", "'nope'; it must be true or false"),
        ("optim.name=adam", "'adam'; it must be one of adamw, sgd, lamb, lion, adan, muon; did you mean 'adamw'?"),
        ("optim.name=7", "'7'; it must be one of adamw, sgd, lamb, lion, adan, muon"),
        ("data.bits=10bit", "'10bit'; it must be one of 8, 16"),
        ("schedule.name=zzz", "'zzz'; it must be one of cosine, linear, step, exponential, constant"),
        ("preprocess.resize=pad", "'pad'; it must be one of crop, squash, letterbox, or null"),
        ("preprocess.exif=rotate", "'rotate'; it must be one of ignore, apply, or null"),
        ("augment.scale=0.9", "'0.9'; it must be a list of 2 numbers such as [0.5, 0.5]"),
        ("augment.scale=[0.9]", "'[0.9]'; it must be a list of 2 numbers such as [0.5, 0.5]"),
        ("augment.scale=[0.9, 0.9, 0.9]", "'[0.9, 0.9, 0.9]'; it must be a list of 2 numbers such as [0.5, 0.5]"),
        ("augment.scale=[0.9, high]", "'[0.9, high]'; it must be a number"),
        ("optim.betas=0.9", "'0.9'; it must be a list such as [number], or null"),
        ("optim.betas=[0.9, high]", "'[0.9, high]'; it must be a number, or null"),
        ("preprocess.mean=0.5", "'0.5'; it must be a list such as [number], or null"),
        ("model.image_size=large", "'large'; it must be a whole number, or a list of 2 numbers, or null"),
        ("model.image_size=[224]", "'[224]'; it must be a whole number, or a list of 2 numbers, or null"),
        ("model.options=3", "'3'; it must be a mapping of names to values"),
    ],
)
def test_wrong_type_says_what_it_was_and_what_it_must_be(token: str, expected: str) -> None:
    assert problem(token) == f"command line: {token.partition('=')[0]} is {expected}"


def test_a_key_below_a_number_is_told_that_a_number_belongs_there() -> None:
    assert problem("optim.lr.peak=1") == "command line: optim.lr is {'peak': '1'}; it must be a number"


def test_a_literal_that_is_far_from_all_choices_gets_no_suggestion() -> None:
    assert "did you mean" not in problem("schedule.name=zzz")


def test_text_that_looks_like_an_impossible_date_is_text() -> None:
    assert settings("output.name=2025-02-30").output.name == "2025-02-30"


def test_text_that_looks_like_a_date_is_text() -> None:
    assert settings("output.name=2025-02-28").output.name == "2025-02-28"
    assert isinstance(yaml.safe_load("2025-02-28"), datetime.date)


@pytest.mark.parametrize("name", ["007", "12:34", "1_000", "1.50"])
def test_text_that_looks_like_a_number_stays_as_written(name: str) -> None:
    assert settings(f"output.name={name}").output.name == name


def test_text_after_a_number_sign_is_kept() -> None:
    assert settings("data.root=photos #2").data.root == "photos #2"


def test_number_too_large_for_a_float_is_refused() -> None:
    problem("optim.lr=1" + "0" * 400)
