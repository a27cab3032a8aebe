"""The version is one, wherever it is told."""

import re
from importlib import metadata
from pathlib import Path

import crashsim

ROOT = Path(__file__).parents[1]


def test_the_version_is_told_once_and_the_same():
    version = crashsim.__version__
    assert metadata.version("crashsim") == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"{{{version}}}" in (ROOT / "docs/about/citing.md").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^dynamic = \[\"version\"\]$", (ROOT / "pyproject.toml").read_text(), re.M)
