"""``crashsim doctor`` against installations in which something is wrong."""

from importlib import metadata

import pytest
from typer.testing import CliRunner

from crashsim.cli.program import app


@pytest.fixture
def wanted(monkeypatch):
    """Says what crashsim's metadata would ask for."""

    def want(*requirements):
        monkeypatch.setattr(metadata, "requires", lambda _: list(requirements))

    return want


def told(**environment):
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "100", **environment})
    return result.exit_code, result.output


def test_this_installation_is_fine():
    code, text = told()
    assert code == 0
    for name in ("torch", "brian2", "sympy", "numpy", "nir"):
        assert name in text
    assert "everything that crashsim needs is there" in text


def test_what_is_missing_is_named_with_its_command(wanted):
    wanted("numpy>=2.0", "no-such-package>=3", 'other-one>=1; extra == "nir"')
    code, text = told()
    assert code == 1
    assert 'missing: pip install "no-such-package>=3"' in text
    assert 'missing: pip install "crashsim[nir]"' in text
    assert "broken: no-such-package;" in text


def test_a_missing_extra_alone_is_no_failure(wanted):
    wanted("numpy>=2.0", 'other-one>=1; extra == "nir"')
    assert told()[0] == 0


def test_versions_that_do_not_serve_and_packages_that_do_not_import(wanted, tmp_path, monkeypatch):
    (tmp_path / "torn-1.2.dist-info").mkdir()
    (tmp_path / "torn-1.2.dist-info" / "METADATA").write_text("Name: torn\nVersion: 1.2\n")
    (tmp_path / "torn.py").write_text("raise OSError('a library is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    wanted("numpy>=99", "torn>=1", "scipy>=1; python_version < '3'")
    code, text = told()
    assert code == 1
    assert 'needs >=99: pip install "numpy>=99"' in text
    assert "does not import: OSError: a library is missing" in text
    assert "scipy" not in text
