"""Curves over rates, against all patterns of faults and against single samples."""

import itertools
import json
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import (
    AdditiveNoise,
    BitFlip,
    Curve,
    FaultSpace,
    GainNoise,
    Interrupted,
    NeuronCrash,
    WeightCrash,
)
from crashsim.errors import ArgumentError, FileError
from crashsim.sampling.chips.run import chip_metrics
from crashsim.sweeping.nested import NestedChips
from crashsim.sweeping.rates import read_rates
from crashsim.sweeping.task import ChipsByRate

NEURONS, EXAMPLES = 9, 60
RATES = (0.004, 0.05, 0.3)


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
        y[::9] = (y[::9] + 1) % 3  # the network is not always right
        outputs = net[2](torch.relu(net[0](x)) * (1 - patterns)[:, None])
    right = (outputs.argmax(-1) == y).double().mean(1).numpy()
    return net, x, y, patterns.sum(1).numpy(), right


def mean_at(case, p):
    """The exact mean accuracy over chips."""
    dead, right = case[3:]
    return p**dead * (1 - p) ** (NEURONS - dead) @ right


def curve_of(case, **options):
    net, x, y = case[:3]
    given = {"faults": NeuronCrash(0.1), "sites": "1", "rates": RATES, "chips": 150}
    return crashsim.sweep(net, (x, y), **{**given, **options})


def holds(case, seeds):
    """Shares of curves whose band, each interval, accepted shares and tolerable rate hold."""
    dead, right = case[3:]
    level = right.max() - 0.15
    target = mean_at(case, 0.1)  # reached up to 0.1, between two of the rates
    hits = np.zeros(4)
    for seed in seeds:
        curve = curve_of(case, seed=seed, target=level)
        inside, alone, accepted = [], [], []
        for p in curve.points:
            true = mean_at(case, p["rate"])
            inside.append(p["band_low"] - 1e-9 <= true <= p["band_high"] + 1e-9)
            alone.append(p["low"] - 1e-9 <= true <= p["high"] + 1e-9)
            weights = p["rate"] ** dead * (1 - p["rate"]) ** (NEURONS - dead)
            share = weights @ (right >= level)
            accepted.append(p["accepted"]["low"] - 1e-9 <= share <= p["accepted"]["high"] + 1e-9)
        found = curve.tolerable_rate(target)
        tolerated = found.low <= 0.1 < found.high
        hits += [all(inside), np.mean(alone), np.mean(accepted), tolerated]
    return hits / len(seeds)


def test_bands_hold_at_all_rates_at_once(case):
    assert mean_at(case, 0.3) < mean_at(case, 0.004) - 0.1
    assert (holds(case, range(25)) >= 0.84).all()  # 95% less 4 deviations or so


@pytest.mark.slow
def test_coverage_of_400_seeds(case):
    assert (holds(case, range(400)) >= 0.925).all()


def test_the_estimates_are_unbiased(case):
    curve = curve_of(case, chips=20_000)
    for point in curve.points:
        true = mean_at(case, point["rate"])
        assert point["value"] == pytest.approx(true, abs=0.003)
        assert point["high"] - point["low"] < 0.02


@pytest.mark.parametrize(
    "fault", [NeuronCrash(0.1), WeightCrash(0.1), BitFlip(0.1, bits=4)], ids=lambda f: f.name
)
def test_faults_are_nested(case, fault):
    net, x, _ = case[:3]
    sites = "1" if isinstance(fault, NeuronCrash) else "weights"
    space = FaultSpace(net, x, fault, sites)
    chips = NestedChips.of(space, (0.01, 0.05, 0.12, 0.4), 7, 700, 256)
    number = [0] * 4
    for block in range(chips.blocks):
        each = [points.dense() for points in chips.points(block)]
        for k, (less, more) in enumerate(itertools.pairwise(each)):
            assert (less <= more).all()
            number[k] += less.sum()
        number[3] += each[3].sum()
    trials = 700 * space.N
    for p, found in zip(chips.rates, number, strict=True):
        assert found / trials == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / trials))


def test_chips_at_the_largest_rate_are_samples_of_monte_carlo(case):
    net, x, y = case[:3]
    curve = curve_of(case, seed=5, chips=30)
    space = FaultSpace(net, x, NeuronCrash(0.3), "1")
    wanted = [(space.sample(5, j).outputs.argmax(-1) == y.numpy()).mean() for j in range(30)]
    struck = [v for j, v in enumerate(wanted) if space.sample(5, j).faults]
    found = curve.law(curve.points[-1]).sampled
    np.testing.assert_allclose(np.sort(found), np.sort(struck))


def test_each_chip_at_each_rate_is_what_a_plain_pass_gives(case):
    net, x, y = case[:3]
    space = FaultSpace(net, x, NeuronCrash(0.1), "1")
    chips = NestedChips.of(space, RATES, 3, 50, 16)
    with torch.no_grad():
        hidden = torch.relu(net[0](x))
        for k in range(len(RATES)):
            e = np.concatenate([chips.points(b)[k].dense() for b in range(chips.blocks)])
            alive = torch.from_numpy(1 - e).float()[:, None]
            right = (net[2](hidden * alive).argmax(-1) == y).double().mean(1).numpy()
            point = curve_of(case, seed=3, chips=50).points[k]
            assert point["struck"] == e.any(1).sum()
            np.testing.assert_allclose(
                np.repeat(point["values"], point["counts"]), np.sort(right[e.any(1)])
            )


def test_noise_is_nested_by_its_size(case):
    net, x, y = case[:3]
    space = FaultSpace(net, x, GainNoise(0.1), "1")
    chips = NestedChips.of(space, (0.02, 0.3), 0, 40, 64)
    less, more = (points.dense() for points in chips.points(0))
    np.testing.assert_allclose(less * 15, more)
    curve = crashsim.sweep(net, (x, y), AdditiveNoise(1.0), "1", rates=[0.01, 3.0], chips=100)
    assert curve.parameter == "std"
    assert curve.points[0]["value"] > curve.points[1]["value"] + 0.05


def test_faults_of_several_rates_keep_their_ratios(case):
    net, x, _y = case[:3]
    faults = {"1": NeuronCrash(0.02), "2.weight": WeightCrash(0.01)}
    space = FaultSpace(net, x, faults)
    chips = NestedChips.of(space, (0.1, 0.4), 0, 2000, 4096)
    low, high = (points.dense().mean(0) for points in chips.points(0))
    assert low[:NEURONS].mean() == pytest.approx(0.1, abs=0.01)
    assert low[NEURONS:].mean() == pytest.approx(0.05, abs=0.01)
    assert high[NEURONS:].mean() == pytest.approx(0.2, abs=0.01)
    each = NeuronCrash(torch.linspace(0.1, 0.2, NEURONS))
    varied = NestedChips.of(FaultSpace(net, x, each, "1"), (0.05, 0.8), 0, 4000, 4096)
    for points, largest in zip(varied.points(0), (0.05, 0.8), strict=True):
        wanted = np.linspace(0.5, 1, NEURONS) * largest
        np.testing.assert_allclose(points.dense().mean(0), wanted, atol=0.035)


def test_the_same_numbers_whatever_runs_the_blocks(case):
    plain = curve_of(case).to_dict()
    with ThreadPoolExecutor(2) as threads:
        assert curve_of(case, executor=threads).to_dict() == plain
    with ProcessPoolExecutor(2) as processes:
        assert curve_of(case, executor=processes).to_dict() == plain
    assert curve_of(case, seed=1).to_dict()["points"] != plain["points"]


def test_blocks_of_another_size_hold_the_same_chips(case):
    net, x, _y = case[:3]
    space = FaultSpace(net, x, NeuronCrash(0.1), "1")
    found = []
    for per_block in (16, 64):
        chips = NestedChips.of(space, RATES, 3, 100, per_block)
        found.append(np.concatenate([chips.points(b)[1].dense() for b in range(chips.blocks)]))
    np.testing.assert_array_equal(*found)


def test_chips_that_do_not_differ_run_once(case):
    ones = curve_of(case, rates=[0.1], chips=400)
    many = curve_of(case, rates=np.geomspace(1e-4, 0.1, 12), chips=400)
    assert many.rows < 2 * ones.rows


def test_an_interrupt_keeps_the_chips_that_were_finished(case):
    def progress(name, done, total):
        if done >= 2000:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        curve_of(case, chips=4000, progress=progress)
    partial = stopped.value.partial
    assert partial.partial
    assert 1000 < partial.chips < 4000
    whole = curve_of(case, chips=4000)
    mine, its = (c.law(c.points[1]).sampled for c in (partial, whole))
    assert len(mine) < len(its)
    assert "interrupted" in str(partial)


def test_saved_curves_are_the_same(case, tmp_path):
    curve = curve_of(case)
    curve.save(tmp_path / "curve.json")
    again = Curve.load(tmp_path / "curve.json")
    assert again == curve
    assert again.tolerable_rate(0.8) == curve.tolerable_rate(0.8)
    text = curve.to_csv(tmp_path / "curve.csv")
    lines = text.splitlines()
    assert len(lines) == 2 + len(RATES)
    for line, point in zip(lines[2:], curve.points, strict=True):
        rate, value, low, *_ = map(float, line.split(",")[:3])
        assert (rate, value, low) == (point["rate"], point["value"], point["low"])
    assert (tmp_path / "curve.csv").read_text() == text


@pytest.mark.parametrize(
    "plain", ["[]", "{}", '{"record": "curve", "schema": 9}', '{"record": "curve", "schema": 1}']
)
def test_what_is_no_curve_is_refused(tmp_path, plain):
    (tmp_path / "it.json").write_text(plain)
    with pytest.raises(FileError, match="curve="):
        Curve.load(tmp_path / "it.json")


def test_a_curve_is_shown(case):
    curve = curve_of(case, target=0.8)
    text = curve.to_text(80)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "accuracy" in text
    assert "0.05" in text
    page = curve.to_html()
    assert page.count("<svg") == 2
    axes = curve.plot()
    assert curve.plot(axes) is axes
    assert len({line.get_color() for line in axes.lines}) == 2


def test_without_targets_changes_of_class_are_asked(case):
    net, x = case[:2]
    curve = crashsim.sweep(net, x, NeuronCrash(0.1), "1", rates="0.01:0.3:4", chips=60)
    assert (curve.metric, curve.clean, curve.lower_is_better) == ("class-change", 0.0, True)
    found = curve.tolerable_rate(0.05)
    assert 0 <= found.low <= found.rate <= found.high < 1


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [
        ("1e-6:1e-2:5", (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)),
        ("0.1,0.01", (0.01, 0.1)),
        ([0.2, 0.1, 0.2], (0.1, 0.2)),
        (0.5, (0.5,)),
        (np.array([0.25]), (0.25,)),
    ],
)
def test_rates(rates, wanted):
    assert read_rates(rates) == wanted


@pytest.mark.parametrize(
    "rates", ["", "a", "1:2", "0.1:0.01:4", "0:1:3", "1e-3:1e-2:1", [], [0], [-1], [float("nan")],
              None, ["x"], [True], b"1", float("inf"), range(1, 2000)],
)  # fmt: skip
def test_rates_that_make_no_sense(rates):
    with pytest.raises(ArgumentError, match="rates"):
        read_rates(rates)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rates": [2.0]}, "rates"),
        ({"chips": 0}, "chips"),
        ({"chips": 5, "samples": 5}, "two names"),
        ({"metric": ["accuracy"]}, "one metric"),
        ({"metric": "nothing"}, "nothing"),
        ({"target": "high"}, "target"),
        ({"confidence": 1}, "confidence"),
        ({"faults": NeuronCrash(count=2)}, "count"),
        ({"faults": {"1": NeuronCrash(0.1), "0": GainNoise(0.1)}}, "p and std"),
    ],
)
def test_wrong_use(case, options, told):
    with pytest.raises(ArgumentError, match=told):
        curve_of(case, **options)


def test_tolerable_rates_at_the_ends(case):
    curve = curve_of(case)
    never = curve.tolerable_rate(1.0)
    assert (never.rate, never.low, never.high) == (0.0, 0.0, 0.0)
    always = curve.tolerable_rate(0.0)
    assert (always.rate, always.low, always.high) == (0.3, 0.3, float("inf"))
    yields = [curve.tolerable_rate(0.7, share).rate for share in (0.99, 0.5)]
    assert yields[0] < yields[1]


def test_the_task_pickles_and_runs_alone(case):
    import pickle

    from crashsim.metrics import AskedMetrics
    from crashsim.model.labelled import read_labelled

    net, x, y = case[:3]
    space = FaultSpace(net, x, NeuronCrash(0.1), "1")
    examples = read_labelled((x, y), None, net)
    asked = AskedMetrics.of("accuracy", y, space.clean()).at(None)
    task = ChipsByRate(NestedChips.of(space, RATES, 0, 40, 16), examples, asked)
    again = pickle.loads(pickle.dumps(task))
    for one, other in zip(task.run(1).by_rate, again.run(1).by_rate, strict=True):
        np.testing.assert_array_equal(one.of_chips, other.of_chips)


def test_outputs_that_are_not_finite_stay_at_their_rates(case):
    net, x, y = case[:3]
    options = {"metric": "cross-entropy", "chips": 60}
    exponents = BitFlip(1e-3, format="float32", bits="exponent")
    curve = crashsim.sweep(net, (x, y), exponents, "weights", rates=[1e-4, 0.02], **options)
    few, many = curve.points
    assert many["not_finite"] > 0
    assert not np.isfinite(many["value"])
    assert few["not_finite"] == 0
    # What the smaller rate shares with the larger one is not spoilt by it.
    alone = [few[end] for end in ("value", "low", "high")]
    of_all = few["population"]
    assert np.isfinite([*alone, of_all["value"], of_all["low"], of_all["high"]]).all()
    again = Curve.from_dict(json.loads(json.dumps(curve.to_dict(), allow_nan=False)))
    assert "infinite" in again.to_text(80)
    assert again.to_html().count("<svg") == 1


@pytest.mark.parametrize("metric", ["perplexity", "top-2", "error-rate", lambda o, t: o.sum(-1)])
def test_other_metrics(case, metric):
    net, x, y = case[:3]
    found = crashsim.sweep(net, (x, y), NeuronCrash(0.1), "1", rates=RATES, metric=metric, chips=80)
    run = chip_metrics(
        FaultSpace(net, x, NeuronCrash(0.3), "1"), (x, y), metrics=[metric], samples=80
    )
    mean = run.found.mean(0, 0.05)
    point = found.points[-1]
    assert [point["value"], point["low"], point["high"]] == pytest.approx(
        [float(end) for end in (mean.value, mean.low, mean.high)]
    )
    assert found.clean == pytest.approx(float(run.found.clean[0]))
