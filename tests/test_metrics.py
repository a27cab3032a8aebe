"""Metrics of one's own: against an injector that shares nothing, and the sum over all patterns."""

import itertools
import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats

import crashsim
from crashsim import Event, FaultSpace, Mean, NeuronCrash, Score, monte_carlo, score
from crashsim.analytic.first_order import Analysis, double_precision, mean_point_single
from crashsim.errors import ArgumentError, CrashsimError, FileError
from crashsim.metrics import CLASS_CHANGE, predicted_class
from crashsim.sampling.enumeration import enumerate_space


def is_right(outputs, clean, targets):
    return outputs.argmax(-1) == targets


def brier(outputs, clean, targets):
    """Half the squared distance of softmax from the class: from 0 to 1."""
    odds = np.exp(outputs - outputs.max(-1, keepdims=True))
    chance = odds / odds.sum(-1, keepdims=True)
    return ((chance - np.eye(outputs.shape[-1])[targets]) ** 2).sum(-1) / 2


def margin(outputs, clean, targets):
    return outputs[..., 0] - outputs[..., 1]


ACCURACY = Event("accuracy", is_right)
BRIER = Mean("brier", brier, low=0, high=1)
MARGIN = Mean("margin", margin)


def by_hand(net, x, y, p):
    """Accuracy and Brier loss for each input under every pattern of crashed hidden neurons.

    The network written out in numpy, without crashsim.
    """
    w1, b1, w2, b2 = (t.detach().double().numpy() for t in net.parameters())
    hidden = np.tanh(x.double().numpy() @ w1.T + b1)
    right, loss, gap = np.zeros(len(x)), np.zeros(len(x)), np.zeros(len(x))
    for alive in itertools.product((0, 1), repeat=len(b1)):
        mass = math.prod(1 - p if a else p for a in alive)
        for i, h in enumerate(hidden):
            out = w2 @ (h * np.array(alive)) + b2
            chance = np.array([1 / np.exp(out - o).sum() for o in out])
            target = np.zeros(len(out))
            target[y[i]] = 1
            right[i] += mass * (max(range(len(out)), key=out.__getitem__) == y[i])
            loss[i] += mass * ((chance - target) ** 2).sum() / 2
            gap[i] += mass * (out[0] - out[1])
    return {"accuracy": right, "brier": loss, "margin": gap}


@pytest.fixture
def case(make_net, randn):
    net, x = make_net((3, 7, 3), seed=3, scale=2.5), randn(6, 3)
    y = np.array([0, 1, 2, 0, 1, 2])
    return net, x, y


def test_every_pattern_by_hand(case):
    net, x, y = case
    truth = by_hand(net, x, y, 0.2)
    found = score(
        net, x, NeuronCrash(0.2), targets=torch.from_numpy(y), metrics=[ACCURACY, BRIER, MARGIN],
        methods=["exact"],
    )  # fmt: skip
    clean = by_hand(net, x, y, 0.0)
    for name, values in truth.items():
        assert np.abs(values - clean[name]).max() > 0.02, name  # the faults matter
        for b, value in enumerate(values):
            assert found.find("exact", name, b).value == pytest.approx(value, abs=1e-6)
        assert found.find("exact", name).value == pytest.approx(values.mean(), abs=1e-6)
        assert found.find("exact", name).kind == "exact"


@pytest.mark.parametrize("way", ["plain", "few"])
def test_intervals_hold(case, way):
    """Of 100 runs, per input and pooled: how often do the 95% intervals hold the truth?"""
    net, x, y = case
    p = 0.02 if way == "few" else 0.2
    truth = by_hand(net, x, y, p)
    space = FaultSpace(net, x, NeuronCrash(p))
    held, wide, runs = {}, {}, 100
    for seed in range(runs):
        found = monte_carlo(
            space, samples=600, seed=seed, targets=y, metrics=[ACCURACY, BRIER, MARGIN],
            few_exact=way == "few",
        )  # fmt: skip
        for e in found.estimates:
            if e.quantity in truth:
                value = truth[e.quantity].mean() if e.input == "all" else truth[e.quantity][e.input]
                key = e.quantity, e.input
                held[key] = held.get(key, 0) + (e.low - 1e-7 <= value <= e.high + 1e-7)
                wide.setdefault(key, []).append((e.high - e.low, e.value))
                assert e.low <= e.value <= e.high
                assert e.quantity == "margin" or 0 <= e.low <= e.high <= 1
                assert (e.kind, e.output, e.confidence) == ("statistical", "all", 0.95)
    rates = {key: count / runs for key, count in held.items()}
    assert len(rates) == 3 * 7
    least = stats.binom.ppf(1e-4, runs, 0.95) / runs
    assert min(rates.values()) >= least, rates
    if way == "plain":  # and they are not much too wide: their width is about four deviations
        for key in (("brier", "all"), ("margin", 0), ("accuracy", 0)):
            widths, values = np.array(wide[key]).T
            assert widths.mean() < 1.6 * 3.92 * values.std()
            assert values.std() > 0


def test_accuracy_of_samples_against_an_injector(case):
    """Masks of torch's own on each hidden neuron, the same for all inputs."""
    net, x, y = case
    generator = torch.Generator().manual_seed(3)
    first, last = net[0], net[2]
    shares, losses = [], []
    with torch.no_grad():
        hidden = torch.tanh(first(x))
        for _ in range(4000):
            keep = (torch.rand(7, generator=generator) >= 0.2).float()
            out = last(hidden * keep)
            shares.append(float((out.max(1).indices == torch.from_numpy(y)).float().mean()))
            chance = torch.softmax(out, 1) - torch.nn.functional.one_hot(torch.from_numpy(y), 3)
            losses.append(float((chance**2).sum(1).mean() / 2))
    found = monte_carlo(
        FaultSpace(net, x, NeuronCrash(0.2)), samples=4000, seed=9, targets=y,
        metrics=[ACCURACY, BRIER],
    )  # fmt: skip
    pooled = {e.quantity: e for e in found.estimates if e.input == "all"}
    for name, values in (("accuracy", shares), ("brier", losses)):
        error = np.std(values) / np.sqrt(len(values))
        assert abs(pooled[name].value - np.mean(values)) < 5 * error * np.sqrt(2)
        assert pooled[name].high - pooled[name].low < 12 * error


def test_class_change_is_an_event(case):
    net, x, _ = case
    space = FaultSpace(net, x, NeuronCrash(0.2))
    again = Event("again", CLASS_CHANGE.happens)
    found = monte_carlo(space, samples=2000, metrics=[again])
    changes, own = (
        {e.input: (e.value, e.low, e.high) for e in found.estimates if e.quantity == name}
        for name in ("class-change", "again")
    )
    assert own.keys() == changes.keys()
    for b, numbers in changes.items():
        assert own[b] == pytest.approx(numbers, rel=1e-12)
    assert 0.01 < own["all"][0] < 0.9
    law = enumerate_space(space)
    np.testing.assert_array_equal(law.average(again), law.class_change)
    outputs = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]])
    np.testing.assert_array_equal(predicted_class(outputs), [1, 0])  # the first of the largest


@pytest.mark.parametrize("way", ["plain", "few"])
def test_batches_and_threads_change_no_metric(case, way, monkeypatch):
    net, x, y = case
    space = FaultSpace(net, x, NeuronCrash(0.02))
    analysis = Analysis()
    mean_point_single(double_precision(space), analysis)
    options = {"samples": 3000, "targets": y, "metrics": [ACCURACY, BRIER, MARGIN]}
    if way == "few":
        options |= {"few_exact": True, "control": analysis.surrogate}

    def own(**more):
        found = monte_carlo(space, **options, **more).estimates
        return [(e.quantity, e.input, e.value, e.low, e.high) for e in found if e.quantity in NAMES]

    whole = own()
    assert len(whole) == 21
    with ThreadPoolExecutor(3) as pool:
        assert own(executor=pool) == whole
    monkeypatch.setattr("crashsim.sampling.samples._STEP_VALUES", 18 * 11)
    for a, b in zip(own(), whole, strict=True):
        assert a[:2] == b[:2]
        assert a[2:] == pytest.approx(b[2:], rel=1e-7)


NAMES = ("accuracy", "brier", "margin")


def test_a_score_shows_saves_and_loads_them(case, tmp_path):
    net, x, y = case
    options = {"samples": 500, "confidence": 0.999}
    found = score(net, x, NeuronCrash(0.2), targets=y, metrics=[ACCURACY, BRIER], **options)
    for name in ("accuracy", "brier"):
        exact, sampled = found.find("exact", name), found.find("monte-carlo", name)
        assert sampled.low <= exact.value <= sampled.high
        assert name in found.to_text()
        assert name in found.to_html()
    found.save(tmp_path / "s.json")
    again = Score.load(tmp_path / "s.json")
    assert again.find("monte-carlo", "brier", 2) == found.find("monte-carlo", "brier", 2)
    assert again.to_text() == found.to_text()
    plain = found.to_dict()
    plain["estimates"] += [plain["estimates"][-1] | {"quantity": f"m{i}"} for i in range(1001)]
    with pytest.raises(FileError, match="of at most 1000"):
        Score.from_dict(plain)
    # What was there without metrics is there with them, the same.
    plain = score(net, x, NeuronCrash(0.2), **options)
    assert plain.estimates == [e for e in found.estimates if e.quantity not in NAMES]
    assert not found.contradictions
    theory = score(net, x, NeuronCrash(0.2), methods=["taylor"], targets=y, metrics=[ACCURACY])
    assert "exact and monte-carlo" in theory.skipped["accuracy"]


def test_a_wrong_metric_contradicts_the_exact_sum(case):
    """The names are the user's, but numbers that cannot both be true are told as ever."""
    net, x, y = case
    found = score(net, x, NeuronCrash(0.2), samples=2000, targets=y, metrics=[BRIER])
    plain = found.to_dict()
    for e in plain["estimates"]:
        if (e["method"], e["quantity"], e["input"]) == ("monte-carlo", "brier", "all"):
            e["value"] = e["high"] = 0.9
            e["low"] = 0.88
    from crashsim.results.contradictions import contradictions

    estimates = Score.from_dict(json.loads(json.dumps(plain))).estimates
    told = contradictions(estimates, len(x), (1e-12, 1e-6))
    assert [c.quantity for c in told] == ["brier"]


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_a_value_that_no_sample_has_shown_is_allowed_for(case):
    """A loss of 1 where no neuron crashes, with probability 0.8^7, and 0 elsewhere."""
    net, x, _ = case

    def spared(outputs, clean, targets):
        is_clean = (np.abs(outputs - clean) < 1e-6).all((1, 2))
        return np.repeat(is_clean[:, None], len(clean), axis=1).astype(float)

    space, truth = FaultSpace(net, x, NeuronCrash(0.2)), 0.8**7
    unseen = 0
    for seed in range(20):
        free, bounded = (
            next(
                e
                for e in monte_carlo(space, samples=8, seed=seed, metrics=[metric]).estimates
                if (e.quantity, e.input) == ("spared", "all")
            )
            for metric in (Mean("spared", spared), Mean("spared", spared, low=0, high=1))
        )
        assert bounded.value == free.value
        assert bounded.low <= truth <= bounded.high <= 1
        if free.value == 0:
            unseen += 1
            assert free.high == 0 < bounded.high
    assert unseen > 0


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (Event("numbers", lambda o, c, t: o[..., 0]), "truth values of shape"),
        (Event("flat", lambda o, c, t: o.argmax(-1).ravel() == 0), "returned bool of shape"),
        (Mean("outputs", lambda o, c, t: o), "returned float64 of shape"),
        (Mean("truths", lambda o, c, t: np.log(o * 0 - 1)[..., 0]), "not finite"),
        (Mean("high", lambda o, c, t: o[..., 0] * 0 + 2, high=1), "beyond its low=None and high=1"),
        (Event("broken", lambda o, c, t: o.nothing), "raised AttributeError"),
        (Event("writes", lambda o, c, t: o.sort()), "raised ValueError"),
        (Event("tail", is_right), "crashsim's own"),
        (CLASS_CHANGE, "crashsim's own"),
        ("accuracies", "choose among accuracy, top-5"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_wrong_metrics(case, metric, told):
    net, x, y = case
    for work in (
        lambda: score(net, x, NeuronCrash(0.2), targets=y, metrics=[metric]),
        lambda: monte_carlo(FaultSpace(net, x, NeuronCrash(0.2)), targets=y, metrics=[metric]),
    ):
        with pytest.raises(ArgumentError, match="metrics") as raised:
            work()
        assert told in str(raised.value)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_a_metric_cannot_write_to_what_it_is_given(case, argument):
    def spoils(*given):
        given[argument][:] = 0
        return given[0].argmax(-1) == given[2]

    net, x, y = case
    with pytest.raises(ArgumentError, match="read-only"):
        score(net, x, NeuronCrash(0.2), targets=y, metrics=[Event("spoils", spoils)])
    assert y.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_masked_result_is_refused(case):
    hidden = Mean("hidden", lambda o, c, t: np.ma.masked_greater(o[..., 0], -1e9))
    net, x, _ = case
    with pytest.raises(ArgumentError, match="masked"):
        score(net, x, NeuronCrash(0.2), metrics=[hidden])


def test_wrong_targets_and_names(case):
    net, x, y = case
    for targets in (y[:-1], 3, [object()] * 6, [[1], [1, 2]] * 3):
        with pytest.raises(CrashsimError, match="targets"):
            score(net, x, NeuronCrash(0.2), targets=targets, metrics=[ACCURACY])
    with pytest.raises(ArgumentError, match="there twice"):
        score(net, x, NeuronCrash(0.2), targets=y, metrics=[ACCURACY, ACCURACY])
    many = [Event(f"m{i}", is_right) for i in range(1001)]
    with pytest.raises(ArgumentError, match="at most 1000"):
        score(net, x, NeuronCrash(0.2), targets=y, metrics=many)
    with pytest.raises(ArgumentError, match="metrics=3"):
        score(net, x, NeuronCrash(0.2), targets=y, metrics=3)
    for wrong in (
        lambda: Event("", is_right),
        lambda: Event(3, is_right),
        lambda: Event("a\n", is_right),
        lambda: Mean("a", 3),
        lambda: Mean("a", brier, low=1, high=0),
        lambda: Mean("a", brier, low=float("nan")),
    ):
        with pytest.raises(ArgumentError, match=r"name=|value=|low="):
            wrong()


def test_they_are_public():
    assert crashsim.Event is Event
    assert crashsim.Mean is Mean
    code = "import sys, crashsim; crashsim.Event, crashsim.Mean; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
