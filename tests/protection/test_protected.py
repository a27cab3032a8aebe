"""Protected models against what a few lines here make of them: codes, copies, clipping."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import (
    SECDED,
    TMR,
    BitFlip,
    ClipActivations,
    ClipWeights,
    Duplication,
    FaultSpace,
    NeuronCrash,
    Protected,
    Scrubbing,
    StuckAt,
    WeightCrash,
)
from crashsim.coordinates.parts import parts_of
from crashsim.coordinates.points import Points
from crashsim.errors import ArgumentError
from crashsim.sampling.enumeration import enumerate_space

INT4 = BitFlip(0.05, format="int4")


@pytest.fixture
def net():
    return seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)))


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


@pytest.fixture
def x():
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(1))


def all_points(n):
    e = np.array(list(itertools.product([0, 1], repeat=n)), dtype=np.float64)
    rows, columns = np.nonzero(e)
    return e, Points(len(e), np.zeros(n), rows, columns, np.ones(len(rows)))


@pytest.mark.parametrize("then", ["zero", "last", "stop"])
def test_every_error_of_a_small_memory_runs_as_the_model_with_the_words_that_are_read(then):
    net = seeded(lambda: nn.Sequential(nn.Linear(2, 1, bias=False), nn.Tanh(), nn.Linear(1, 2)))
    net[0].weight.data = torch.tensor([[7.0, -3.0]]) / 7
    x = torch.tensor([[0.4, 0.9], [-1.0, 0.3]])
    fault = BitFlip(0.1, format="int4")
    space = FaultSpace(Protected(net, SECDED(data=8, on_detection=then)), x, {"0.weight": fault})
    assert space.N == 13
    e, points = all_points(13)
    found = space.outcomes(points)
    guard = space.placements[0].fault
    weights = guard.perturb(net[0].weight.data, torch.from_numpy(e), (1, 2))
    wanted = torch.tanh(torch.einsum("bi,soi->sbo", x, weights)) @ net[2].weight.T + net[2].bias
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-5)
    assert np.isnan(found).any() == (then == "stop")
    if then != "stop":
        law = enumerate_space(space)
        chance = 0.1 ** e.sum(1) * 0.9 ** (13 - e.sum(1))
        mean = (chance[:, None, None] * (found - space.clean())).sum(0)
        assert np.abs(mean).max() > 1e-4
        np.testing.assert_allclose(law.mean, mean, atol=1e-9)


def test_monte_carlo_of_a_protected_network_equals_flips_decoded_here(net, x):
    """Flips of stored bits drawn here, SECDED's blocks decoded word by word."""
    p, chips = 0.02, 3000
    code = SECDED(data=16).code
    rng = np.random.default_rng(0)
    y = net(x).argmax(1)
    weights = net[0].weight.detach()
    scale = weights.abs().max().double() / 7
    words = (weights.double() / scale).round().long().reshape(-1) & 15
    changed = []
    for _ in range(chips):
        new = words.clone()
        for block in range(8):  # 30 words: 120 bits, the last block has 8
            size = min(16, 120 - 16 * block)
            hit = rng.random(size + code.checks) < p
            places = [*range(size), *range(16, 16 + code.checks)]
            error = {places[i] for i in np.flatnonzero(hit)}
            syndrome = 0
            for i in error:
                syndrome ^= code.columns[i]
            suspects = [i for i in places if code.columns[i] == syndrome]
            if syndrome and not suspects:
                new[4 * block : 4 * block + 4] = 0
                continue
            for i in error ^ set(suspects if syndrome else []):
                if i < 16:
                    new[4 * block + i // 4] ^= 1 << (i % 4)
        shift = torch.where(new > 7, new - 16, new) - torch.where(words > 7, words - 16, words)
        zeroed = (new == 0) & (words != 0)
        value = weights.reshape(-1).double() + shift * scale
        value[zeroed & (shift != 0)] = 0.0
        with torch.no_grad():
            hidden = torch.relu(x @ value.view(6, 5).float().T + net[0].bias)
            changed.append((net[2](hidden).argmax(1) != y).float().mean().item())
    space = FaultSpace(Protected(net, SECDED(data=16)), x, {"0.weight": BitFlip(p, format="int4")})
    found = crashsim.monte_carlo(space, samples=4000, seed=3)
    outputs = found.estimates.find("monte-carlo", "class-change").value
    error = np.std(changed) * np.sqrt(1 / chips + 1 / 4000)
    assert np.mean(changed) > 5 * error
    assert abs(outputs - np.mean(changed)) < 4 * error


def test_three_neurons_vote_and_two_are_compared_as_enumeration_says(net, x):
    """Crashes of six neurons and their copies: the exact law of the sites' own enumeration."""
    p = 0.2
    bare = FaultSpace(net, x, NeuronCrash(p), "1")
    e, points = all_points(6)
    outputs = bare.outputs(points) - bare.clean()

    def mean(q):
        chance = q ** e.sum(1) * (1 - q) ** (6 - e.sum(1))
        return (chance[:, None, None] * outputs).sum(0)

    either = 1 - (1 - p) ** 2
    for scheme, q, n in (
        (TMR(of="neurons"), TMR().law(p), 18),
        (Duplication(on_detection="last"), p * p, 12),
        (Duplication(on_detection="zero"), either, 12),
    ):
        space = FaultSpace(Protected(net, scheme), x, NeuronCrash(p), "1")
        assert n == space.N, scheme
        found = crashsim.score(
            Protected(net, scheme), x, NeuronCrash(p), "1", methods=["monte-carlo"], samples=8000
        )
        wanted = mean(q).mean(0)
        assert np.abs(wanted).max() > 0.005
        for output in range(3):
            own = found.find("monte-carlo", "mean", output=output)
            assert own.low - 0.004 < wanted[output] < own.high + 0.004
        if n == 12:
            np.testing.assert_allclose(enumerate_space(space).mean, mean(q), atol=1e-6)


def test_some_neurons_alone_are_tripled(net, x):
    scheme = TMR(of="neurons").at({"1": [0, 2]})
    space = FaultSpace(Protected(net, scheme), x, StuckAt(0.3, value=2.0), "1")
    assert space.N == 6 + 4
    bare = FaultSpace(net, x, StuckAt(0.3, value=2.0), "1")
    strikes = np.zeros((3, 10))
    strikes[0, 0] = strikes[1, [0, 6]] = strikes[2, [1, 6, 8]] = 1
    own = space.outputs(Points(3, np.zeros(10), *np.nonzero(strikes), np.ones(6)))
    seen = np.zeros((3, 6))
    seen[1, 0] = seen[2, [0, 1]] = 1
    rows, columns = np.nonzero(seen)
    wanted = bare.outputs(Points(3, np.zeros(6), rows, columns, np.ones(3)))
    np.testing.assert_allclose(own, wanted, atol=1e-6)
    assert np.abs(wanted - bare.clean()).max() > 0.1


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_clipping_equals_a_hook_written_by_hand(per):
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10), nn.Tanh(),
            nn.Linear(10, 3),
        )
    )  # fmt: skip
    clean, others = torch.randn(2, 50, 2, 6, 6, generator=torch.Generator().manual_seed(2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    chip = Protected(net, ClipActivations(per=per), data=clean)
    with torch.no_grad():
        seen = torch.relu(net[0](clean))
    axes = (0, 1, 2, 3) if per == "layer" else (0, 2, 3)
    low, high = seen.amin(axes, keepdim=True)[0], seen.amax(axes, keepdim=True)[0]
    hook = net[1].register_forward_hook(lambda m, a, out: torch.clamp(out, low, high))
    with torch.no_grad():
        second = torch.tanh(net[3](torch.relu(net[0](clean)).clamp(low, high).flatten(1)))
    bounds = [second.amin(), second.amax()]
    if per == "channel":
        bounds = [second.amin(0), second.amax(0)]
    other = net[4].register_forward_hook(lambda m, a, out: torch.clamp(out, *bounds))
    with torch.no_grad():
        wanted, own = net(50 * others), chip(50 * others)
        hook.remove(), other.remove()
        assert (net(50 * others) - wanted).abs().max() > 0.1
        torch.testing.assert_close(own, wanted)
        torch.testing.assert_close(chip(clean), net(clean))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_clipped_neurons_are_struck_before_they_are_clipped(net, x):
    chip = Protected(net, ClipActivations(), data=x)
    fault = StuckAt(1.0, value=100.0)
    space = FaultSpace(chip, x, fault, "1.0")
    limit = torch.relu(net[0](x)).max()
    struck = space.outputs(Points.at(np.ones(space.N)))[0]
    wanted = net[2](limit.expand(7, 6))
    np.testing.assert_allclose(struck, wanted.detach().numpy(), rtol=1e-5)
    hidden = FaultSpace(chip, x, fault, "hidden")
    assert [p.site.name for p in hidden.placements] == ["1.0"]


def test_impossible_exponents_become_zero(net, x):
    fault = BitFlip(1e-3, format="float32")
    chip = Protected(net, ClipWeights())
    space = FaultSpace(chip, x, {"0.weight": fault})
    weight = net[0].weight.detach()
    assert float(weight.abs().max()) < 0.5
    for bit, wanted in ((30, 0.0), (31, -weight[0, 0].item())):
        found = space.outcomes(Points.one_at_a_time(np.zeros(space.N), np.array([bit]), np.ones(1)))
        changed = weight.clone()
        changed[0, 0] = wanted
        own = net[2](torch.relu(x @ changed.T + net[0].bias))
        np.testing.assert_allclose(found[0], own.detach().numpy(), atol=1e-5)


def test_scrubbing_turns_a_rate_into_the_chance_of_an_odd_number_of_flips(net, x):
    scheme = Scrubbing(interval=24.0, rate_per_hour=1e-5)
    mean = 24e-5
    odd = sum(np.exp(-mean) * mean**k / np.prod(range(1, k + 1)) for k in (1, 3, 5))
    assert scheme.p == pytest.approx(odd, rel=1e-12)
    space = FaultSpace(
        Protected(net, [scheme, SECDED()]), x, BitFlip(0.5, format="int8"), "weights"
    )
    assert {p.fault.p for p in space.placements} == {scheme.p}


def test_scores_and_curves_run_on_it_and_get_better(net, x):
    y = net(x).argmax(1)
    chip = Protected(net, [SECDED(sites="0.*"), TMR(of="words", sites="2.*")])
    rates = [1e-3, 1e-2]
    bare, own = (
        crashsim.sweep(m, (x, y), INT4, "weights", rates=rates, chips=600) for m in (net, chip)
    )
    for before, after in zip(bare.points, own.points, strict=True):
        assert after["value"] > before["value"]
    score = crashsim.score(chip, x, INT4, "weights", targets=y, samples=500)
    kinds = {(e.method, e.quantity) for e in score.estimates}
    assert {("monte-carlo", "class-change"), ("monte-carlo", "accuracy")} <= kinds
    assert not score.skipped or all(isinstance(why, str) for why in score.skipped.values())
    sample = FaultSpace(chip, x, INT4, "weights").sample(0, 1)
    assert sample.faults


def test_guarded_coordinates_are_told_apart_by_layer_alone(net, x):
    space = FaultSpace(Protected(net, SECDED()), x, INT4, "weights")
    parts = parts_of(space.placements, ("layer",))
    assert parts.sizes.sum() == space.N == 48 * 4 + 8 * 4  # words, and check bits of four blocks
    with pytest.raises(ArgumentError, match="no bit"):
        parts_of(space.placements, ("layer", "bit"))


@pytest.mark.parametrize("scheme", [TMR(), Duplication(on_detection="last")])
def test_no_method_tells_of_guarded_neurons_what_is_not_so(net, x, scheme):
    """First order knows nothing of votes: what is left agrees with the residual rate's own law."""
    p = 0.15
    score = crashsim.score(Protected(net, scheme), x, NeuronCrash(p), "1", epsilon=0.05)
    q = scheme.law(p) if isinstance(scheme, TMR) else p * p
    exact = crashsim.score(net, x, NeuronCrash(q), "1", methods=["exact"]).find("exact", "variance")
    found = [e for e in score.estimates if e.quantity == "variance" and e.output == "all"]
    assert {e.method for e in found} >= {"monte-carlo"}
    assert not {"taylor", "mean-point-taylor", "single"} & {e.method for e in score.estimates}
    for estimate in found:
        if estimate.input == "all" and estimate.kind in ("exact", "statistical"):
            assert estimate.value == pytest.approx(exact.value, rel=0.15), estimate.method


def test_the_modules_of_a_model_stay_as_they_are(net):
    net[0].train()
    assert Protected(net, SECDED()).training is False
    assert [m.training for m in net] == [True, False, False]


@pytest.mark.parametrize(
    ("schemes", "fault", "sites", "told"),
    [
        ([], "none", "weights", ""),
        (TMR(), WeightCrash(0.1), "weights", "BitStuck"),
        (TMR(), crashsim.GainNoise(0.1), "1", "noise"),
        ([TMR(), Duplication()], NeuronCrash(0.1), "1", "2 schemes"),
        ([SECDED(), TMR(of="words")], INT4, "weights", "twice"),
        (ClipWeights(), WeightCrash(0.1), "weights", "stored words"),
        (Duplication(on_detection="stop"), NeuronCrash(0.1), "1", "go on"),
        (SECDED().at({"0.weight": [5000]}), INT4, "weights", "only"),
    ],
)
def test_schemes_that_are_none_against_a_fault_say_so(net, x, schemes, fault, sites, told):
    if not told:
        assert FaultSpace(Protected(net, []), x, INT4, sites).N
        return
    with pytest.raises(ArgumentError, match=told):
        FaultSpace(Protected(net, schemes), x, fault, sites)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SECDED(data=0),
        lambda: SECDED(on_detection="retry"),
        lambda: TMR(of="wires"),
        lambda: ClipActivations(per="word"),
        lambda: ClipActivations(margin=-1),
        lambda: Scrubbing(0, 1e-3),
        lambda: SECDED(bits="wing"),
        lambda: Protected(nn.Identity(), "secded"),
        lambda: Protected(nn.Sequential(nn.Flatten(), nn.ReLU()), ClipActivations()),
    ],
)
def test_wrong_schemes_are_refused(make):
    with pytest.raises(ArgumentError, match=r"=|give"):
        make()


def test_costs_are_those_of_the_formulas():
    from crashsim.protection.schemes import Part, SpareCells

    part = Part(bits=1000, words=125, units=40, macs=5000.0, groups=4)
    assert SECDED().cost(part).bits == 8 * 16
    assert crashsim.Parity().cost(part).bits == 125
    assert TMR(of="words").cost(part).to_dict() == {"bits": 2000, "macs": 10000, "latency": 1}
    assert Duplication().cost(part).bits == 1000
    assert ClipActivations().cost(part).macs == 5
    assert SpareCells(spares=2).cost(part).bits == 2 * 8 * 4
