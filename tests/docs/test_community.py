"""Files for those who cite, report or contribute are whole, and agree with the package."""

import json
import re
from pathlib import Path

import pytest
import yaml

import lightning_zico

ROOT = Path(__file__).parents[2]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == lightning_zico.__version__
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"\ncopyright: lightning_zico {lightning_zico.__version__}," in site


@pytest.mark.parametrize("path", [path for path in FORMS if path.name != "config.yml"], ids=lambda path: path.stem)
def test_issue_forms_ask_for_something(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert all(part["attributes"]["label"] and part["id"] for part in fields)
    assert any(part.get("validations", {}).get("required") for part in fields)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_links_and_targets_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all((ROOT / link).exists() for link in re.findall(r"\]\((?!https?://)([^)]+)\)", text))
    assert all(f"\n{target}:" in makefile for target in re.findall(r"^make (\S+)", text, re.MULTILINE))


def test_the_containers_run_targets_of_the_makefile() -> None:
    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    container = (ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
    settings = json.loads(re.sub(r"^\s*//.*", "", container, flags=re.MULTILINE))
    build = settings["build"]
    assert f"AS {build['target']}\n" in docker
    assert all(f"ARG {name}" in docker for name in build["args"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(
        r"make (\S+)", "\n".join([*re.findall("^(?:RUN|#).*", docker, re.M), settings["postCreateCommand"]])
    )
    assert len(targets) == 4
    assert all(f"\n{target}:" in makefile for target in targets)


def test_hooks_before_a_commit_are_those_of_make_check() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ncheck:")[2].partition("\n\n")[0]
    for hook in local["hooks"]:
        program, *rest = hook["entry"].removeprefix(".venv/bin/").split()
        assert " ".join([f"$(BIN)/{program}", *rest[:1]]).removesuffix(" --fix") in makefile


def test_the_workflow_runs_targets_of_the_makefile_on_every_python_of_the_classifiers() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    matrix = jobs["test"]["strategy"]["matrix"]
    targets = {"check", *matrix["target"], *(each["target"] for each in matrix["include"])}
    assert {"check", "test-oldest", "test-newest"} == targets
    targets |= {*jobs["weekly"]["strategy"]["matrix"]["target"]}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', metadata) == matrix["python"]
    assert f'requires-python = ">={matrix["python"][0]}"' in metadata
