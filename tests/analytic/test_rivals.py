"""Class changes to the nearest rivals, where outputs are many."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import BitFlip, FaultSpace, NeuronCrash, WeightCrash
from crashsim.analytic.surrogates.rivals import RIVALS, nearest_margins, nearest_rivals

OUTPUTS = 40


def net(outputs=OUTPUTS, hidden=12):
    return chain(6, hidden, 8, outputs, between=nn.Tanh)


def chain(*sizes, between):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = [m for pair in pairwise(sizes) for m in (nn.Linear(*pair), between())]
    return nn.Sequential(*layers[:-1]).eval()


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_margins_of_the_nearest_rivals():
    """Their clean values, and which they are, by sorting; their chances, by many samples."""
    model, x = net(hidden=60), inputs(4, 6)
    space = FaultSpace(model, x, WeightCrash(0.02))
    clean = space.clean()
    ordered = -np.sort(-clean, axis=1)
    margins = nearest_margins(space)
    assert margins.level.shape == (4, RIVALS)
    # At the mean point: not quite the clean margins.
    assert margins.level == pytest.approx(ordered[:, 1 : RIVALS + 1] - ordered[:, :1], abs=0.05)
    sampled = crashsim.monte_carlo(space, samples=20_000, seed=1)
    changed = [e for e in sampled.estimates if e.quantity == "class-change" and e.input != "all"]
    each = margins.chances()
    assert max(e.value for e in changed) > 0.01
    for row, of_rivals in zip(changed, each, strict=True):
        # At least as likely as the likeliest, at most as all of them together.
        assert of_rivals.max() < 1.25 * row.high
        assert of_rivals.sum() > 0.75 * row.low


def test_three_rivals_are_all_of_four_classes():
    model, x = net(outputs=4), inputs(8, 6)
    fault = {"weights": WeightCrash(0.2)}
    space = FaultSpace(model, x, fault)
    margins = nearest_margins(space)
    score = crashsim.score(model, x, fault, methods=["saddlepoint"])
    every = [e.value for e in score.estimates if e.quantity == "class-change" and e.input != "all"]
    assert max(every) > 1e-2
    assert margins.chances().sum(1) == pytest.approx(every, rel=0.02)


class Pixels(nn.Module):
    """A class for each pixel of a small picture: neighbours change together."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x):
        return self.out(torch.relu(self.inner(x)))


def test_rivals_beside_each_other_are_counted_once():
    """The largest output of all pixels, against plain samples; the sum counts some twice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Pixels().eval()
    space = FaultSpace(model, inputs(4, 1, 8, 8), WeightCrash(0.002), "weights")
    margins = nearest_margins(space)
    found = [e.value for e in nearest_rivals(margins)][-1]
    sampled = crashsim.monte_carlo(space, samples=50_000, seed=1)
    measured = sampled.estimates.find("monte-carlo", "class-change")
    assert measured.value > 1e-3
    assert measured.low / 1.3 < found < measured.high * 1.3
    assert margins.chances().sum(1).mean() > 1.3 * measured.high


def test_where_faults_are_very_few_single_ones_decide():
    """Against every bit alone, by autograd and a quantiser of our own: no density is assumed."""
    model, x, p = chain(20, 100, 40, 6, between=nn.Tanh), inputs(3, 20), 1e-8
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    found = [
        e.value
        for e in nearest_rivals(
            nearest_margins(FaultSpace(model, x, BitFlip(p, format="int8"), "weights"))
        )
        if e.input != "all"
    ]
    wanted = []
    for one in x:
        out = model(one[None])[0]
        order = out.argsort(descending=True)
        changes = {}
        for rival in order[1 : RIVALS + 1]:
            margin = out[rival] - out[order[0]]
            slopes = torch.autograd.grad(margin, weights, retain_graph=True)
            for at, (weight, slope) in enumerate(zip(weights, slopes, strict=True)):
                scale = weight.detach().double().abs().max() / 127
                word = torch.round(weight.detach().double() / scale).long() & 255
                for bit in range(8):
                    worth = scale * (-(2**7) if bit == 7 else 2**bit)
                    moved = torch.where(word >> bit & 1 == 1, -worth, worth)
                    reached = slope * moved + margin.detach() >= 0
                    changes[at, bit] = changes.get((at, bit), False) | reached
        wanted.append(p * sum(int(some.sum()) for some in changes.values()))
    assert sum(w > 10 * p for w in wanted) >= 2  # some faults decide
    assert found == pytest.approx(wanted, rel=0.05, abs=p)


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_a_score_of_many_outputs_ranks_its_sites():
    """Where a gradient of every output does not fit in memory."""
    model, x = chain(20, 100, 40, 500, between=nn.ReLU), inputs(2, 20)
    score = crashsim.score(
        model, x, BitFlip(1e-5, format="int8"), "weights", samples=50, memory=2**22
    )
    assert "500 outputs" in score.skipped["saddlepoint"]
    assert "nearest-rivals" not in score.skipped
    assert 0 < score.find("nearest-rivals", "class-change").value < 1
    shares = [site["share"] for site in score.sites]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    assert len(score.top[0]["index"]) == 3  # row, column and bit


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_where_every_output_is_affordable_it_is_skipped_with_the_reason():
    score = crashsim.score(net(), inputs(1, 6), NeuronCrash(0.05), samples=50)
    assert "saddlepoint takes every rival" in score.skipped["nearest-rivals"]
