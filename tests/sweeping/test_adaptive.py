"""Adaptive rates: where they lie, and that intervals hold, against all 2^9 patterns of faults."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import Curve, FaultSpace, NeuronCrash
from crashsim.errors import ArgumentError, NotApplicableError
from crashsim.sweeping.adaptive import Outline, Span, read_span
from crashsim.sweeping.nested import NestedChips

NEURONS, EXAMPLES = 9, 60
RATES = "1e-5:0.5"


@pytest.fixture(scope="module")
def case():
    """A network, its data, and the accuracy under each of the 2^9 patterns of dead neurons."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(6, NEURONS), nn.ReLU(), nn.Linear(NEURONS, 3)).eval()
        x = torch.randn(EXAMPLES, 6)
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=NEURONS)))
    with torch.no_grad():
        y = net(x).argmax(-1)
        outputs = net[2](torch.relu(net[0](x)) * (1 - patterns)[:, None])
    right = (outputs.argmax(-1) == y).double().mean(1).numpy()
    return net, x, y, patterns.sum(1).numpy(), right


def curve_of(case, **options):
    net, x, y = case[:3]
    given = {"faults": NeuronCrash(0.1), "sites": "1", "rates": RATES, "chips": 100}
    return crashsim.sweep(net, (x, y), **{**given, **options})


def weights(case, p):
    return p ** case[3] * (1 - p) ** (NEURONS - case[3])


def holds(case, seeds):
    """Shares of curves whose band, intervals and tolerable rate hold."""
    right, truth = case[4], 0.02
    target = weights(case, truth) @ right  # reached up to there
    hits, widths = np.zeros(3), []
    for seed in seeds:
        curve = curve_of(case, seed=seed, target=target)
        true = [weights(case, p["rate"]) @ right for p in curve.points]
        band = [p["band_low"] - 1e-9 <= t <= p["band_high"] + 1e-9
                for p, t in zip(curve.points, true, strict=True)]  # fmt: skip
        alone = [p["low"] - 1e-9 <= t <= p["high"] + 1e-9
                 for p, t in zip(curve.points, true, strict=True)]  # fmt: skip
        found = curve.tolerable_rate(target)
        hits += [all(band), np.mean(alone), found.low <= truth < found.high]
        widths.append(np.log(found.high / max(found.low, 1e-5)))
    return hits / len(seeds), np.mean(widths)


def test_intervals_and_bands_hold(case):
    hits, _ = holds(case, range(25))
    assert (hits >= 0.84).all()  # 95% less 4 deviations or so


@pytest.mark.slow
def test_coverage_of_400_seeds(case):
    hits, _ = holds(case, range(400))
    assert (hits >= 0.93).all()


def test_rates_lie_where_the_curve_falls(case):
    curve = curve_of(case, adaptive=13, metric="error-rate")
    rates = np.array([p["rate"] for p in curve.points])
    assert (rates[0], rates[-1]) == (1e-5, 0.5)
    assert len(rates) == 13
    # Of 4.7 decades, the mean falls in the last one and a half.
    assert weights(case, 0.01) @ case[4] > 0.98
    assert (rates > 0.01).sum() >= 7
    true = np.array([weights(case, r) @ case[4] for r in rates])
    equal = np.array([weights(case, r) @ case[4] for r in np.geomspace(1e-5, 0.5, 13)])
    assert np.abs(np.diff(true)).max() < 0.6 * np.abs(np.diff(equal)).max()


def test_the_tolerable_rate_is_told_closer(case):
    widths = np.zeros(2)
    for truth in (0.008, 0.03, 0.12):
        target = weights(case, truth) @ case[4]
        for number, rates in enumerate((RATES, np.geomspace(1e-5, 0.5, 12))):
            curve = curve_of(case, seed=2, target=target, rates=rates, chips=1000)
            found = curve.tolerable_rate(target)
            assert 0 < found.low <= truth < found.high
            widths[number] += np.log(found.high / found.low)
    assert widths[0] < 0.85 * widths[1]


def test_the_pilot_shares_no_random_number_with_the_curve(case):
    net, x, _ = case[:3]
    space = FaultSpace(net, x, NeuronCrash(0.3), "1")
    rates = (0.1, 0.3)
    one, other = (NestedChips.of(space, rates, 3, 500, 512, pilots) for pilots in (False, True))
    first, second = ([p.dense() for p in chips.points(0)] for chips in (one, other))
    assert 0.5 < (first[1] == second[1]).mean() < 0.66  # 0.58, if independent
    assert (second[0] <= second[1]).all()
    assert second[0].mean() == pytest.approx(0.1, abs=0.02)
    assert dict(one.space.placements[0].__dict__) == dict(other.space.placements[0].__dict__)


def test_chips_are_those_of_rates_that_are_named(case):
    curve = curve_of(case, seed=4)
    named = curve_of(case, seed=4, rates=[p["rate"] for p in curve.points])
    assert named.points == curve.points
    assert named.pilot is None
    assert curve.pilot["chips"] == 32
    assert curve.pilot["rows"] < 0.4 * curve.rows


def test_the_same_numbers_whatever_runs_the_blocks(case, tmp_path):
    plain = curve_of(case).to_dict()
    with ThreadPoolExecutor(2) as threads:
        assert curve_of(case, executor=threads).to_dict() == plain
    again = [curve_of(case, store=tmp_path / "kept").to_dict() for _ in range(2)]
    assert again == [plain, plain]
    assert curve_of(case, seed=1).pilot["rates"] == plain["pilot"]["rates"]


def test_more_chips_keep_the_rates(case, tmp_path):
    few, more = (curve_of(case, chips=n, store=tmp_path / "kept") for n in (40, 90))
    assert [p["rate"] for p in few.points] == [p["rate"] for p in more.points]
    assert more.to_dict() == curve_of(case, chips=90).to_dict()


def test_a_prediction_chooses_its_rates_by_itself(case):
    curve = curve_of(case, predict=True)
    assert curve.pilot["chips"] == 0
    assert len(curve.points) == 12
    assert sum(p["rate"] > 0.01 for p in curve.points) >= 5
    assert "chosen by a prediction" in " ".join(str(curve).split())
    with pytest.raises(NotApplicableError):
        curve_of(case, predict=True, metric="cross-entropy")


def test_metrics_without_target_or_bound(case):
    curve = curve_of(case, metric="cross-entropy", adaptive=6)
    assert len(curve.points) == 6
    assert sum(p["rate"] > 0.01 for p in curve.points) >= 3
    errors = curve_of(case, metric="error-rate", target=0.05)
    assert errors.tolerable_rate(0.05).low > 0


def test_saved_curves_say_how_their_rates_were_chosen(case, tmp_path):
    curve = curve_of(case)
    curve.save(tmp_path / "curve.json")
    assert Curve.load(tmp_path / "curve.json") == curve
    assert "chosen by 32 other chips" in " ".join(str(curve).split())
    plain = curve_of(case, rates=[0.1]).to_dict()
    older = {**plain, "schema": 1}
    del older["pilot"]
    assert Curve.from_dict(json.loads(json.dumps(older))).points[0]["rate"] == 0.1


def outline(lost, failing=None, open=()):
    rates = tuple(np.geomspace(1e-4, 1, len(lost)))
    return Outline(rates, np.array(lost, dtype=float), failing, open)


def test_a_flat_curve_has_rates_at_equal_ratios():
    found = Span(1e-4, 1.0, 5).chosen(outline([0] * 9))
    np.testing.assert_allclose(found, [1e-4, 1e-3, 1e-2, 0.1, 1], rtol=0.02)


def test_rates_go_where_there_is_most_to_see():
    step = [0, 0, 0, 0, 0, 1, 1, 1, 1]  # between 1e-2 and 10^-1.5
    found = Span(1e-4, 1.0, 11).chosen(outline(step))
    assert sum(0.0099 <= rate <= 0.032 for rate in found) >= 5
    # Where the pilot leaves the target open counts for more than what comes long after it.
    ends = (
        np.array([1, 1, 1, 1, -1, -1, -1, -1, -1.0]),
        np.array([1, 1, -1, -1, -1, -1, -1, -1, -1]),
    )
    early, late = (outline(np.linspace(0, 0.9, 9), open=each) for each in ([ends], []))
    low, none = (sum(r < 1e-2 for r in Span(1e-4, 1.0, 15).chosen(one)) for one in (early, late))
    assert low >= none + 3
    infinite = Span(1e-4, 1.0, 7).chosen(outline([0, 0, 0, 0, np.inf, np.inf, 1, np.nan, 0]))
    assert list(infinite) == sorted(set(infinite))


@pytest.mark.parametrize(
    ("rates", "adaptive", "wanted"),
    [
        ("1e-4:1e-1", False, (1e-4, 1e-1, 12)),
        ("1e-4:1e-1", 20, (1e-4, 1e-1, 20)),
        ("1e-4:1e-1:12", True, (1e-4, 1e-1, 12)),
        ([0.1, 0.3], True, (0.1, 0.3, 12)),
        ([0.1, 0.3, 0.2], True, (0.1, 0.3, 3)),
    ],
)
def test_what_asks_for_adaptive_rates(rates, adaptive, wanted):
    assert read_span(rates, adaptive) == Span(*wanted)


@pytest.mark.parametrize("rates", ["1e-4:1e-1:12", [0.1], "0.1,0.2", 0.1])
def test_what_asks_for_no_adaptive_rates(rates):
    assert read_span(rates, False) is None


@pytest.mark.parametrize(
    ("rates", "adaptive", "told"),
    [
        ("0.1:0.01", False, "rise"),
        ("0:1", False, "rise"),
        ("a:b", False, "rates"),
        ([0.1], True, "both ends"),
        ([0.1, 0.2], 2, "3 to"),
        ([0.1, 0.2], 4.5, "3 to"),
        ([0.1, 0.2], "many", "adaptive"),
    ],
)
def test_wrong_use(rates, adaptive, told):
    with pytest.raises(ArgumentError, match=told):
        read_span(rates, adaptive)
