"""Curves and the report of a score with every method in it."""

import re

import numpy as np
import pytest

import crashsim.scoring
from crashsim import NeuronCrash, Score, score
from crashsim.report.tables import columns, rows


@pytest.fixture
def result(make_net, randn):
    return score(
        make_net((4, 7, 5, 3), "relu", scale=2.0), randn(3, 4), NeuronCrash(0.02), epsilon=0.3,
        methods=["+importance-sampling"], samples=2000, hardware=True, proofs=True,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_every_method_is_in_the_pictures_and_the_report(result):
    curves = result.curves
    assert {
        "exact", "chebyshev", "chernoff", "saddlepoint", "certificate", "monte-carlo",
        "importance-sampling",
    } <= set(curves.methods)  # fmt: skip
    for values in curves.methods.values():
        y = np.array(values, dtype=float)
        assert len(y) == len(curves.epsilon)
        assert np.isfinite(y).any()
        assert ((y >= 0) & (y <= 1))[np.isfinite(y)].all()
    certified = np.array(curves.methods["certificate"], dtype=float)
    kept = np.isfinite(certified)
    assert (certified[kept] >= np.array(curves.methods["exact"])[kept] * (1 - 1e-6)).all()

    # Methods that have the tail of one output only are in the table's column.
    at = next(i for i, c in enumerate(columns(result)) if c.quantity == "tail")
    shown = {method for method, cells in rows(result) if cells[at] is not None}
    assert {"exact", "certificate", "importance-sampling", "monte-carlo"} <= shown

    html = result.to_html()
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import|\bsrc\s*=", html)
    assert all(link.startswith("#") for link in re.findall(r"""href=["']([^"']*)""", html))
    for method in {e.method for e in result.estimates}:
        assert method in html
    assert html.count("<svg") >= 5
    again = Score.from_dict(result.to_dict())
    assert again.to_dict() == result.to_dict()
    assert again.to_html() == html
    assert max(map(len, result.to_text(80).splitlines())) <= 80


@pytest.fixture
def rare(make_net, randn):
    """Of 60 neurons, so that nothing is enumerated."""
    return make_net((4, 40, 20, 3), "tanh", scale=2.0), randn(2, 4), NeuronCrash(0.01)


def rare_curve(result):
    return np.array(result.curves.methods["importance-sampling"], dtype=float)


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_the_curve_of_rare_events_depends_on_the_seed(rare):
    options = {"epsilon": 0.3, "methods": ["mean-point-taylor", "importance-sampling"]}
    first, again, other = (rare_curve(score(*rare, seed=s, **options)) for s in (1, 1, 2))
    known = np.isfinite(first)
    assert known.sum() > 3
    np.testing.assert_array_equal(first, again)
    assert (first[known] != other[known]).all()
    np.testing.assert_allclose(first[known][:3], other[known][:3], rtol=0.6)


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
@pytest.mark.parametrize("samples", [300, 3000, 20_000])
def test_the_curves_run_the_model_no_more_often_than_was_asked(rare, samples, monkeypatch):
    count, drawing = 0, False
    outputs, curves_of = crashsim.FaultSpace.outputs, crashsim.scoring.curves_of

    def counted(space, points):
        nonlocal count
        count += points.count * drawing
        return outputs(space, points)

    def watched(*args, **kwargs):
        nonlocal drawing
        drawing = True
        return curves_of(*args, **kwargs)

    monkeypatch.setattr(crashsim.FaultSpace, "outputs", counted)
    monkeypatch.setattr(crashsim.scoring, "curves_of", watched)
    result = score(
        *rare, epsilon=0.3, samples=samples, methods=["monte-carlo", "importance-sampling"]
    )
    assert ("importance-sampling" in result.curves.methods) == (count > 0) == (samples > 2000)
    assert count <= samples
