"""Models and calls that compute in several types of numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crashsim import (
    BitFlip,
    CrashsimWarning,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    StuckAt,
    WeightCrash,
    score,
)
from crashsim.errors import ArgumentError, ModelError

FAULTS = {
    "rare neurons": (NeuronCrash(0.01), "hidden"),
    "common neurons": (NeuronCrash(0.3), "hidden"),
    "stuck": (StuckAt(0.02, 1.0), "hidden"),
    "noise": (GainNoise(0.1), "hidden"),
    "input": (NeuronCrash(0.05), "input"),
    "rare weights": (WeightCrash(0.01), "weights"),
    "common weights": (WeightCrash(0.3), "weights"),
    "bits": (BitFlip(1e-3), "weights"),
    "layers": (NeuronCrash(0.02), "[ab]"),
}
METHODS = ["monte-carlo", "taylor", "mean-point-taylor"]

# That theory and measurement differ is none of these tests' business.
pytestmark = pytest.mark.filterwarnings("ignore:.*trust Monte Carlo:crashsim.CrashsimWarning")


class Mixed(nn.Module):
    """Computes its hidden layers in another type than its parameters have."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 30), nn.Linear(30, 20), nn.Linear(20, 3)
        self.tanh, self.how = nn.Tanh(), how

    def forward(self, x):
        if self.how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                h = F.relu(self.b(self.tanh(self.a(x))))
            return self.c(h.to(x.dtype))
        if self.how == "autocast to the end":
            with torch.autocast("cpu", torch.bfloat16):
                return self.c(F.relu(self.b(self.tanh(self.a(x)))))
        h = self.tanh(self.a(x).to(torch.bfloat16 if self.how == "cast" else x.dtype))
        return self.c(F.relu(self.b(h.to(x.dtype))))


def results(seeded, randn, how, faults):
    net, x = seeded(lambda: Mixed(how)).eval(), randn(4, 6)
    return score(net, x, *FAULTS[faults], samples=2000, methods=METHODS)


@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize("how", ["autocast", "autocast to the end", "cast"])
def test_other_types_inside_give_the_numbers_of_one_type(seeded, randn, how, faults):
    wanted, found = (results(seeded, randn, w, faults) for w in (None, how))
    for method in METHODS:
        right = wanted.find(method, "variance").value
        assert right > 1e-5
        assert found.find(method, "variance").value == pytest.approx(right, rel=0.03)


@pytest.mark.parametrize("faults", FAULTS)
def test_autocast_around_a_score_changes_no_number_and_is_told(seeded, randn, faults):
    wanted = results(seeded, randn, None, faults)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.warns(CrashsimWarning, match=r"autocast.*scored in torch.float32"):
            found = results(seeded, randn, None, faults)
        assert torch.is_autocast_enabled("cpu")
    assert [e.value for e in found.estimates] == [e.value for e in wanted.estimates]
    assert any("autocast" in warning for warning in found.warnings)


def test_types_that_torch_only_stores_are_refused(seeded, randn):
    net, x = seeded(lambda: Mixed(None)).eval(), randn(4, 6)
    with pytest.raises(ArgumentError, match=r"inputs: .*float8_e4m3fn.*\.to\(torch.float32\)"):
        score(net, x.to(torch.float8_e4m3fn), NeuronCrash(0.1))
    with pytest.raises(ArgumentError, match=r"dtype=torch.float8_e5m2"):
        FaultSpace(net, x, NeuronCrash(0.1), dtype=torch.float8_e5m2)
    with pytest.raises(ModelError, match=r"'a.weight' is stored as torch.float8_e4m3fn"):
        score(net.to(torch.float8_e4m3fn), x, NeuronCrash(0.1))
