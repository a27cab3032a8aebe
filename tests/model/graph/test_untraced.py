"""What a trace does not see is refused by name: layers, bounds and proofs are not read from it."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import module as torch_module

from crashsim import FaultSpace, NeuronCrash, enumerate_exact, score
from crashsim.analytic.layer_bounds import layer_bounds
from crashsim.analytic.proofs import provable
from crashsim.errors import NotApplicableError
from crashsim.model.graph.untraced import is_all_torchs
from crashsim.model.layers import UnsupportedLayerError, layers_of


class Called(nn.Tanh):
    def __call__(self, x):
        return 5 * super().__call__(x)


class Wide(nn.Linear):
    """Passes for torch's own by the name of its module."""

    def forward(self, x):
        return 5 * super().forward(x)


Wide.__module__ = "torch.nn.imitated"


class Odd(torch.Tensor):
    pass


def relu(x):
    return 5 * torch.tanh(x)


fx.wrap("relu")


class Namesake(nn.Module):
    def forward(self, x):
        return relu(x)


def scaled(net):
    plain_forward = net.forward
    net.forward = lambda x: 5 * plain_forward(x)


class Between(nn.Module):
    """Linear layers around a function of the hidden values."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)
        self.middle = middle

    def forward(self, x):
        return self.last(self.middle(self.act(self.first(x))))


def with_parameter(net):
    net.first.weight = nn.Parameter(net.first.weight.detach().as_subclass(Odd))


def plain():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def times_five(module, args, out):
    return 5 * out


HIDDEN = {
    "hook": (plain, lambda net: net[1].register_forward_hook(times_five)),
    "hook of the model": (plain, lambda net: net.register_forward_hook(times_five)),
    "pre-hook": (plain, lambda net: net[2].register_forward_pre_hook(lambda m, a: (5 * a[0],))),
    "forward": (plain, lambda net: setattr(net[1], "forward", lambda x: 5 * torch.tanh(x))),
    "forward of the model": (plain, scaled),
    "__call__": (lambda: nn.Sequential(nn.Linear(3, 4), Called(), nn.Linear(4, 2)), None),
    "not torch's own": (lambda: nn.Sequential(Wide(3, 4), nn.Tanh(), nn.Linear(4, 2)), None),
    "namesake": (lambda: Between(Namesake()), None),
    "overwrites": (lambda: Between(lambda x: x + torch.relu_(x)), None),
    "overwrites a view": (lambda: Between(lambda x: torch.relu_(x.view(-1, 4)) + x), None),
    "overwrites first": (lambda: Between(lambda x: torch.add(F.relu(x, True), x)), None),
}
TOLD = {
    "hook of the model": "hook",
    "pre-hook": "hook",
    "forward of the model": "forward of its own",
    "namesake": "mul",
    "overwrites a view": "overwrites",
    "overwrites first": "overwrites",
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_a_trace_does_not_see(name, seeded, randn):
    make, change = HIDDEN[name]
    net = seeded(lambda: deepcopy(make())).double().eval()
    if change:
        change(net)
    told = TOLD.get(name, name)
    site = "act" if isinstance(net, Between) else "1"
    space = FaultSpace(net, randn(2, 3).double(), NeuronCrash(0.1), f"*{site}*")
    with pytest.raises(UnsupportedLayerError, match=told):
        layers_of(space.model, space.inputs)
    with pytest.raises(NotApplicableError, match=told):
        provable(space)
    with pytest.raises(NotApplicableError, match=told):
        layer_bounds(space)


def test_hooks_of_all_modules(make_net, randn):
    space = FaultSpace(make_net((3, 4, 2)), randn(2, 3), NeuronCrash(0.1))
    handle = torch_module.register_module_forward_hook(lambda m, a, out: None)
    try:
        with pytest.raises(UnsupportedLayerError, match="all modules"):
            layers_of(space.model, space.inputs)
    finally:
        handle.remove()
    assert layers_of(space.model, space.inputs)


def test_tensors_and_weights_that_compute_in_their_own_way(make_net, randn, seeded):
    net = seeded(lambda: Between(nn.Identity())).double().eval()
    space = FaultSpace(net, randn(2, 3).double(), NeuronCrash(0.1), "act")
    assert provable(space)
    with_parameter(net)
    space = FaultSpace(net, randn(2, 3).double(), NeuronCrash(0.1), "act")
    with pytest.raises(UnsupportedLayerError, match="Odd"):
        layers_of(space.model, space.inputs)
    normed = make_net((3, 4, 2)).double()
    torch.nn.utils.parametrizations.weight_norm(normed.linear1)
    assert provable(FaultSpace(normed, randn(2, 3).double(), NeuronCrash(0.1), "act1"))


def test_overwriting_what_nobody_needs_is_read(seeded, randn):
    for middle in (nn.ReLU(inplace=True), torch.relu_, lambda x: torch.relu_(x.view(-1, 4))):
        net = seeded(lambda middle=middle: Between(middle)).double().eval()
        assert provable(FaultSpace(net, randn(2, 3).double(), NeuronCrash(0.1), "act"))

    class Block(nn.Module):
        def forward(self, x):
            h = torch.tanh(x)
            h += x
            return torch.relu_(h)

    net = seeded(lambda: Between(Block())).double().eval()
    assert provable(FaultSpace(net, randn(2, 3).double(), NeuronCrash(0.1), "act"))


def test_other_types_inside_are_refused(seeded, randn):
    class Lower(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain()

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.net(x).to(x.dtype)

    net = seeded(Lower).eval()
    with pytest.raises(
        (NotApplicableError, UnsupportedLayerError), match=r"not compute the same in torch.float64"
    ):
        provable(FaultSpace(net, randn(2, 3), NeuronCrash(0.1), "net.1"))


def test_the_comparison_is_relative_and_sees_every_input_and_output(seeded, randn, monkeypatch):
    """A reading that is wrong in one tiny output, or for one input alone, is refused."""
    net = seeded(plain).double().eval()
    with torch.no_grad():
        net[2].weight[1] *= 1e-9
        net[2].bias[1] = 0
    x = randn(3, 3).double()
    space = FaultSpace(net, x, NeuronCrash(0.1), "1")
    assert provable(space)
    real = FaultSpace.outputs

    def off_by(factor, b, k):
        def outputs(self, points):
            found = real(self, points)
            found[:, b, k] *= factor
            return found

        return outputs

    for b, k in ((0, 1), (2, 0), (2, 1)):
        monkeypatch.setattr(FaultSpace, "outputs", off_by(1 + 1e-9, b, k))
        with pytest.raises(NotApplicableError, match=rf"input {b}"):
            provable(space)
    monkeypatch.setattr(FaultSpace, "outputs", off_by(1 + 1e-15, 0, 0))
    assert provable(space)


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_a_hook_leaves_no_false_proof(size, seeded, randn):
    net = seeded(
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)
        )
    )
    net = net.double().eval()
    with torch.no_grad():
        net[4].weight.mul_(size)
        net[4].bias.zero_()
    net[3].register_forward_hook(times_five)
    x = randn(2, 4).double()
    law = enumerate_exact(net, x, NeuronCrash(0.1), "3")
    epsilon = float(np.quantile(np.abs(law.deltas), 0.9))
    found = score(net, x, NeuronCrash(0.1), "3", epsilon=epsilon, samples=200, proofs=True)
    for method in ("certificate", "remainder", "linear-exact", "certified-sampling", "norm"):
        assert "hook" in found.skipped[method]
        assert found.find(method, "tail", 0, 0) is None


def test_gradients_of_ones_own_mislead_no_proof(seeded, randn):
    """The backward pass of an activation says nothing of what is proved."""

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.tanh(x)

        @staticmethod
        def backward(ctx, g):
            return 3 * g

    class Straight(nn.Module):
        def forward(self, x):
            return Through.apply(x)

    net = seeded(
        lambda: nn.Sequential(
            nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), Straight(), nn.Linear(3, 1)
        )
    )
    net, x = net.double().eval(), randn(1, 3).double()
    law = enumerate_exact(net, x, NeuronCrash(0.1), "1")
    found = score(net, x, NeuronCrash(0.1), "1", methods=["remainder"])
    proved = found.find("remainder", "variance", 0, 0)
    assert proved is None or proved.low <= law.variance[0, 0] <= proved.high
    assert "remainder" in found.skipped or proved is not None


def test_options_of_known_functions_are_looked_at(seeded, randn):
    """A pass that drops all, or adds nothing, is not read as one that does."""
    for middle, told in (
        (lambda x: F.dropout(x, 1.0, training=True), "dropout"),
        (lambda x: torch.add(x, torch.tanh(x), alpha=0), "add"),
    ):
        net = seeded(lambda middle=middle: Between(middle)).double().eval()
        space = FaultSpace(net, randn(2, 3).double(), NeuronCrash(0.1), "act")
        with pytest.raises(NotApplicableError, match=told):
            provable(space)


def test_what_is_made_of_torchs_layers_alone(seeded):
    def hooked(net):
        net[1].register_forward_hook(lambda module, args, out: torch.round(out))
        return net

    plain = seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Conv1d(1, 1, 1)))
    assert is_all_torchs(plain)
    for kind in (Called, Wide):
        args = (2, 3) if kind is Wide else ()
        assert not is_all_torchs(seeded(lambda kind=kind, args=args: nn.Sequential(kind(*args))))
    weighted = seeded(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)))
    assert not is_all_torchs(weighted)
    assert not is_all_torchs(hooked(deepcopy(plain)))
