"""What belongs to a release beside the code: how to cite it, and what a report of a fault asks for."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path

import yaml

from vitrail.cli.app import app
from vitrail.models.registry import FAMILIES

ROOT = Path(__file__).parents[1]


def test_the_citation_has_this_version_and_the_paper_of_each_family() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["cff-version"], citation["license"]) == ("1.2.0", project["license"])
    assert citation["version"] == project["version"]
    assert {one["url"] for one in citation["references"]} == {family.paper for family in FAMILIES}


def test_the_form_for_faults_asks_for_a_command_that_there_is() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "fault.yml").read_text())
    asked = {field["id"]: field for field in form["body"]}
    assert all(field["validations"]["required"] for field in asked.values())
    program, *words = shlex.split(asked["machine"]["attributes"]["value"])
    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert (program, command.__name__, bound.arguments) == ("vitrail", "doctor", {"json_file": Path("doctor.json")})
