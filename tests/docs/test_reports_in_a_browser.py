"""Reports as a person sees them: whole on a telephone and on a desk, and loading nothing."""

import pytest
import torch
from browser import CHROMIUM, opened
from torch import nn

import crashsim
from crashsim import SECDED, TMR, BitFlip, NeuronCrash

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
        x = torch.randn(40, 6)
    return net, x, net(x).argmax(-1)


def score(net, x, y):
    return crashsim.score(
        net, x[:8], NeuronCrash(p=0.05), targets=y[:8], epsilon=0.2, samples=400, hardware=True
    )


def curve(net, x, y):
    return crashsim.sweep(net, (x, y), NeuronCrash(p=0.1), rates=[0.01, 0.1, 0.3], chips=40)


def vulnerability(net, x, y):
    flips = BitFlip(p=1e-6, format="float32")
    return crashsim.vulnerability(net, x[:8], flips, "weights", by=("layer", "bit"))


def plan(net, x, y):
    flips = BitFlip(p=2e-3, format="int8")
    schemes = [SECDED(), TMR(of="words")]
    return crashsim.protect(net, (x, y), flips, "weights", budget=0.3, schemes=schemes, chips=30)


@pytest.mark.parametrize("make", [score, curve, vulnerability, plan], ids=lambda f: f.__name__)
def test_a_report_at_both_widths(make, network, tmp_path):
    page = tmp_path / f"{make.__name__}.html"
    page.write_text(make(*network).to_html())
    with opened(tmp_path / "profile") as browser:
        for width in (390, 1280):
            seen = browser.look(page, width)
            assert seen.errors == []
            assert seen.requests == [], "a request leaves the page"
            assert seen.hidden_pictures == []
            assert seen.overflowing == []
            assert seen.pictures > 0 or make is vulnerability  # its map is a table
