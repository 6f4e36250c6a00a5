"""What the documents name is there: files, links, verbs, make targets."""

import re
from pathlib import Path

import pytest

from slimp import verbs

DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
ROOTS = "bundle|cohort|index|training|export|service|slimp|configs|benchmarks|tests|docs"
PATH = re.compile(rf"`((?:{ROOTS})/[\w./-]*)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
VERB = re.compile(r"(?:^ {4}|`)slimp ([a-z]+)\b", re.MULTILINE)
TARGET = re.compile(r"(?:^ {4}|`)make ([a-z]+)\b", re.MULTILINE)


@pytest.fixture(params=DOCUMENTS)
def text(request: pytest.FixtureRequest, project: Path) -> str:
    """One document."""
    path: str = request.param
    return (project / path).read_text(encoding="utf-8")


def test_every_path_and_link_of_a_document_exists(text: str, project: Path) -> None:
    named = PATH.findall(text) + LINK.findall(text)
    assert named
    assert [name for name in named if not (project / name).exists()] == []


def test_every_verb_and_make_target_of_a_document_exists(text: str, project: Path) -> None:
    assert set(VERB.findall(text)) - verbs.ALL.keys() - verbs.GROUPS.keys() == set()
    makefile = (project / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(TARGET.findall(text)) - targets == set()


def test_constraints_name_versions_and_nothing_else(project: Path) -> None:
    lines = (project / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 50
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    assert "torch==2.13.0" in pins


def test_only_this_machine_reaches_the_composed_service(project: Path) -> None:
    compose = (project / "docker-compose.yml").read_text(encoding="utf-8")
    published = re.findall(r'^ +- "([^"]*:\d+)"$', compose, re.MULTILINE)
    assert published == [
        "${SLIMP_PUBLISH:-127.0.0.1}:${SLIMP_PORT:-8000}:8000",
        "127.0.0.1:${SLIMP_GRAFANA_PORT:-3000}:3000",
    ]
    # The service is told where it is published, and refuses to be open to other machines.
    assert "SLIMP_PUBLISH: ${SLIMP_PUBLISH:-127.0.0.1}" in compose
    assert "SLIMP_AUTH: ${SLIMP_AUTH:-off}" in compose
