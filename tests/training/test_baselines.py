"""CrashTraining, Continuity, Balance and TrainingReport."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from crashsim_theory import balance, roughness, smoothing_residual
from torch import nn

from crashsim import (
    Balance,
    Continuity,
    CrashsimWarning,
    CrashTraining,
    CrashVariance,
    NeuronCrash,
    StuckAt,
    TrainingReport,
    WeightCrash,
)
from crashsim.errors import ArgumentError, ModelError


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 30), nn.Sigmoid(),
                         nn.Linear(30, 3))  # fmt: skip


@pytest.fixture
def x():
    return torch.randn(64, 4, generator=torch.Generator().manual_seed(2))


def number(tensor):
    return float(tensor.detach())


# CrashTraining


@pytest.mark.parametrize("inverse", [False, True])
def test_crashes_strike_at_their_rate_while_training_only(inverse):
    model = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Identity())
    x = torch.ones(200, 50)
    with CrashTraining(model, NeuronCrash(0.3), "1", inverse_scaling=inverse) as crashes:
        model.train()
        out = model(x)
        again = model(x)
        assert torch.equal(model.eval()(x), x)
    kept = (out != 0).float().mean()
    assert abs(number(kept) - 0.7) < 4 * (0.3 * 0.7 / out.numel()) ** 0.5
    assert number(out.max()) == pytest.approx(1 / 0.7 if inverse else 1.0)
    assert not torch.equal(out, again)  # new faults in every pass
    assert not torch.equal(out[0], out[1])  # and for every example
    assert crashes.sites == ["1"]
    assert torch.equal(model.train()(x), x)


def test_weights_are_struck_and_put_back(mlp, x):
    mlp.train()
    clean, weight = mlp(x), mlp[0].weight
    with CrashTraining(mlp, WeightCrash(0.5)):
        struck = mlp(x)
        assert mlp[0].weight is weight
        assert not torch.allclose(struck, clean)
        struck.sum().backward()
    assert (weight.grad == 0).float().mean() > 0.3  # lost weights learn nothing
    assert torch.equal(mlp(x), clean)


def test_weights_are_put_back_after_an_error(mlp):
    mlp.train()
    parameters = dict(mlp.named_parameters())
    with CrashTraining(mlp, WeightCrash(0.5)):
        mlp(torch.ones(2, 4))
        with pytest.raises(RuntimeError):
            mlp(torch.ones(2, 5))
    assert all(a is parameters[name] for name, a in mlp.named_parameters())


def test_crash_training_is_reproducible_and_leaves_random_state(mlp, x):
    mlp.train()
    state = torch.get_rng_state()
    outputs = []
    for _ in range(2):
        with CrashTraining(mlp, StuckAt(0.2, value=1.0), seed=3) as crashes:
            mlp(x)
            twin = pickle.loads(pickle.dumps(crashes))
            outputs.append(mlp(x))
            assert torch.equal(twin.model(x), outputs[-1])  # the generator travels along
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("way", ["compiled", "in place", "inside"])
def test_crash_training_of_what_is_compiled_later_is_refused(mlp, x, way):
    """In compiled code no hook acts: it would train without any fault, unsaid."""
    torch.compiler.reset()
    with CrashTraining(mlp.train(), NeuronCrash(0.5)):
        if way == "in place":
            mlp.compile(backend="eager")
            compiled = mlp
        else:
            whole = mlp if way == "compiled" else torch.nn.Sequential(mlp, torch.nn.Tanh())
            compiled = torch.compile(whole, backend="eager")
        with pytest.raises(ModelError, match=r"trains under torch.compile"):
            compiled(x)
        mlp.eval()
        assert torch.isfinite(compiled(x)).all()
    torch.compiler.reset()


def test_crash_training_wants_the_module_before_compilation(mlp):
    with pytest.raises(ModelError, match="compiled already"):
        CrashTraining(torch.compile(mlp, backend="eager"), NeuronCrash(0.1))


# Continuity and Balance


def test_continuity_is_the_theory_s_measure(mlp):
    mlp = mlp.double()
    first, second, last = (m.weight.detach().numpy() for m in mlp if isinstance(m, nn.Linear))
    along = [first, second, second.T, last.T]
    expected = sum(roughness(w) ** 2 + smoothing_residual(w, 3.0) ** 2 for w in along)
    assert number(Continuity(mlp, 2.0)()) == pytest.approx(2 * expected, rel=1e-6)


def test_balance_is_the_theory_s_factor(mlp):
    mlp = mlp.double()
    first, second, _ = (m.weight.detach().numpy() for m in mlp if isinstance(m, nn.Linear))
    expected = np.mean([-2 * np.log(balance(w)) for w in (first, second)])
    assert number(Balance(mlp)()) == pytest.approx(expected)


@pytest.mark.parametrize("penalty", [Continuity, Balance])
def test_minimising_makes_it_small_without_shrinking_weights(mlp, penalty):
    term = penalty(mlp)
    start, size = number(term()), number(mlp[0].weight.norm())
    optimizer = torch.optim.Adam(mlp.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        term().backward()
        optimizer.step()
    assert number(term()) < 0.5 * start
    assert number(mlp[0].weight.norm()) > 0.1 * size


def test_penalties_on_convolutions_and_pickles():
    conv = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU())
    for term in (Continuity(conv), Balance(conv)):
        assert number(pickle.loads(pickle.dumps(term))(None)) == number(term()) > 0


def test_penalties_need_a_hidden_layer():
    with pytest.raises(ArgumentError, match="1 affine layers"):
        Balance(nn.Linear(3, 2))
    with pytest.raises(ArgumentError, match="width=0"):
        Continuity(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), width=0)


# TrainingReport


def test_report_follows_theory_and_measurement(mlp, x, tmp_path):
    y = torch.arange(64) % 3
    report = TrainingReport(mlp, x[:8], NeuronCrash(0.05), targets=y[:8], samples=400)
    optimizer = torch.optim.Adam(mlp.parameters(), 1e-2)
    mlp.train()
    with CrashVariance(mlp, NeuronCrash(0.05), strength=1.0) as penalty:
        for epoch in range(3):
            output = mlp(x)
            report.look(epoch)  # between a pass and its penalty: must not disturb it
            optimizer.zero_grad()
            (F.cross_entropy(output, y) + penalty(output)).backward()
            optimizer.step()
    assert mlp.training
    assert [look.step for look in report.looks] == [0, 1, 2]
    for look in report.looks:
        assert look.low < look.measured < look.high
        assert look.ratio == pytest.approx(1, abs=0.3)
        assert 0 <= look.crashed_accuracy <= 1
    assert report.looks[-1].measured < report.looks[0].measured
    assert report.bent == []
    assert report.to_dict()["looks"][0]["ratio"] == report.looks[0].ratio
    assert report.table().row_count == 3
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000


class Bent(nn.Module):
    """Flat at no faults, steep elsewhere: what an optimiser could hide behind."""

    def __init__(self):
        super().__init__()
        self.linear, self.act = nn.Linear(4, 30), nn.ReLU()

    def forward(self, x):
        lost = self.act(self.linear(x) * 0 + 1).sum(1, keepdim=True) - 30
        return lost**2 + 1e-3 * lost


def test_report_warns_where_the_formula_is_bent(x):
    report = TrainingReport(Bent(), x[:4], NeuronCrash(0.05), samples=300)
    with pytest.warns(CrashsimWarning, match="bent the formula"):
        look = report.look(7)
    assert look.ratio < 0.01
    assert report.bent == [7]


@pytest.mark.parametrize("band", [(2, 3), (0, 2), (0.5,)])
def test_report_wants_a_band_around_one(mlp, x, band):
    with pytest.raises(ArgumentError, match="band="):
        TrainingReport(mlp, x, NeuronCrash(0.1), band=band)
