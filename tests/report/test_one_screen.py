"""One screen: tables that fit, whole numbers, warnings grouped, how much more is needed."""

import math
import re

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from scipy import stats

from crashsim import BitFlip, NeuronCrash, score, vulnerability
from crashsim.report.maps import vulnerability as maps
from crashsim.report.screen import notes
from crashsim.report.screen.score import render
from crashsim.report.screen.table import FittedTable
from crashsim.report.tables import columns
from crashsim.report.text import as_text
from crashsim.results.comparison import inits_needed
from crashsim.results.numbers import percents, samples_needed, says_little

NUMBERS = ("0.0158 [0.0147, 0.0169]", "1.23e-07 [4.5e-08, 9.87e-07]", "97.77%", "380,800")


def cells(width, columns, rows=3):
    titles = ["layer", *(f"quantity number {i}" for i in range(columns))]
    names = ["features.0.conv1.weight", "classifier.weight", "x"]
    table = [
        (names[r], *(NUMBERS[(r + i) % len(NUMBERS)] for i in range(columns))) for r in range(rows)
    ]
    return as_text(FittedTable(titles, table), width), table


@pytest.mark.parametrize("width", [36, 50, 80, 120])
@pytest.mark.parametrize("columns", [1, 2, 4, 9])
def test_no_number_is_cut_and_no_interval_broken(width, columns):
    text, table = cells(width, columns)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    for row in table:
        for cell in row[1:]:
            value, _, interval = cell.partition(" [")
            for part in (value, f"[{interval}" if interval else ""):
                assert any(part in line for line in text.splitlines()), part


def test_what_fits_stays_on_one_line():
    text, table = cells(120, 2)
    assert len(text.splitlines()) == 1 + len(table)
    assert "0.0158 [0.0147, 0.0169]" in text


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("epsilon", [None, 0.1])
def test_a_score_is_one_screen(make_net, randn, labels, epsilon):
    net, x = make_net((4, 6, 5, 3)), randn(40, 4)
    y = net(x).argmax(1)
    found = score(net, (x, y) if labels else x, NeuronCrash(0.2), samples=500, epsilon=epsilon)
    text = as_text(render(found), 80)
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert len(lines) <= 40
    assert len(lines) < len(found.to_text(80).splitlines()) / 2
    change = found.find("exact", "class-change")
    if not labels:
        assert percents(change.value, change.value, change.value)[0] in text
    # The interval of chips is that of the record.
    if labels:
        mean = found.chips["metrics"][0]["mean"]
        shown = re.search(r"accuracy, on average +\S+ +(\S+)% +\[(\S+)%, (\S+)%\]", text)
        for told, name in zip(shown.groups(), ("value", "low", "high"), strict=True):
            assert float(told) == pytest.approx(100 * mean[name], abs=6e-3)


def test_a_map_is_one_screen(make_net, randn):
    found = vulnerability(
        make_net((4, 6, 3)), randn(20, 4), BitFlip(1e-6, format="float32"), "weights",
        by=("layer", "bit"), evaluations=60,
    )  # fmt: skip
    short = as_text(maps.render(found, details=False), 80).splitlines()
    assert max(map(cell_len, short)) <= 80
    assert len(short) <= 40 < len(found.to_text(80).splitlines())


def test_warnings_of_one_kind_are_told_once_and_the_gravest_first():
    many = [f"weights of 'fc{i}.weight' may be large (by {i} of 7)" for i in range(9)]
    grave = "monte-carlo and chernoff contradict each other"
    lines = notes.lines([*many[:4], grave, *many[4:], "another", "a third kind", "a fourth"])
    assert lines[0] == f"warning: {grave}"
    assert lines[1].endswith("(and 8 like it)")
    assert sum("may be large" in line for line in lines) == 1
    assert lines[-1] == "and 2 more warnings: --details"
    assert notes.lines([]) == []


# What more would take.


def test_an_interval_that_says_little():
    assert says_little(1e-3, 0.5, is_probability=True)
    assert says_little(0.0, 0.5, is_probability=True)
    assert not says_little(0.0, 1e-4, is_probability=True)
    assert not says_little(0.2, 0.5, is_probability=True)
    assert says_little(0.0, 1e-4)
    assert says_little(1.0, math.inf)


@pytest.mark.parametrize("p", [0.02, 0.2])
def test_as_many_samples_as_are_said_are_enough(p):
    """Clopper and Pearson's interval after so many samples is about as wide as the value."""

    def ends(hits, count):
        low = stats.beta.ppf(0.025, hits, count - hits + 1) if hits else 0.0
        return low, stats.beta.ppf(0.975, hits + 1, count - hits)

    count = round(2 / p)
    low, high = ends(2, count)
    more = samples_needed(count, 2 / count, low, high)
    low, high = ends(round(more * p), more)
    assert 0.3 * p < high - low < 1.6 * p
    for count in (50, 300):
        none = samples_needed(count, 0.0, *ends(0, count))
        assert 0.005 < ends(0, none)[1] < 0.02
    assert samples_needed(200, 2.8e-5, 4e-6, 0.02) == 400  # not millions


def test_as_many_initialisations_as_are_said_are_enough():
    rng = np.random.default_rng(0)
    scatter, narrow = 1.3, 0
    for _ in range(200):
        each = np.exp(rng.normal(0, scatter, 8))
        n = inits_needed(list(each))
        logs = np.log(each)
        half = stats.t.ppf(0.975, n - 1) * logs.std(ddof=1) / math.sqrt(n)
        assert half <= math.log(2) or n == 8
        more = np.log(np.exp(rng.normal(0, scatter, n)))
        narrow += stats.t.ppf(0.975, n - 1) * more.std(ddof=1) / math.sqrt(n) <= math.log(3)
    assert narrow > 150
    assert inits_needed([0.0, 1.0]) is None


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.00023, 1.9e-7, 0.282, ("0.023%", "<0.01%", "28.2%")),
        (0.5, 0.4999, 0.5001, ("50%", "49.99%", "50.01%")),
        (0.0, 0.0, 0.03, ("0%", "0%", "3%")),
        (2e-7, 1e-7, 3e-7, ("2e-07", "1e-07", "3e-07")),
        (1.0, 1.0, 1.0, ("100%", "100%", "100%")),
        (0.9996, 0.9993, 0.99987, ("99.96%", "99.9%", "99.99%")),
        (0.99996, 0.9, 1.0, (">99.99%", "90%", "100%")),
    ],
)
def test_a_probability_and_its_interval_have_one_unit(value, low, high, shown):
    assert percents(value, low, high) == shown


def test_outputs_that_were_asked_for_are_shown(make_net, randn):
    """On the screen and in the tables, though another output varies more."""
    net = make_net((6, 12, 5))
    with torch.no_grad():
        net[-1].weight[4] *= 9
    asked = {"epsilon": 0.2, "samples": 500}
    named = score(net, randn(3, 6), NeuronCrash(0.02), outputs=[1, 3], **asked)
    screen = as_text(render(named), 100)
    for k in (1, 3):
        assert f"output {k} moves by 0.2 or more" in screen
    titles = [column.title for column in columns(named)]
    assert [t for t in titles if t.startswith("P(|")] == [
        "P(|Δ| ≥ 0.2), output 1",
        "P(|Δ| ≥ 0.2), output 3",
    ]
    assert not any("output 4" in title for title in titles)
    chosen = score(net, randn(3, 6), NeuronCrash(0.02), **asked)
    assert "P(|Δ| ≥ 0.2), output 4" in [column.title for column in columns(chosen)]
    assert "output 4 moves" not in as_text(render(chosen), 100)
