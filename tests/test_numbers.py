"""Numbers of every kind are taken for what they are, or refused with a CrashsimError; counts that
nobody could wait for are refused with the largest that can be asked for."""

import json
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import crashsim
from crashsim import (
    AdditiveNoise,
    BitFlip,
    CrashsimError,
    CrashVariance,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    Score,
    StuckAt,
    WeightCrash,
    score,
)
from crashsim.arguments import MOST_SAMPLES, MOST_STEPS, number, whole
from crashsim.chip.spiking import run_chip
from crashsim.cli import main
from crashsim.protection.replicas import byzantine_table, simulate_vote
from crashsim.training.classifier import Recipe
from crashsim.training.hardening import Limits

TENTH = [0.1, np.float64(0.1), Fraction(1, 10)]
HUGE = 10**5000  # which neither a float nor a message can hold


@pytest.mark.parametrize("make", [NeuronCrash, WeightCrash, StuckAt, BitFlip, GainNoise])
@pytest.mark.parametrize("given", [*TENTH, np.float32(0.1), np.float16(0.1)], ids=repr)
def test_a_rate_is_a_float_whatever_it_was_given_as(make, given):
    fault = make(given)
    assert type(fault.rate) is float
    assert fault == make(float(given))
    assert hash(fault) == hash(make(float(given)))
    assert json.dumps(fault.to_dict()) == json.dumps(make(float(given)).to_dict())


@pytest.mark.parametrize("given", [8, np.int64(8), np.uint8(8)], ids=repr)
def test_counts_of_faults_are_integers(given):
    assert type(BitFlip(0.1, bits=given).bits) is int
    assert type(NeuronCrash(0.1, group=given).group) is int
    tensor = torch.linspace(-1, 1, 7).bfloat16()
    wanted = BitFlip(0.1).displacement(tensor)
    assert torch.equal(BitFlip(0.1, bits=given).displacement(tensor), wanted)


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_a_score_of_any_numbers_is_that_of_floats(make_net, randn):
    net, x = make_net((3, 5, 2)), randn(2, 3)
    wanted, *others = (
        score(
            net, x, NeuronCrash(tenth), epsilon=tenth, delta=tenth, rel_width=tenth,
            samples=count, confidence=1 - tenth,
        ).to_dict()
        for tenth, count in zip(TENTH, (500, np.int64(500), np.uint16(500)), strict=True)
    )  # fmt: skip
    for other in others:
        json.dumps(other)
        assert Score.from_dict(other).epsilon == 0.1
        assert {k: v for k, v in other.items() if k != "timings"} == {
            k: v for k, v in wanted.items() if k != "timings"
        }


ARRAYS = torch.Tensor | np.ndarray | list  # of which a probability for each unit may be made
WRONG = [
    HUGE, -HUGE, math.nan, True, "0.1", 0.1 + 0j, Decimal("0.1"), torch.tensor(0.1), [0.1],
    np.array(0.1),
]  # fmt: skip


@pytest.mark.parametrize("given", WRONG, ids=lambda v: type(v).__name__)
def test_what_is_no_such_number_is_refused(make_net, randn, given):
    net, x = make_net((3, 5, 2)), randn(2, 3)
    calls = [
        lambda: NeuronCrash([given, "0.1"] if isinstance(given, ARRAYS) else given),
        lambda: BitFlip(0.1, bits=given),
        lambda: NeuronCrash(0.1, group=given),
        lambda: score(net, x, epsilon=given),
        lambda: score(net, x, epsilon=0.1, delta=given),
        lambda: score(net, x, samples=given),
        lambda: score(net, x, rel_width=given),
        lambda: score(net, x, confidence=given),
        lambda: score(net, x, seed=given),
        lambda: CrashVariance(net, NeuronCrash(0.1), strength=given),
        lambda: Recipe(epochs=given),
        lambda: Limits(width=given),
    ]
    for call in calls:
        with pytest.raises(CrashsimError):
            call()


def test_faults_beyond_what_the_moments_can_hold_are_refused_in_training(make_net, randn):
    net, x = make_net((3, 5, 2)), randn(2, 3)
    penalty = CrashVariance(net.train(), AdditiveNoise(1e308))
    with pytest.raises(CrashsimError, match="std=1e\\+308 is too large"):
        net(x)
    penalty.remove()
    assert torch.isfinite(net(x)).all()


@pytest.mark.parametrize("count", [10**12, 9 * 10**29, MOST_SAMPLES + 1])
def test_more_samples_than_can_be_waited_for_are_refused(make_net, randn, count):
    net, x = make_net((3, 5, 2)), randn(2, 3)
    space = FaultSpace(net, x, NeuronCrash(0.1))
    calls = {
        "samples": [
            lambda: score(net, x, samples=count),
            lambda: score(net, x, samples=count, rel_width=0.1),
            lambda: crashsim.monte_carlo(space, samples=count),
            lambda: crashsim.TrainingReport(net, x, NeuronCrash(0.1), samples=count),
            lambda: Limits(samples=count),
        ],
        "trials": [
            lambda: simulate_vote(space, count=3, epsilon=0.1, trials=count),
            lambda: byzantine_table(net, x, count=3, faults=NeuronCrash(0.1), trials=count),
        ],
    }
    for argument, some in calls.items():
        for call in some:
            with pytest.raises(CrashsimError, match=rf"{argument}={count}; .* to {MOST_SAMPLES}"):
                call()


@pytest.mark.parametrize("count", [MOST_STEPS + 1, 10**30])
def test_more_steps_than_can_be_waited_for_are_refused(make_net, randn, count):
    space = FaultSpace(make_net((3, 5, 2)), randn(2, 3), NeuronCrash(0.1))
    for call in (
        lambda: Recipe(epochs=count),
        lambda: Limits(steps=count),
        lambda: run_chip(space, masks=count),
        lambda: run_chip(space, steps=count),
    ):
        with pytest.raises(CrashsimError, match=rf"={count}; give an integer from .* to "):
            call()


def test_a_command_line_of_absurd_counts_ends_at_once(monkeypatch, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.ones((2, 4), "f4"))
    monkeypatch.chdir(tmp_path)
    for line in (
        "score 4-3-2 --inputs x.npy --samples 1000000000000",
        "compare 4-3-2 4-5-2 --inputs x.npy --samples " + "9" * 30,
        "compare 4-3-2 4-5-2 --inputs x.npy --inits 1000000000000",
        "hardware 4-3-2 --inputs x.npy --masks 1000000000000",
        "train 4-3-2 --epochs 1000000000000",
    ):
        monkeypatch.setattr("sys.argv", ["crashsim", *line.split()])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2, line
        assert "10000" in capsys.readouterr().err


def test_the_largest_counts_are_taken():
    assert whole("x", MOST_SAMPLES, 1, MOST_SAMPLES) == MOST_SAMPLES
    assert Limits(samples=MOST_SAMPLES).samples == MOST_SAMPLES
    assert Recipe(epochs=MOST_STEPS).epochs == MOST_STEPS
    assert number("x", Fraction(1, 3), "a number") == 1 / 3
