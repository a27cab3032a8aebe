"""Wrong arguments of the public functions: a CrashsimError that names and shows them."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import CrashsimError, NeuronCrash
from crashsim.chip.spiking import run_chip
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import Data, load_data, load_examples
from crashsim.files.models import load_model, save_model
from crashsim.protection.replicas import simulate_vote
from crashsim.protection.voters import make_voter
from crashsim.results.comparison import compare
from crashsim.training.classifier import Recipe, accuracy, train_classifier
from crashsim.training.hardening import Limits
from crashsim.training.penalties import Strengths

X = torch.linspace(-1, 1, 24).reshape(6, 4)
FAULT = NeuronCrash(0.1)


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()


def space():
    return crashsim.FaultSpace(net(), X, FAULT)


CLASSES = torch.arange(6) % 3


def data(inputs=X, targets=CLASSES):
    return Data("mine", inputs, targets)


def harden(**changes):
    arguments = {
        "architecture": "4-4-3:tanh", "training": data(), "test": data(), "faults": FAULT,
        "epsilon": 1.0, "delta": 0.5, "recipe": Recipe(epochs=1),
    }  # fmt: skip
    return crashsim.harden(**{**arguments, **changes})


def follow(**changes):
    arguments = {"model": net(), "inputs": X, "faults": FAULT, "samples": 20}
    return crashsim.TrainingReport(**{**arguments, **changes}).look(0)


def replicate(x=X, **changes):
    return crashsim.Replicated(**{"model": net(), "count": 3, **changes})(x)


def replicate_with_faults(**changes):
    return replicate(faults=FAULT, **changes)


def byzantine(**changes):
    return crashsim.byzantine_table(**{"model": net(), "inputs": X, "count": 3, **changes})


def score(**changes):
    return crashsim.score(
        **{"model": net(), "inputs": X, "faults": FAULT, "samples": 20, **changes}
    )


def sample(**changes):
    return crashsim.monte_carlo(**{"space": space(), "samples": 20, **changes})


def build(**changes):
    return crashsim.FaultSpace(**{"model": net(), "inputs": X, "faults": FAULT, **changes})


def vote(**changes):
    return simulate_vote(**{"space": space(), "count": 3, "epsilon": 0.1, "trials": 4, **changes})


def chip(**changes):
    return run_chip(**{"space": space(), "masks": 4, "steps": 4, "engine": "numpy", **changes})


def save(**changes):
    good = {"model": net(), "architecture": parse_architecture("4-5-3"), "facts": {}}
    return save_model(**{"path": "m", **good, **changes})


# A function, one of its arguments, and values that make no sense for it.
NO_NUMBER = (None, "x", math.nan, math.inf, True, np.array([0.1, 0.2]), torch.tensor(0.1), object())
NO_RATE = (
    *(None, "x", math.nan, math.inf, True, object(), [], ["0.1"], np.array([0.1, math.nan])),
    *(np.array([True]), torch.tensor([0.1 + 1j]), torch.zeros(2, device="meta"), [0.1, [0.2]]),
)
NO_COUNT = (*NO_NUMBER, 1.5, 0, -1)
NO_SIZE = tuple(value for value in NO_COUNT if value is not None)  # where None has a meaning
NO_MODEL = (None, "64-10", nn.Linear, lambda x: x, {})
NO_SEED = (None, "x", -1, 2**64, 1.5, True, np.array([1, 2]))
NO_NAME = (None, 3, "nosuch", b"mean", np.array(["a", "b"]))
NO_SITES = (3, "nosuch", ["hidden"], np.array([1, 2]), None)
NO_INPUTS = (
    *(None, "x", 3, [], {}, torch.tensor(1.0), X[:0], X * math.nan, X + 1j, X.to("meta")),
    *(np.array(["a"]), np.array([{}]), torch.ones(6, 9), {1: X}, X.to_sparse()),
)
NO_FAULTS = (3, "crash", NeuronCrash, {}, [FAULT], {"hidden": None}, {1: FAULT})
WRONG = [
    (NeuronCrash, "p", (*NO_RATE, -0.1, 1.1, np.array([0.1, 1.1]), torch.tensor(1.1))),
    (lambda count: NeuronCrash(count=count), "count", (None, "x", -1, 1.5, True, np.array([1, 2]))),
    (lambda per: NeuronCrash(count=1, per=per), "per", (None, "x", 1)),
    (lambda per: NeuronCrash(0.1, per=per), "per", ("site", "x")),
    (lambda p: NeuronCrash(p, count=1), "count", (0.1, np.array([0.1]))),
    (lambda group: NeuronCrash(0.1, group), "group", (None, "x", 0, -1, 1.5, True, b"unit")),
    (lambda value: crashsim.StuckAt(0.1, value), "value", NO_NUMBER),
    (lambda bits: crashsim.BitFlip(0.1, bits), "bits", (*NO_SIZE, 33)),
    (crashsim.GainNoise, "std", (*NO_RATE, -0.1, np.array([0.1, -0.1]))),
    (score, "model", NO_MODEL),
    (score, "inputs", NO_INPUTS),
    (score, "faults", NO_FAULTS),
    (score, "sites", NO_SITES),
    (score, "epsilon", (*NO_NUMBER[1:], 0, -1)),
    (lambda delta: score(epsilon=0.1, delta=delta), "delta", (*NO_NUMBER[1:], 0, 1)),
    (score, "methods", ("x", ["x"], [], 3, [3])),
    (score, "samples", NO_COUNT[1:]),
    (score, "rel_width", (*NO_NUMBER[1:], 0, 1)),
    (score, "seed", NO_SEED),
    (score, "readout", (3, "x", 1.5, [])),
    (score, "confidence", (*NO_NUMBER, 0, 1, 5e-324)),
    (score, "progress", ("x", 3, np.array([1, 2]))),
    (score, "names", ("x", 3, np.array([1, 2]))),
    (score, "chip", ("x", 3)),
    (score, "hardware", ("no", 1, None)),
    (build, "dtype", ("float32", torch.int64, 3)),
    (build, "model", NO_MODEL),
    (crashsim.find_sites, "model", tuple((model, X) for model in NO_MODEL)),
    (crashsim.find_sites, "inputs", tuple((net(), inputs) for inputs in NO_INPUTS)),
    (sample, "space", (None, 3, net())),
    (sample, "samples", NO_COUNT[1:]),
    (sample, "confidence", (*NO_NUMBER, 0, 1)),
    (sample, "progress", ("x", 3)),
    (lambda e: crashsim.enumerate_exact(net(), X, FAULT).tail(e), "epsilon", (*NO_NUMBER, -1)),
    (crashsim.rank_loss, "second", tuple((np.ones(3), v) for v in (None, "x", 3, [1, 2], [[1]]))),
    (follow, "model", NO_MODEL),
    (follow, "targets", (3, "x", torch.ones(2), torch.ones(6, 4))),
    (follow, "samples", NO_COUNT[1:]),
    (follow, "band", (None, 3, (1, 2), ("a", "b"), (0.5, 2, 3))),
    (follow, "seed", NO_SEED),
    (lambda model: crashsim.CrashVariance(model, FAULT), "model", NO_MODEL),
    (lambda faults: crashsim.CrashVariance(net(), faults), "faults", NO_FAULTS[:-1]),
    (lambda sites: crashsim.CrashTraining(net(), FAULT, sites), "sites", NO_SITES[2:]),
    (lambda draws: crashsim.CrashVariance(net(), FAULT, draws=draws), "draws", NO_COUNT),
    (lambda at: crashsim.CrashVariance(net(), FAULT, at=at), "at", NO_NAME),
    (lambda s: crashsim.Continuity(net(), s), "strength", (*NO_NUMBER, -1)),
    (lambda w: crashsim.Continuity(net(), width=w), "width", (*NO_NUMBER, 0, 1e300)),
    (lambda layers: crashsim.Balance(net(), 1.0, layers), "layers", (3, [], ["x"], [nn.ReLU()])),
    (lambda model: crashsim.Balance(model), "model", (*NO_MODEL, nn.Linear(2, 2))),
    (Strengths, "variance", (*NO_NUMBER, -1)),
    (replicate, "model", NO_MODEL),
    (replicate, "inputs", NO_INPUTS[:9]),
    (replicate, "count", (*NO_COUNT, 10**30)),
    (replicate, "voter", NO_NAME),
    (replicate, "byzantine", (*NO_COUNT[:-2], 4)),
    (replicate, "attack", NO_NAME),
    (replicate, "f", (*NO_COUNT[1:-2], 9)),
    (replicate, "seed", NO_SEED),
    (replicate_with_faults, "sites", NO_SITES),
    (make_voter, "copies", tuple(("mean", copies) for copies in NO_COUNT)),
    (byzantine, "model", NO_MODEL),
    (byzantine, "inputs", NO_INPUTS[:9]),
    (byzantine, "count", NO_COUNT),
    (byzantine, "trials", NO_COUNT),
    (byzantine, "voters", (None, 3, "mean", [], ["x"], [3])),
    (byzantine, "attacks", (None, 3, "far", [], ["x"])),
    (crashsim.plan_replicas, "target", tuple((v, 0.1) for v in (*NO_NUMBER, 0, 1))),
    (crashsim.plan_replicas, "delta_upper", tuple((0.1, v) for v in (*NO_NUMBER[:-1], -1, 2))),
    (crashsim.plan_replicas, "outputs", tuple((0.1, 0.1, 0.1, v) for v in NO_COUNT)),
    (vote, "space", (None, 3)),
    (vote, "count", NO_COUNT),
    (vote, "epsilon", (*NO_NUMBER, 0)),
    (vote, "trials", (*NO_COUNT, 1)),
    (vote, "confidence", (*NO_NUMBER, 0, 1)),
    (chip, "masks", (*NO_SIZE, 1)),
    (chip, "seed", NO_SEED),
    (chip, "confidence", (*NO_NUMBER, 0, 1)),
    (chip, "engine", NO_NAME),
    (chip, "device", ("loihi", 3)),
    (chip, "breaks", ("mismatch", 3)),
    (chip, "chip", ("x", 3)),
    (harden, "architecture", (None, 3, "x", "4-3")),
    (lambda data: harden(training=data), "data", (None, data(X[:1], CLASSES[:1]), data(X, None))),
    (lambda data: harden(test=data), "data", (None, data(X[:0], CLASSES[:0]), data(X[:, :3]))),
    (harden, "epsilon", (*NO_NUMBER, 0)),
    (harden, "delta", (*NO_NUMBER, 0, 1)),
    (harden, "method", NO_NAME),
    (harden, "recipe", (3, "x")),
    (harden, "limits", (3, "x")),
    (harden, "seed", NO_SEED),
    (Recipe, "epochs", NO_COUNT),
    (lambda rate: Recipe(learning_rate=rate), "learning_rate", (*NO_NUMBER, 0)),
    (lambda dropout: Recipe(dropout=dropout), "dropout", (*NO_NUMBER, 1)),
    (Limits, "width", (*NO_NUMBER, 0.5)),
    (lambda targets: accuracy(net(), data(X, targets)), "data",
     (None, "x", torch.ones(6), torch.ones(6, 1, dtype=torch.long), -torch.arange(6))),
    (lambda recipe: train_classifier(net(), data(), recipe), "recipe", (3, "x")),
    (lambda model: train_classifier(model, data()), "model", (*NO_MODEL, nn.Tanh(), nn.Identity())),
    (load_data, "data", (None, 3, "x", b"x")),
    (lambda split: load_data("digits", split), "split", NO_NAME),
    (load_examples, "data", (None, 3, "x")),
    (load_model, "model", (None, 3, b"x", "\0", "x")),
    (lambda weights: load_model("4-3-2", weights=weights), "weights", (3, b"x", "", "\0")),
    (lambda reset: load_model("4-3-2", reset=reset), "reset", NO_NAME[1:]),
    (parse_architecture, "architecture", (None, 3, "x", "9" * 5000 + "-2")),
    (save, "out", ()),
    (lambda path: save(path=path), "out", (None, 3, b"x", "", "\0", "/proc/x")),
    (save, "model", NO_MODEL),
    (save, "architecture", (None, "4-5-3")),
    (save, "facts", (None, 3)),
    (crashsim.Score.load, "path", (None, 3, b"x")),
    (crashsim.Score.from_dict, "score", (None, 3, "x", [], {})),
    (lambda scores: compare(scores), "scores", (None, 3, {"a": 3, "b": 3}, {"a": [], "b": []})),
]  # fmt: skip
KEYWORDS = (
    score, build, sample, follow, replicate, replicate_with_faults, byzantine, vote, chip, harden,
    save,
)  # fmt: skip


@pytest.mark.parametrize(
    ("call", "argument", "values"),
    WRONG,
    ids=[f"{getattr(call, '__name__', 'call')}-{argument}" for call, argument, _ in WRONG],
)
def test_wrong_arguments(call, argument, values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in values:
        with pytest.raises(CrashsimError) as raised:
            _call(call, argument, value)
        said = str(raised.value)
        assert len(said) < 1300
        assert argument in said or argument.rstrip("s") in said, (value, said)


def _call(call, argument, value):
    if (call, argument) == (replicate, "inputs"):
        call(x=value)
    elif call in KEYWORDS:
        call(**{argument: value})
    elif isinstance(value, tuple):
        call(*value)
    else:
        call(value)


class Calls(nn.Module):
    """A model whose forward is a function of the model and its input."""

    def __init__(self, call):
        super().__init__()
        self.layer, self.call = nn.Linear(4, 3), call

    def forward(self, x):
        return self.call(torch.tanh(self.layer(x)))


def raising(error):
    def fail(_):
        raise error

    return fail


ERRORS = {
    type(error).__name__: raising(error)
    for error in (
        RuntimeError("r"), KeyError("k"), ZeroDivisionError(), StopIteration(), SystemExit(3),
        MemoryError(), OSError("o"), RecursionError(), NotImplementedError(),
    )
}  # fmt: skip
_COUNTER = itertools.count()
MODELS = {
    "none": lambda h: None,
    "text": lambda h: "a",
    "whole numbers": lambda h: h.argmax(1),
    "complex": lambda h: h + 1j,
    "numpy": lambda h: h.numpy(),
    "nothing": lambda h: h[:, :0],
    "one number": lambda h: h.sum(),
    "another batch": lambda h: h[:1],
    "sparse": lambda h: h.to_sparse(),
    "no numbers": lambda h: h.to("meta"),
    "nan": lambda h: h * math.nan,
    "random": lambda h: h + next(_COUNTER),
    "mixed": lambda h: h - h.mean(0),
    **ERRORS,
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_fail(name):
    with torch.random.fork_rng(devices=[]):
        model = Calls(MODELS[name]).eval()
    for analyse in (score, build):
        with pytest.raises(CrashsimError, match=r"model|inputs|sites"):
            analyse(model=model, inputs=X)
    if name in ERRORS:
        with pytest.raises(CrashsimError, match=name):
            crashsim.find_sites(model, X)
        with pytest.raises(CrashsimError, match=name):
            train_classifier(model, data())


def test_nothing_to_strike_and_huge_groups():
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of a layer without weights
        empty = nn.Sequential(nn.Linear(4, 0), nn.Tanh(), nn.Linear(0, 3)).eval()
    with pytest.raises(CrashsimError, match="empty"):
        score(model=empty)
    assert build(faults=NeuronCrash(0.1, group=10**9)).N == 1


def test_interrupts_stay_interrupts():
    with torch.random.fork_rng(devices=[]):
        model = Calls(raising(KeyboardInterrupt())).eval()
    with pytest.raises(KeyboardInterrupt):
        score(model=model)


def test_a_network_beyond_the_numbers():
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e30)
    found = score(model=model)
    assert found.to_text(80)
