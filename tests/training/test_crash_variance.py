"""CrashVariance: equal to the theory, unbiased, differentiable, at home in any training loop."""

import copy
import gc
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crashsim import (
    AdditiveNoise,
    BitFlip,
    CrashTraining,
    CrashVariance,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    SignFlip,
    StuckAt,
    WeightCrash,
)
from crashsim.analytic.first_order import Analysis, mean_point_taylor, taylor
from crashsim.errors import ArgumentError, ModelError, SiteError


class Functional(nn.Module):
    """A convolution and batch norm with functional activations, dropout and an in-place ReLU."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(12, 4)

    def forward(self, x):
        x = torch.sigmoid(self.norm(self.conv(x)))
        return self.head(self.drop(torch.relu_(2 * x).flatten(1)))


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3))


@pytest.fixture
def conv():
    torch.manual_seed(1)
    return Functional()


def number(tensor):
    return float(tensor.detach())


def x_for(model, batch=4):
    shape = (batch, 4) if isinstance(model, nn.Sequential) else (batch, 1, 4, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def theory(model, x, faults, sites, at="zero"):
    """Var Delta summed over outputs, averaged over the batch, from FaultSpace."""
    analysis = Analysis()
    (taylor if at == "zero" else mean_point_taylor)(FaultSpace(model, x, faults, sites), analysis)
    return next(
        e.value
        for e in analysis.estimates
        if (e.quantity, e.input, e.output) == ("variance", "all", "all")
    )


FAULTS = [
    (NeuronCrash(0.05), "hidden"),
    (NeuronCrash(0.1, group=2), "hidden"),
    (NeuronCrash(0.1), "input"),
    (StuckAt(0.1, value=0.7), "hidden"),
    (SignFlip(0.03), "hidden"),
    (GainNoise(0.2), "hidden"),
    (AdditiveNoise(0.2), "hidden"),
    (WeightCrash(0.02), "weights"),
    (BitFlip(0.01, bits=4), "weights"),
]


@pytest.mark.parametrize("at", ["zero", "mean"])
@pytest.mark.parametrize(("fault", "sites"), FAULTS, ids=lambda v: getattr(v, "name", v))
def test_exact_penalty_is_the_theoretical_variance(mlp, conv, fault, sites, at):
    for model in (mlp.eval(), conv.eval()):
        x = x_for(model)
        expected = theory(model, x, fault, sites, at)
        with CrashVariance(model, fault, sites, strength=2.0, at=at, exact=True) as penalty:
            found = penalty(model(x))
        assert expected > 0
        assert number(found) == pytest.approx(2 * expected, rel=2e-5)
        assert number(penalty.variance) == pytest.approx(expected, rel=2e-5)


def test_several_faults_at_once_and_on_one_site(mlp):
    faults = {"1": NeuronCrash(0.1), "3": StuckAt(0.05, value=1.0), "*.weight": WeightCrash(0.01)}
    x = x_for(mlp)
    with CrashVariance(mlp.eval(), faults, exact=True) as penalty:
        found = penalty(mlp(x))
    assert number(found) == pytest.approx(theory(mlp, x, faults, "hidden"), rel=1e-5)


@pytest.mark.parametrize(("fault", "sites"), [FAULTS[0], FAULTS[7]], ids=["neurons", "weights"])
def test_random_signs_are_unbiased(mlp, fault, sites):
    x, mlp = x_for(mlp, 3), mlp.eval()
    expected = theory(mlp, x, fault, sites)
    with CrashVariance(mlp, fault, sites, seed=5) as penalty:
        output = mlp(x)
        draws = np.array([number(penalty(output)) for _ in range(1500)])
    error = draws.std(ddof=1) / np.sqrt(len(draws))
    assert draws.std() > 0.05 * expected  # the signs do matter
    assert abs(draws.mean() - expected) < 4 * error


@pytest.mark.parametrize("at", ["zero", "mean"])
@pytest.mark.parametrize(("fault", "sites"), [FAULTS[0], FAULTS[7]], ids=["neurons", "weights"])
def test_gradient_matches_finite_differences(mlp, fault, sites, at):
    mlp, x = mlp.double().eval(), x_for(mlp).double()
    with CrashVariance(mlp, fault, sites, at=at, exact=True) as penalty:
        penalty(mlp(x)).backward()
        for parameter in mlp.parameters():
            if parameter.grad is None:  # the last bias moves every output alike
                assert parameter is mlp[4].bias
                continue
            flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
            for i in (0, len(flat) - 1):
                ends = []
                for step in (1e-5, -1e-5):
                    flat[i] += step
                    ends.append(number(penalty(mlp(x))))
                    flat[i] -= step
                assert number(gradient[i]) == pytest.approx(
                    (ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-10
                )


def test_the_ten_line_loop_lowers_the_variance(mlp):
    x, y = x_for(mlp, 64), torch.arange(64) % 3
    variances = {}
    for strength in (0.0, 10.0):
        model = copy.deepcopy(mlp)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        penalty = CrashVariance(model, NeuronCrash(p=0.05), sites="hidden", strength=strength)
        for _ in range(60):
            output = model(x)
            loss = F.cross_entropy(output, y) + penalty(output)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        penalty.remove()
        variances[strength] = theory(model.eval(), x, NeuronCrash(0.05), "hidden")
    assert variances[10.0] < 0.3 * variances[0.0]


def test_outputs_random_state_and_buffers_stay(conv):
    conv.train()
    twin, x = copy.deepcopy(conv), x_for(conv)
    torch.manual_seed(3)
    expected = twin(x)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    for at in ("zero", "mean"):
        torch.manual_seed(3)
        trained = copy.deepcopy(conv)
        with CrashVariance(trained, NeuronCrash(0.05), at=at) as penalty:
            output = trained(x)
            assert number(penalty(output)) > 0
        assert torch.equal(output, expected)
        assert torch.equal(torch.get_rng_state(), state)
        for (name, a), b in zip(trained.named_buffers(), twin.buffers(), strict=True):
            assert torch.equal(a, b), name
        assert all(module.training for module in trained.modules())


def test_removed_without_a_trace(conv, mlp):
    for model in (conv.eval(), mlp.eval()):
        hooks = [dict(m._forward_hooks) | dict(m._forward_pre_hooks) for m in model.modules()]
        with CrashVariance(model, NeuronCrash(0.05)) as penalty:
            penalty(model(x_for(model)))
            assert any(m._forward_hooks for m in model.modules())
        penalty.remove()
        left = [dict(m._forward_hooks) | dict(m._forward_pre_hooks) for m in model.modules()]
        assert left == hooks
        with pytest.raises(ArgumentError, match="removed"):
            penalty(model(x_for(model)))


def test_forgotten_penalty_takes_its_hooks_along(mlp):
    penalty = CrashVariance(mlp, NeuronCrash(0.05))
    penalty(mlp(x_for(mlp)))
    del penalty
    gc.collect()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in mlp.modules())


def test_copies_and_pickles(mlp, conv):
    for model in (mlp.eval(), conv.eval()):
        x = x_for(model)
        penalty = CrashVariance(model, NeuronCrash(0.05), strength=3.0, exact=True)
        value = number(penalty(model(x)))
        twin = pickle.loads(pickle.dumps(model))  # the model under a penalty
        assert torch.equal(twin(x), model(x))
        for other in (pickle.loads(pickle.dumps(penalty)), copy.deepcopy(penalty)):
            assert other.model is not model
            assert number(other(other.model(x))) == pytest.approx(value)
        assert number(penalty(model(x))) == pytest.approx(value)
        penalty.remove()


def test_state_dict_is_untouched(mlp):
    with CrashVariance(mlp, NeuronCrash(0.05)) as penalty:
        penalty(mlp(x_for(mlp)))
        assert list(mlp.state_dict()) == [f"{i}.{k}" for i in (0, 2, 4) for k in ("weight", "bias")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(mlp, dtype):
    x, mlp = x_for(mlp), mlp.eval()
    expected = theory(mlp, x, NeuronCrash(0.05), "hidden")
    for at in ("zero", "mean"):
        with CrashVariance(mlp, NeuronCrash(0.05), at=at, exact=True) as penalty:
            with torch.autocast("cpu", dtype):
                output = mlp(x)
            assert output.dtype == dtype
            value = penalty(output)
        assert value.dtype == torch.float32
        assert number(value) == pytest.approx(expected, rel=0.1)
        value.backward()
        assert all(torch.isfinite(p.grad).all() for p in mlp.parameters() if p.grad is not None)


def test_gradient_accumulation(mlp):
    """Micro-batches add up to the batch, even with all penalties called at the end."""
    x, mlp = x_for(mlp, 8), mlp.double().eval()
    with CrashVariance(mlp, NeuronCrash(0.05), exact=True) as penalty:
        penalty(mlp(x.double())).backward()
        whole = [p.grad.clone() for p in mlp.parameters() if p.grad is not None]
        mlp.zero_grad()
        outputs = [mlp(part.double()) for part in x.split(2)]
        for output in outputs:
            (penalty(output) / 4).backward()
        parts = [p.grad for p in mlp.parameters() if p.grad is not None]
    assert all(torch.allclose(a, b) for a, b in zip(whole, parts, strict=True))


def test_variance_of_the_loss(mlp):
    x, y, mlp = x_for(mlp), torch.tensor([0, 1, 2, 0]), mlp.eval()
    with CrashVariance(mlp, NeuronCrash(0.05), exact=True) as penalty:
        found = penalty(F.cross_entropy(mlp(x), y, reduction="none"))

    # The same from the gradient of each loss by the activations.
    hidden1 = mlp[1](mlp[0](x)).detach().requires_grad_()
    hidden2 = mlp[3](mlp[2](hidden1))
    losses = F.cross_entropy(mlp[4](hidden2), y, reduction="none")
    parts = torch.autograd.grad(losses.sum(), [hidden1, hidden2])
    expected = sum(
        number((0.05 * 0.95 * (h * g) ** 2).sum()) / 4
        for h, g in zip((hidden1, hidden2), parts, strict=True)
    )
    assert number(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_model(mlp, backend):
    """The compiled graph computes the output, the original module the penalty.

    What ``aot_eager`` makes, like the default backend's, cannot be differentiated twice.
    """
    x = x_for(mlp)
    expected = theory(mlp.eval(), x, NeuronCrash(0.05), "hidden")
    compiled = torch.compile(mlp, backend=backend)
    with CrashVariance(compiled, NeuronCrash(0.05), exact=True) as penalty:
        output = compiled(x)
        value = penalty(output)
        (output.sum() + value).backward()
    assert number(value) == pytest.approx(expected, rel=1e-5)
    assert mlp[0].weight.grad is not None


def test_crash_training_beside_the_penalty(mlp):
    mlp.train()
    with CrashTraining(mlp, NeuronCrash(0.5)), CrashVariance(mlp, NeuronCrash(0.05)) as penalty:
        assert number(penalty(mlp(x_for(mlp)))) > 0


def test_no_gradients_no_record(mlp):
    with CrashVariance(mlp, NeuronCrash(0.05)) as penalty:
        with torch.no_grad():
            output = mlp(x_for(mlp))
        with pytest.raises(ArgumentError, match="gradients enabled"):
            penalty(output)


def test_strength_zero_costs_nothing(mlp):
    with CrashVariance(mlp, NeuronCrash(0.05), strength=0) as penalty:
        assert number(penalty(mlp(x_for(mlp)))) == 0
        assert penalty.sites == []


def test_global_random_state_is_left_alone(mlp):
    state = torch.get_rng_state()
    values = []
    for _ in range(2):
        with CrashVariance(mlp, NeuronCrash(0.05), seed=7) as penalty:
            values.append(number(penalty(mlp(x_for(mlp)))))
    assert torch.equal(torch.get_rng_state(), state)
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strength": -1}, "strength=-1"),
        ({"strength": float("nan")}, "strength=nan"),
        ({"strength": "much"}, "strength='much'"),
        ({"at": "m"}, "at='m'"),
        ({"draws": 0}, "draws=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_arguments(mlp, arguments, words):
    with pytest.raises(ArgumentError, match=words):
        CrashVariance(mlp, NeuronCrash(0.05), **arguments)


def test_wrong_use(mlp):
    with pytest.raises(ArgumentError, match=r"faults=0\.05"):
        CrashVariance(mlp, 0.05)
    with pytest.raises(ArgumentError, match="expected a torch"):
        CrashVariance(lambda x: x, NeuronCrash(0.05))
    with CrashVariance(mlp, NeuronCrash(0.05)) as penalty:
        with pytest.raises(ArgumentError, match="reduction='none'"):
            penalty(mlp(x_for(mlp)).mean())
        with pytest.raises(ArgumentError, match="depends on none of the sites"):
            penalty(torch.ones(4, 3, requires_grad=True) * 2)
    with (
        CrashVariance(mlp, NeuronCrash(0.05), "nowhere"),
        pytest.raises(SiteError, match="nowhere"),
    ):
        mlp(x_for(mlp))
    assert not any(m._forward_hooks for m in mlp.modules())
    mlp[0].weight.requires_grad_(False)
    with (
        CrashVariance(mlp, WeightCrash(0.05)) as penalty,
        pytest.raises(ModelError, match="frozen"),
    ):
        penalty(mlp(x_for(mlp)))
