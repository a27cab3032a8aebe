"""Ctrl-C: what is finished is kept, says that it is partial, and is not off by a digit."""

import json
import math
import os
import signal
import time

import numpy as np
import pytest

from crashsim import FaultSpace, Interrupted, NeuronCrash, Score, WeightCrash, monte_carlo, score
from crashsim.analytic.first_order import Analysis, double_precision, mean_point_single
from crashsim.files.data import Data
from crashsim.results.comparison import compare
from crashsim.sampling.chips.run import chip_metrics
from crashsim.sampling.tally import Tally
from crashsim.scoring.methods import METHODS
from crashsim.training.classifier import Recipe
from crashsim.training.hardening import Limits, harden
from crashsim.training.hardening import _Hardening as Hardening
from crashsim.training.verification import verify


def stopping_after(n):
    """A progress function that interrupts once n samples are done."""

    def progress(done, total):
        if done >= n:
            raise KeyboardInterrupt

    return progress


def assert_same(found, wanted):
    assert found.samples == wanted.samples
    np.testing.assert_allclose(found.kept, wanted.kept[: len(found.kept)], atol=1e-6)
    for a, b in zip(found.estimates, wanted.estimates, strict=True):
        name = (a.method, a.quantity, a.input, a.output)
        assert name == (b.method, b.quantity, b.input, b.output)
        ends = [(e.value, e.low, e.high) for e in (a, b)]
        assert ends[0] == pytest.approx(ends[1], rel=1e-5, abs=1e-7), name


@pytest.fixture
def space(make_net, randn):
    return FaultSpace(make_net((3, 6, 2)), randn(2, 3), NeuronCrash(0.2))


# Monte Carlo.


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
@pytest.mark.parametrize("asked", [200, 2500, 20_000])
def test_the_samples_that_were_drawn_are_kept(space, asked):
    drawn = []
    with pytest.raises(Interrupted, match="interrupted after") as raised:
        monte_carlo(
            space,
            samples=asked,
            epsilon=0.1,
            seed=4,
            progress=lambda done, total: drawn.append(done) or stopping_after(asked // 3)(done, 0),
        )
    found = raised.value.partial
    assert found.stopped == "interrupted"
    assert asked // 3 <= found.samples == drawn[-1] <= asked // 3 + asked // 10
    assert_same(found, monte_carlo(space, samples=found.samples, epsilon=0.1, seed=4))


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
@pytest.mark.parametrize("way", ["plain", "control", "few"])
def test_an_interrupt_at_any_line_gives_the_first_samples(make_net, randn, interrupting, way):
    fault = NeuronCrash(0.01 if way == "few" else 0.2)
    space = FaultSpace(make_net((3, 6, 2)), randn(2, 3), fault)
    analysis = Analysis()
    mean_point_single(double_precision(space), analysis)
    options = {
        "plain": {},
        "control": {"control": analysis.surrogate},
        "few": {"control": analysis.surrogate, "few_exact": True},
    }[way] | {"epsilon": 0.1, "seed": 3}
    whole, found = {}, 0
    for stop in interrupting(
        "sampling.monte_carlo", "sampling.samples", "sampling.tally", "campaign.tasks", every=11
    ):
        try:
            with stop:
                monte_carlo(space, samples=100, **options)
        except Interrupted as interrupt:
            n = interrupt.partial.samples
            if n not in whole:
                whole[n] = monte_carlo(space, samples=n, **options)
            assert_same(interrupt.partial, whole[n])
            found += 1
        except KeyboardInterrupt:
            continue  # nothing was finished
    assert found > 5
    assert len(whole) > 3


def test_before_anything_is_done_there_is_no_partial_result(space, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(FaultSpace, "outcomes", interrupt)
    with pytest.raises(KeyboardInterrupt) as raised:
        monte_carlo(space)
    assert not isinstance(raised.value, Interrupted)


def test_an_interrupted_search_for_a_width_keeps_its_confidence(space):
    with pytest.raises(Interrupted) as raised:
        monte_carlo(space, rel_width=1e-3, progress=stopping_after(3000))
    found = raised.value.partial
    assert found.stopped == "interrupted"
    assert found.confidence > 0.95  # as it had looked before


# Scores.


def test_a_score_keeps_the_methods_that_were_finished(make_net, randn):
    net, x = make_net((3, 6, 2)), randn(2, 3)

    def run(progress=None):
        return score(net, x, NeuronCrash(0.1), epsilon=0.2, samples=2000, progress=progress)

    begun = []
    whole = run(lambda name, done, total: begun.append(name))
    assert not whole.partial
    begun = list(dict.fromkeys(begun))
    assert len(begun) > 8
    for k, name in enumerate(begun):

        def progress(at, done, total, name=name):
            if at == name:
                raise KeyboardInterrupt

        if k < 3:  # the space, the plan, and what the first method needs
            with pytest.raises(KeyboardInterrupt) as raised:
                run(progress)
            assert not isinstance(raised.value, Interrupted)
            continue
        with pytest.raises(Interrupted) as raised:
            run(progress)
        found = raised.value.partial
        assert isinstance(found, Score)
        assert found.partial
        assert found.verdict.startswith("Partial, as it was interrupted.")
        assert "interrupted: a partial score" in found.warnings[0]
        for e in found.estimates:
            if e.quantity == "quantile":  # of several levels
                continue
            of_whole = whole.find(e.method, e.quantity, e.input, e.output)
            assert (e.value, e.low, e.high) == (of_whole.value, of_whole.low, of_whole.high)
        missing = {e.method for e in whole.estimates} - {e.method for e in found.estimates}
        interrupted = {m for m, reason in found.skipped.items() if "interrupted" in reason}
        assert missing == interrupted & {m.name for m in METHODS} - whole.skipped.keys()
        again = Score.from_dict(json.loads(json.dumps(found.to_dict())))
        assert again.partial
        assert "(partial)" in again.to_text()
        assert "Partial, as it was interrupted." in again.to_html()


def test_a_score_keeps_the_samples_that_were_drawn(make_net, randn):
    def progress(name, done, total):
        if name == "monte-carlo" and done >= 500:
            raise KeyboardInterrupt

    net, x = make_net((3, 6, 2)), randn(2, 3)
    with pytest.raises(Interrupted) as raised:
        score(net, x, WeightCrash(0.1), samples=2000, progress=progress)
    found = raised.value.partial
    assert (found.stopped, found.partial) == ("interrupted", True)
    assert 500 <= found.samples < 800
    assert f"first {found.samples} samples" in found.warnings[0]
    alone = score(net, x, WeightCrash(0.1), samples=found.samples)
    for output in (0, 1, "all"):
        a, b = (s.find("monte-carlo", "variance", "all", output) for s in (found, alone))
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), rel=1e-5)


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
@pytest.mark.parametrize("first", [False, True])
def test_a_score_keeps_the_chips_that_were_judged(make_net, randn, monkeypatch, first):
    def stopped(*args, **options):
        if first:  # before any chip
            raise KeyboardInterrupt
        raise Interrupted("interrupted", chip_metrics(*args, **{**options, "samples": 100}))

    net, x, y = make_net((3, 6, 2)), randn(40, 3), np.arange(40) % 2
    whole = score(net, (x, y), WeightCrash(0.1), samples=2000, epsilon=0.1)
    monkeypatch.setattr("crashsim.scoring.methods.chip_metrics", stopped)
    with pytest.raises(Interrupted) as raised:
        score(net, (x, y), WeightCrash(0.1), samples=2000, epsilon=0.1)
    found = raised.value.partial
    assert found.samples == 2000
    assert found.find("monte-carlo", "tail") == whole.find("monte-carlo", "tail")
    assert (found.chips is None) == first
    if not first:
        assert 0 < found.chips["chips"] < whole.chips["chips"]
        assert found.find("monte-carlo", "accuracy") is not None


def test_older_scores_are_whole(make_net, randn):
    plain = score(make_net((3, 6, 2)), randn(2, 3), methods=["taylor"]).to_dict()
    del plain["partial"]
    assert Score.from_dict(plain).partial is False


def test_a_comparison_without_some_models(make_net, randn):
    scores = {
        name: [score(make_net((3, n, 2)), randn(2, 3), methods=["monte-carlo"], samples=300)]
        for name, n in (("a", 4), ("b", 6))
    }
    both = compare(scores, missing=["c"])
    assert both.partial
    assert both.verdict.startswith("Partial, as it was interrupted before c. Of the others, ")
    assert both.to_dict()["partial"] is True
    one = compare({"a": scores["a"]}, missing=["b", "c"])
    assert one.verdict == "Partial, as it was interrupted before b, c. Only a was scored."
    whole = compare(scores)
    assert whole.to_dict()["partial"] is False
    assert "Partial" not in whole.verdict


# Hardening: nothing is promised of what was cut short.


def test_verification_states_the_samples_that_were_drawn(space, monkeypatch):
    stop_after(monkeypatch, 2000)
    with pytest.raises(Interrupted) as raised:
        verify(space, epsilon=100.0, delta=0.5, replicas=1, seed=1)
    found = raised.value.partial
    assert 2000 <= found.samples < 3000
    assert found.high < 0.5  # which would have been enough
    assert not found.met


def stop_after(monkeypatch, samples):
    """Interrupts Monte Carlo where so many samples, of all runs together, were drawn."""
    count, drawn = Tally.count, 0

    def interrupted(self, points, *rest):
        nonlocal drawn
        if drawn >= samples:
            raise KeyboardInterrupt
        drawn += points.count
        return count(self, points, *rest)

    monkeypatch.setattr(Tally, "count", interrupted)


def test_a_vote_that_was_simulated_is_no_promise(space, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("crashsim.training.verification.monte_carlo", interrupt)
    with pytest.raises(Interrupted) as raised:
        verify(space, epsilon=1e-3, delta=0.01, replicas=3, seed=1, samples=3000)
    assert raised.value.partial.samples == 1000
    assert not raised.value.partial.met


@pytest.fixture
def data(randn):
    inputs = randn(60, 4)
    return Data("made", inputs, (inputs[:, 0] > 0).long())


def hardened(data, report=None):
    return harden(
        "4-6-2:tanh", data, data, NeuronCrash(0.02), epsilon=1.5, delta=0.2, report=report,
        recipe=Recipe(epochs=2), limits=Limits(accuracy_loss=1.0, samples=20_000),
    )  # fmt: skip


def test_hardening_that_is_cut_short_reaches_nothing(data, monkeypatch):
    assert hardened(data).reached  # what the others would have come to
    with monkeypatch.context() as patch:
        stop_after(patch, 2000)
        with pytest.raises(Interrupted) as raised:
            hardened(data)
    found = raised.value.partial
    assert (found.partial, found.reached, found.verification.met) == (True, False, False)
    assert 2000 <= found.verification.samples < 3000
    assert (
        f"Interrupted after {found.verification.samples:,} samples of its verification"
        in found.statement
    )
    assert found.to_dict()["partial"] is True
    with pytest.raises(Interrupted) as raised:
        hardened(data, report=stopping_after_step)
    assert raised.value.partial.reached is False
    assert len(raised.value.partial.steps) == 1


def stopping_after_step(step):
    raise KeyboardInterrupt


def test_hardening_before_a_network_is_trained(data, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Hardening, "_train", interrupt)
    with pytest.raises(KeyboardInterrupt) as raised:
        hardened(data)
    assert not isinstance(raised.value, Interrupted)


# The command line: what was asked for is written and marked, and the exit code is 130.


@pytest.fixture
def examples(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(40, 4)), y=np.arange(40) % 2)
    return "--inputs", "d.npz"


def test_score_writes_what_was_finished(run, examples, tmp_path, monkeypatch):
    stop_after(monkeypatch, 500)
    code, out, err = run(
        "score", "4-5-2:tanh", *examples, "--samples", 1000, "--methods", "taylor,monte-carlo",
        "--json", "s.json", "--report", "r.html",
    )  # fmt: skip
    assert code == 130, err
    assert "error: interrupted; the result is partial" in err
    found = Score.load(tmp_path / "s.json")
    assert (found.partial, found.stopped) == (True, "interrupted")
    assert 500 <= found.samples < 700
    assert "(partial)" in out
    assert "Partial, as it was interrupted." in (tmp_path / "r.html").read_text()


def test_score_of_some_initialisations(run, examples, tmp_path, monkeypatch):
    stop_after(monkeypatch, 2400)
    code, _, err = run(
        "score", "4-5-2:tanh", *examples, "--samples", 1000, "--methods", "monte-carlo",
        "--inits", 4, "--json", "s.json",
    )  # fmt: skip
    assert code == 130, err
    plain = json.loads((tmp_path / "s.json").read_text())
    assert plain["partial"] is True
    assert [s["partial"] for s in plain["inits"]] == [False, True]
    assert plain["samples"] == plain["inits"][0]["samples"] == 1000
    assert 400 <= plain["inits"][1]["samples"] < 600


def test_compare_ranks_what_was_finished(run, examples, tmp_path, monkeypatch):
    stop_after(monkeypatch, 2400)
    code, out, err = run(
        "compare", "4-5-2", "4-6-2", "4-7-2", *examples, "--samples", 1000, "--json", "c.json"
    )
    assert code == 130, err
    plain = json.loads((tmp_path / "c.json").read_text())
    assert (plain["partial"], plain["missing"]) == (True, ["4-7-2"])
    assert {c["name"] for c in plain["contenders"]} == {"4-5-2", "4-6-2"}
    assert all(math.isfinite(p) for p in plain["p_values"])
    assert "(partial)" in out


@pytest.mark.parametrize("old", [b"", b"old"])
@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("train 4-5-2 --data d.npz --epochs 3 --out m", ("m.json", "m.safetensors")),
        ("harden 4-5-2 --data d.npz --epsilon 1 --delta 0.1 --out m --json p.json",
         ("m.json", "m.safetensors", "p.json")),
        ("compare 4-5-2 4-6-2 --inputs d.npz --json c.json", ("c.json",)),
        ("score 4-5-2 --inputs d.npz --train d.npz --json s.json --report r.html",
         ("s.json", "r.html")),
    ],
)  # fmt: skip
def test_what_had_not_begun_is_not_written(run, examples, tmp_path, monkeypatch, line, files, old):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for name in files if old else ():
        (tmp_path / name).write_bytes(old)
    monkeypatch.setattr("torch.optim.AdamW.step", interrupt)
    stop_after(monkeypatch, 0)
    code, out, err = run(*line.split())
    assert code == 130, err
    assert err.strip() == "error: interrupted"
    assert not out.strip()
    for name in files:
        path = tmp_path / name
        assert (path.read_bytes() if path.exists() else b"") == old


def test_harden_writes_what_was_tried(run, tmp_path, examples, monkeypatch):
    stop_after(monkeypatch, 2000)
    code, out, err = run(
        "harden", "4-6-2:tanh", "--data", "d.npz", "--epsilon", 9, "--delta", 0.2, "--p", 0.01,
        "--epochs", 1, "--max-accuracy-loss", 1, "--out", "h", "--json", "p.json",
    )  # fmt: skip
    assert code == 130, err
    plain = json.loads((tmp_path / "p.json").read_text())
    assert (plain["partial"], plain["reached"]) == (True, False)
    assert 2000 <= plain["verification"]["samples"] < 3000
    facts = json.loads((tmp_path / "h.json").read_text())["facts"]["hardening"]
    assert (facts["partial"], facts["reached"]) == (True, False)
    assert "nothing is promised" in " ".join(out.split())


def test_an_interrupt_that_became_another_error(run, examples, monkeypatch):
    """As where it comes in the middle of an import."""

    def breaks(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise ImportError("half a module") from None

    monkeypatch.setattr("crashsim.scoring.score.compute", breaks)
    code, _, err = run("score", "4-5-2", *examples)
    assert (code, err.strip()) == (130, "error: interrupted"), err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
