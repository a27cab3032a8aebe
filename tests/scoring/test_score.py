"""The contract of ``score``: names, JSON, seeds, warnings, reports."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
import crashsim.analytic.first_order
import crashsim.scoring.methods
import crashsim.scoring.running
import crashsim.scoring.score
import crashsim.scoring.timing
from crashsim import (
    AdditiveNoise,
    CrashsimError,
    CrashsimWarning,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    Score,
    WeightCrash,
    score,
)
from crashsim.analytic.first_order import (
    Analysis,
    double_precision,
    mean_point_single,
    mean_point_taylor,
)
from crashsim.errors import FileError
from crashsim.scoring.methods import METHODS

SCORED = [method.name for method in METHODS]
FAST = ["exact", "taylor", "mean-point-taylor", "mean-point-single", "saddlepoint", "monte-carlo"]


@pytest.fixture
def result(make_net, randn):
    return score(
        make_net((3, 5, 3), scale=2), randn(4, 3), NeuronCrash(0.1), epsilon=0.2, samples=500,
        names={"model": "<b>net & co</b>", "inputs": "normal"},
    )  # fmt: skip


def plain(result, *without):
    found = result.to_dict()
    return {k: v for k, v in found.items() if k not in ("timings", *without)}


def test_json_is_strict_and_comes_back(result, tmp_path):
    text = json.dumps(result.to_dict(), allow_nan=False)
    again = Score.from_dict(json.loads(text))
    assert again.to_dict() == result.to_dict()
    result.save(tmp_path / "s.json")
    loaded = Score.load(tmp_path / "s.json")
    assert loaded.to_dict() == result.to_dict()
    assert loaded.verdict == result.verdict
    assert loaded.to_text(80) == result.to_text(80)


def test_the_fields_of_the_contract(result):
    found = result.to_dict()
    for key in ("schema", "seed", "versions", "model", "faults", "sites", "estimates"):
        assert key in found
    names = {"method", "quantity", "input", "output", "value", "low", "high", "kind"}
    for e in found["estimates"]:
        assert names <= set(e)
        assert e["input"] == "all" or isinstance(e["input"], int)
        assert e["kind"] in ("exact", "proof", "bound", "statistical", "estimate")
        assert np.isfinite(e["value"])
    pooled = {(e["method"], e["quantity"]) for e in found["estimates"] if e["input"] == "all"}
    assert {(e["method"], e["quantity"]) for e in found["estimates"]} <= pooled


def test_same_seed_same_numbers(make_net, randn):
    net, x = make_net((3, 5, 3)), randn(4, 3)
    first, again, other = (
        score(net, x, NeuronCrash(0.1), samples=300, seed=s, methods=FAST) for s in (7, 7, 8)
    )
    assert plain(first) == plain(again)
    assert plain(first, "seed") != plain(other, "seed")


def test_methods_can_be_chosen(make_net, randn):
    net, x = make_net((3, 5, 3)), randn(4, 3)
    for method in ("taylor", "exact", "saddlepoint"):
        found = score(net, x, NeuronCrash(0.1), methods=[method], epsilon=0.1)
        assert {e.method for e in found.estimates} == {method}
        assert found.samples == 0
        assert found.to_text(80)
        assert found.to_html()


def test_a_single_output_and_a_single_class(make_net, randn):
    found = score(make_net((3, 5, 1)), randn(2, 3), NeuronCrash(0.1), samples=300)
    assert not [e for e in found.estimates if e.quantity == "class-change"]
    assert "single output" in found.skipped["class-change"]
    assert found.to_text(80)
    assert found.to_html()


def test_default_faults_are_crashes_of_hidden_neurons(make_net, randn):
    found = score(make_net((3, 5, 2)), randn(2, 3), methods=["exact"])
    assert found.faults[0] == {"fault": "neuron-crash", "p": 0.01, "group": "unit", "site": "act1"}


def test_methods_agree_with_the_oracle(make_net, randn):
    found = score(make_net((3, 5, 3)), randn(4, 3), NeuronCrash(0.1), samples=4000, methods=FAST)
    truth = found.find("exact", "variance").value
    for method in FAST[1:4]:
        assert found.find(method, "variance").value == pytest.approx(truth, rel=1e-6)
    sampled = found.find("monte-carlo", "variance")
    assert sampled.value == pytest.approx(truth, rel=0.1)


def test_a_curved_network_warns(make_net, randn):
    net = make_net((3, 6, 6, 2), "relu", seed=3, scale=4.0)
    with pytest.warns(CrashsimWarning) as caught:
        found = score(net, randn(6, 3), NeuronCrash(0.5), samples=5000, methods=FAST)
    assert "first-order theory" in found.warnings[0]
    assert [str(w.message) for w in caught] == found.warnings


def test_faults_of_both_kinds_on_a_residual_net(residual_net, watch, randn):
    found = score(
        watch(residual_net), randn(2, 1, 4, 4),
        {"relu*": NeuronCrash(0.01), "head.weight": WeightCrash(0.01)},
        samples=300, methods=["taylor", "mean-point-single", "monte-carlo"],
    )  # fmt: skip
    assert found.coordinates == 64 + 24
    assert sum(s["share"] for s in found.sites) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"epsilon": -1}, "epsilon=-1"),
        ({"epsilon": "x"}, "epsilon='x'"),
        ({"seed": -1}, "seed=-1"),
        ({"samples": 1}, "samples=1"),
        ({"rel_width": 2}, "rel_width=2"),
        ({"confidence": 1.5}, "confidence=1.5"),
        ({"methods": ["tailor"]}, "tailor"),
        ({"methods": "monte carlo"}, "monte carlo"),
        ({"methods": []}, "methods"),
        ({"sites": "act9"}, "'act9'"),
        ({"faults": {}}, "faults"),
        ({"faults": "crash"}, "'crash'"),
        ({"inputs": torch.zeros(0, 3)}, r"(0, 3)"),
        ({"inputs": torch.zeros(2, 7)}, r"(2, 7)"),
        ({"model": "64-10"}, "model"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments, told, make_net, randn):
    base = {"model": make_net((3, 5, 2)), "inputs": randn(2, 3), "faults": NeuronCrash(0.1)}
    with pytest.raises(CrashsimError) as raised:
        score(**{**base, **arguments})
    assert told in str(raised.value)
    assert next(iter(arguments)) in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}', '{"schema": 1}', "null", "7"])
def test_damaged_scores(text, tmp_path):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(FileError, match="score"):
        Score.load(tmp_path / "s.json")
    with pytest.raises(FileError, match="score"):
        Score.load(tmp_path / "none.json")


def test_the_report_is_self_contained(result):
    html = result.to_html()
    assert not re.search(r"<(script|link|iframe|object|embed)\b", html, re.IGNORECASE)
    assert not re.search(r"\bsrc\s*=", html)
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    assert not re.search(r"@import", html)
    for link in re.findall(r"""href=["']([^"']*)""", html):
        assert link.startswith("#"), link
    assert "<b>net" not in html
    assert "&lt;b&gt;net &amp; co&lt;/b&gt;" in html
    assert result.verdict.split(" (")[0] in html.replace("&#39;", "'").replace("&gt;", ">")
    for method in {e.method for e in result.estimates}:
        assert method in html


def test_the_text_fits_a_narrow_terminal(result):
    assert max(map(len, result.to_text(80).splitlines())) <= 80
    assert str(result)


def test_public_names():
    assert set(dir(crashsim)) == set(crashsim.__all__)
    assert all(getattr(crashsim, name) is not None for name in crashsim.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = crashsim.no_such_name


class Rounding(nn.Module):
    """Computes without derivatives."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)

    def forward(self, x):
        with torch.no_grad():
            return self.b(torch.round(self.act(self.a(x)) * 16) / 16)


@pytest.mark.parametrize("faults", [AdditiveNoise(0.2), GainNoise(0.1), NeuronCrash(0.1)], ids=str)
@pytest.mark.parametrize("methods", [None, SCORED], ids=["default", "all by name"])
@pytest.mark.parametrize("epsilon", [None, 0.1])
def test_every_method_is_estimated_or_says_why(faults, methods, epsilon, seeded, randn):
    """Whatever the model lacks: no method is left out unsaid."""
    net, x = seeded(Rounding).eval(), randn(2, 4)
    out = {"hardware"} if faults.is_binary else {"hardware", "exact"}
    names = [m for m in methods or SCORED if m not in out]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CrashsimWarning)
        found = score(
            net, x, faults, epsilon=epsilon, samples=1000, proofs=True, methods=methods and names
        )
    told = {e.method for e in found.estimates} | set(found.skipped)
    assert set(names) <= told
    assert not {e.method for e in found.estimates} & set(found.skipped)
    if epsilon is not None:
        assert {"chernoff", "saddlepoint"} <= {e.method for e in found.estimates}
        wanted = found.find("monte-carlo", "tail", 0, 0)
        guess = found.find("saddlepoint", "tail", 0, 0)
        assert wanted.low > 0
        assert wanted.low / 10 < guess.value < 10 * wanted.high


def test_the_surrogate_of_noise_has_the_slopes_of_the_regression(make_net, randn):
    """In a network that is linear in the noise, they are its gradient."""
    net, x = make_net((3, 4, 2), "linear"), randn(2, 3)
    space = double_precision(FaultSpace(net, x, AdditiveNoise(0.2), "linear1"))
    by_gradient, by_differences = Analysis(), Analysis()
    mean_point_taylor(space, by_gradient)
    mean_point_single(space, by_differences)
    np.testing.assert_allclose(
        by_differences.surrogate.gains, by_gradient.surrogate.gains, rtol=1e-9
    )
    np.testing.assert_allclose(
        by_differences.surrogate.variance, by_gradient.surrogate.variance, rtol=1e-9
    )
    assert by_gradient.surrogate.variance.min() > 0


@pytest.mark.parametrize("method", ["taylor", "mean-point-taylor", "mean-point-curvature"])
def test_what_needs_derivatives_says_so(method, seeded, randn):
    found = score(seeded(Rounding).eval(), randn(2, 4), NeuronCrash(0.1), methods=[method])
    assert "without derivatives" in found.skipped[method]
    assert found.estimates == []
    assert found.to_text(80)
    assert found.to_html()


def test_nothing_random_is_no_silence(make_net, randn):
    found = score(
        make_net((3, 4, 2)), randn(2, 3), NeuronCrash(0.0), epsilon=0.1, samples=100,
        methods=["+importance-sampling"],
    )  # fmt: skip
    assert "importance-sampling" in found.skipped
    single = score(make_net((3, 4, 1)), randn(2, 3), NeuronCrash(0.1), methods=["chernoff"])
    assert "epsilon" in single.skipped["chernoff"]


def test_large_outputs_in_single_precision_are_told(make_net, randn):
    net, x = make_net((3, 4, 2)), randn(2, 3)
    with torch.no_grad():
        net.linear2.bias.fill_(1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CrashsimWarning)
        found = score(net, x, NeuronCrash(0.1), epsilon=0.3, samples=200, methods=FAST)
    assert any("rounds them" in w for w in found.warnings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wide = score(net.double(), x.double(), NeuronCrash(0.1), epsilon=0.3, methods=["exact"])
    assert not any("rounds them" in w for w in wide.warnings)


def test_the_interval_of_curvature_follows_seed_and_confidence(make_net, randn):
    net, x = make_net((4, 300, 8, 2), "tanh"), randn(2, 4)
    found = [
        score(net, x, NeuronCrash(0.05), methods=["mean-point-curvature"], **options).find(
            "mean-point-curvature", "variance"
        )
        for options in ({"seed": 0}, {"seed": 1}, {"seed": 1, "confidence": 0.999})
    ]
    first, second, sure = found
    assert first.value != second.value == sure.value
    assert (second.confidence, sure.confidence) == (0.95, 0.999)
    # Student's quantiles of 15 degrees of freedom, from a table.
    widths = (sure.high - sure.low) / (second.high - second.low)
    assert widths == pytest.approx(4.073 / 2.131, rel=1e-3)


def test_timings_leave_no_time_out(make_net, randn, monkeypatch):
    """On a clock that only these calls advance, each by another power of two."""
    now, spent = 0.0, 0.0
    slow = [
        (crashsim.scoring.preparing, "FaultSpace"), (crashsim.scoring.preparing, "plan"),
        (crashsim.analytic.first_order, "double_precision"),
        (crashsim.scoring.methods, "monte_carlo"),
        (crashsim.analytic.first_order, "tails"), (crashsim.scoring.running, "answers"),
        (crashsim.scoring.score, "curves_of"), (crashsim.scoring.score, "histogram_of"),
        (crashsim.scoring.score, "agreements"), (crashsim.scoring.score, "describe_sites"),
    ]  # fmt: skip

    def slowed(work, seconds):
        def run(*args, **kwargs):
            nonlocal now, spent
            now, spent = now + seconds, spent + seconds
            return work(*args, **kwargs)

        return run

    for i, (module, name) in enumerate(slow):
        monkeypatch.setattr(module, name, slowed(getattr(module, name), 2.0**i))
    monkeypatch.setattr(crashsim.scoring.timing.time, "perf_counter", lambda: now)
    result = score(
        make_net((3, 5, 2)), randn(2, 3), NeuronCrash(0.1), epsilon=0.3, delta=0.01,
        samples=200, methods=["monte-carlo", "saddlepoint"],
    )  # fmt: skip
    assert spent == 2.0 ** len(slow) - 1
    assert sum(result.timings.values()) == spent
