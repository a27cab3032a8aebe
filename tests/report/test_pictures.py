"""Curves and the report of a score with every method in it."""

import itertools
import json
import re
import warnings

import numpy as np
import pytest

import crashsim.scoring.score
from crashsim import NeuronCrash, Score, score
from crashsim.errors import FileError
from crashsim.report import plots
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
def record(make_net, randn):
    net, x = make_net((4, 5, 2), "tanh"), randn(2, 4)
    return score(net, x, NeuronCrash(0.1), epsilon=0.1, samples=100).to_dict()


@pytest.mark.parametrize(
    "latex",
    [
        r"\frac{" * 3000,
        r"\frac{" * 30 + "1" + "}{2}" * 30,
        r"\left(" * 100 + "x" + r"\right)" * 100,
        "x" * 20_000,
        r"x \\ " * 900,
        r"\nonsense{",
        r"\hspace{1e308}x",
        "",
    ],
    ids=lambda latex: latex[:12],
)
def test_a_formula_is_drawn_only_so_far(latex):
    assert plots.formula(latex) is None
    assert plots.formula(r"\frac{x}{2} \\ y") is not None


def test_a_formula_that_is_not_drawn_is_shown_as_text(record):
    formulas = record["formulas"]
    usual = Score.from_dict(record).to_html()
    assert "Not drawn" not in usual
    formulas[next(iter(formulas))] = {"text": "as <text> & more", "latex": r"\frac{" * 3000}
    page = Score.from_dict(record).to_html()
    assert page.count("Not drawn") == 1
    assert "as &lt;text&gt; &amp; more" in page
    assert page.count("<svg") == usual.count("<svg") - 1


def test_formulas_of_no_method_are_not_drawn(record):
    one = next(iter(record["formulas"].values()))
    pictures = Score.from_dict(record).to_html().count("<svg")
    record["formulas"] |= {f"more {i}": one for i in range(500)}
    assert Score.from_dict(record).to_html().count("<svg") == pictures


def test_names_are_no_formulas(record):
    pictures = Score.from_dict(record).to_html().count("<svg")
    names = [r"$\frac{$", "$$", r"\$x$y", "x" * 10**4, "a\nb\0c"]
    sites = list(zip(record["sites"], record["faults"], strict=True))
    for (site, fault), name in zip(sites, names, strict=False):
        site["name"] = fault["site"] = name
    tops = zip(record["top"], itertools.cycle(names), strict=False)
    record["top"] = [top | {"site": name} for top, name in tops]
    flat = [0.5] * len(record["curves"]["epsilon"])
    record["curves"]["methods"] |= dict.fromkeys(names, flat)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a font lacks some characters
        assert Score.from_dict(record).to_html().count("<svg") == pictures


def test_figures_of_a_file_bound_no_loop_and_no_table(record):
    page = Score.from_dict(record).to_html()
    record["outputs"] = 10**15
    assert len(Score.from_dict(record).to_html()) == pytest.approx(len(page), rel=0.01)
    record["inputs"]["count"] = 10**15
    alone = next(e for e in record["estimates"] if e["input"] == 1)
    record["estimates"].append(alone | {"input": 10**9, "output": 10**9})
    with pytest.raises(FileError, match=r"for input 1000000000 and output 1000000000"):
        Score.from_dict(record)


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_layers_of_less_than_no_neurons(result):
    record = result.to_dict()
    record["hardware"]["raster"]["layers"][0]["neurons"] = -(10**10)
    with pytest.raises(FileError, match=r"layers\[0\]\.neurons is -10000000000"):
        Score.from_dict(record)


def test_scores_too_deep_or_too_long(record, tmp_path, monkeypatch):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(FileError, match="nested too deeply"):
        Score.from_dict(record | {"warnings": deep})
    while deep:  # or taking it apart at the end is as deep
        deep = deep.pop()
    path = tmp_path / "score.json"
    path.write_text("[" * 10**6)
    with pytest.raises(FileError, match="cannot be read as JSON"):
        Score.load(path)
    path.write_text(json.dumps(record))
    assert Score.load(path).to_dict() == record
    monkeypatch.setenv("CRASHSIM_FILE_LIMIT", "64KiB")
    with pytest.raises(FileError, match=r"score='.*score\.json': .* of JSON would take"):
        Score.load(path)


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
    outputs, curves_of = crashsim.FaultSpace.outputs, crashsim.scoring.score.curves_of

    def counted(space, points):
        nonlocal count
        count += points.count * drawing
        return outputs(space, points)

    def watched(*args, **kwargs):
        nonlocal drawing
        drawing = True
        return curves_of(*args, **kwargs)

    monkeypatch.setattr(crashsim.FaultSpace, "outputs", counted)
    monkeypatch.setattr(crashsim.scoring.score, "curves_of", watched)
    result = score(
        *rare, epsilon=0.3, samples=samples, methods=["monte-carlo", "importance-sampling"]
    )
    assert ("importance-sampling" in result.curves.methods) == (count > 0) == (samples > 2000)
    assert count <= samples
