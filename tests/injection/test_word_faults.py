"""Faults of words against injectors that know nothing of crashsim: numpy's bits and plain torch."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import BitFlip, BitStuck, FaultSpace, GainNoise, enumerate_exact, monte_carlo, score
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.points import Points
from crashsim.errors import ArgumentError, NotApplicableError, NotFiniteError

ALLOWED = pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")  # of moments


@pytest.fixture
def net(seeded, watch):
    return watch(seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))))


@pytest.fixture
def conv(seeded, watch):
    def made():
        layers = nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, stride=2)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3))

    return watch(seeded(made))


def injected(net, x, names, strike):
    """Outputs of a copy in which the words of each parameter were struck."""
    struck = {name: strike(name, p.detach().numpy()) for name, p in net.named_parameters()}
    tensors = {name: torch.from_numpy(struck[name]) for name in names}
    with torch.no_grad():
        return torch.func.functional_call(net, tensors, (x,)).double().numpy()


def alike(found, wanted):
    """Equal up to the rounding of each sample's own numbers; not finite in the same places."""
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(np.isfinite(found), finite)
    size = np.abs(np.where(finite, wanted, 0.0)).max((1, 2), keepdims=True)
    off = np.abs(np.where(finite, found, 0.0) - np.where(finite, wanted, 0.0))
    assert (off <= 2e-6 * size + 1e-30).all()


WAYS = {  # rates at which samples are computed in each of the engine's ways
    "added to the layers": 0.03,
    "stacked or patched": 0.2,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("which", ["net", "conv"])
def test_flipped_words_of_weights(way, which, request, randn):
    """Every sample against numpy's XOR of its struck bits, several in a word among them."""
    model = request.getfixturevalue(which)
    x = randn(4, 5) if which == "net" else randn(4, 1, 6, 6)
    bits = [3, 22, 24, 25, 31]
    space = FaultSpace(model, x, BitFlip(WAYS[way], format="float32", bits=bits), "weights")
    points = sample_points(space.placements, 0, 40)
    e = points.dense() != 0
    masks = np.array([1 << bit for bit in bits], dtype=np.uint32)

    def strike(row):
        def act(name, value):
            place = next(p for p in space.placements if p.site.name == name)
            struck = e[row, place.start : place.stop].reshape(*value.shape, len(bits))
            joined = np.bitwise_xor.reduce(np.where(struck, masks, np.uint32(0)), axis=-1)
            return (np.ascontiguousarray(value).view(np.uint32) ^ joined).view(np.float32)

        return act

    names = [p.site.name for p in space.placements]
    every = dict.fromkeys(names, strike)
    wanted = np.stack(
        [
            injected(model, x, names, lambda n, v, row=row: strike(row)(n, v) if n in every else v)
            for row in range(40)
        ]
    )
    several = sum(
        (e[:, p.start : p.stop].reshape(40, -1, len(bits)).sum(-1) > 1).sum()
        for p in space.placements
    )
    assert several > 0
    assert np.abs(wanted - space.clean()).max() > 1
    alike(space.outcomes(points), wanted)
    alike(space.faulty_model.outputs(space.examples, points), wanted)


def test_words_of_neurons(net, randn):
    """A neuron's output as a word, in every example of the batch."""
    x = randn(3, 5)
    space = FaultSpace(net, x, BitFlip(0.02, format="float32"), "hidden")
    assert space.N == 6 * 32
    for p in (0.02, 0.3):
        space = FaultSpace(net, x, BitFlip(p, format="float32"), "hidden")
        points = sample_points(space.placements, 0, 50)
        struck = points.dense().reshape(50, 6, 32) != 0
        masks = (struck * (1 << np.arange(32, dtype=np.uint64))).sum(-1).astype(np.uint32)
        with torch.no_grad():
            hidden = torch.relu(net[0](x)).numpy().view(np.uint32)
            faulty = torch.from_numpy((hidden ^ masks[:, None]).view(np.float32))
            wanted = net[2](faulty).double().numpy()
        alike(space.outcomes(points), wanted)


@pytest.mark.parametrize("upset", ["row", "column", 2, "word"])
def test_upsets_of_weights(upset, net, randn):
    x = randn(3, 5)
    fault = BitStuck(0.05, to=1, format="float32", bits=[21, 22, 31], upset=upset)
    space = FaultSpace(net, x, fault, "weights")
    points = sample_points(space.placements, 1, 30)
    e = points.dense() != 0

    def struck(row, name, value):
        place = next(p for p in space.placements if p.site.name == name)
        own = e[row, place.start : place.stop]
        words = value.view(np.uint32).copy()
        for coordinate in np.flatnonzero(own):
            group, which = divmod(coordinate, {2: 1, "word": 1}.get(upset, 3))
            mask = {2: 3 << 21, "word": 1 << 31 | 3 << 21}.get(upset)
            mask = np.uint32(mask or 1 << [21, 22, 31][which])
            if upset == "row":
                words[group] |= mask
            elif upset == "column":
                words[:, group] |= mask
            else:
                words.reshape(-1)[group] |= mask
        return words.view(np.float32)

    names = [p.site.name for p in space.placements]
    wanted = np.stack(
        [
            injected(net, x, names, lambda n, v, row=row: struck(row, n, v) if n in names else v)
            for row in range(30)
        ]
    )
    assert np.abs(wanted - space.clean()).max() > 0.1
    alike(space.outcomes(points), wanted)


@ALLOWED
def test_enumeration_is_the_sum_over_all_patterns(seeded, watch, randn):
    """2^N patterns of half-precision words, struck by hand; infinities and NaN among them."""

    def made():
        net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2))
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor([[0.75, -1.5]]))
        return net

    net = watch(seeded(made))
    x, p = randn(3, 2), 0.2
    bits = [8, 10, 12, 13, 14]
    exact = enumerate_exact(net, x, BitFlip(p, format="float16", bits=bits), "0.weight")
    clean = net(x).detach().double().numpy()
    changed = np.zeros(3)
    lost = np.zeros(3)
    for pattern in itertools.product([0, 1], repeat=10):
        words = net[0].weight.detach().numpy().astype(np.float16).view(np.uint16)
        masks = np.array(pattern).reshape(2, 5) @ (1 << np.array(bits))
        flipped = (words ^ masks.astype(np.uint16)).view(np.float16).astype(np.float32)
        with torch.no_grad():
            out = net[1](x @ torch.from_numpy(flipped).T).double().numpy()
        chance = p ** sum(pattern) * (1 - p) ** (10 - sum(pattern))
        bad = ~np.isfinite(out).all(-1)
        lost += chance * bad
        changed += chance * (bad | (out.argmax(-1) != clean.argmax(-1)))
    assert 0 < lost.min() < changed.max() < 1
    np.testing.assert_allclose(exact.class_change, changed, rtol=1e-9)
    np.testing.assert_allclose(exact.not_finite, lost, rtol=1e-9)
    result = score(net, x, BitFlip(p, format="float16", bits=bits), "0.weight", samples=4000)
    for quantity, wanted in (("class-change", changed), ("not-finite", lost)):
        assert result.find("exact", quantity).value == pytest.approx(wanted.mean(), rel=1e-9)
        found = result.find("monte-carlo", quantity)
        assert found.low <= wanted.mean() <= found.high
    assert result.find("exact", "variance", output="all") is None  # of infinities
    assert result.find("monte-carlo", "variance", output="all") is None
    assert result.verdict.index("class changes") < result.verdict.index("no variance")


@ALLOWED
@pytest.mark.parametrize("p", [1e-5, 1e-4, 1e-3, 3e-3, 1e-2])
def test_monte_carlo_covers_an_injector(p, net, randn):
    """P(class changes) of float32 words against 2,000 chips of an injector of its own."""
    x = randn(8, 5)
    rng = np.random.default_rng(int(1 / p))
    with torch.no_grad():
        clean = net(x).argmax(-1).numpy()
    changed = []
    for _ in range(2000):
        outputs = x
        for layer in (net[0], net[2]):
            words = layer.weight.detach().numpy().copy().view(np.uint32)
            bits = 32 * words.size
            hit = rng.choice(bits, rng.binomial(bits, p), replace=False)
            flips = np.uint32(1) << (hit % 32).astype(np.uint32)
            np.bitwise_xor.at(words.reshape(-1), hit // 32, flips)
            weight = torch.from_numpy(words.view(np.float32))
            outputs = outputs @ weight.T + layer.bias.detach()
            outputs = torch.relu(outputs) if layer is net[0] else outputs
        bad = ~torch.isfinite(outputs).all(-1).numpy()
        changed.append((bad | (outputs.argmax(-1).numpy() != clean)).mean())
    space = FaultSpace(net, x, BitFlip(p, format="float32"), "weights")
    found = monte_carlo(space, samples=2000, seed=1, confidence=0.999)
    estimate = next(e for e in found.estimates if (e.quantity, e.input) == ("class-change", "all"))
    error = 3.3 * np.std(changed) / np.sqrt(len(changed))
    assert estimate.low - error <= np.mean(changed) <= estimate.high + error
    assert np.mean(changed) > 0


def test_words_as_the_model_stores_them(seeded, watch, randn):
    """The type of the parameters, also where the score computes in another one."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        layers = lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))  # noqa: E731
        net = watch(seeded(lambda layers=layers, dtype=dtype: layers().to(dtype)))
        x = randn(2, 3).to(dtype)
        space = FaultSpace(net, x, BitFlip(1e-3, format="stored"), "weights")
        name = str(dtype).removeprefix("torch.")
        assert space.placements[0].fault.word.name == name
        assert 20 * torch.finfo(dtype).bits == space.N
        wide = space.with_dtype(torch.float64)
        assert wide.placements[0].fault.word.name == name


@ALLOWED
def test_what_theory_says_of_words(net, randn):
    """Strata of single faults serve all bits; expansions those that add up, and say so."""
    x = randn(2, 5)
    more = {"samples": 3000, "seed": 0, "methods": ["+word-importance"]}
    found = score(net, x, BitFlip(2e-4, format="float32"), "weights", **more)
    for method in ("taylor", "mean-point-taylor"):
        assert "no small steps" in found.skipped[method]
    assert "mean point" in found.skipped["mean-point-single"]
    sampled = found.find("monte-carlo", "class-change")
    assert sampled.low <= found.find("word-strata", "class-change").value <= sampled.high
    reweighted = found.find("word-importance", "class-change")
    assert sampled.low <= reweighted.high
    assert reweighted.low <= sampled.high
    assert "word-strata serves" in found.skipped["single-law"]
    assert found.verdict.startswith("Under")
    assert found.verdict.index("class changes") < found.verdict.index("outputs together")
    small = score(net, x, BitFlip(1e-2, bits="mantissa"), "weights", samples=3000, seed=0)
    for method in ("taylor", "mean-point-taylor", "mean-point-single"):
        theory = small.find(method, "variance", output="all").value
        assert theory == pytest.approx(
            small.find("monte-carlo", "variance", output="all").value, rel=0.2
        )


def test_there_is_no_mean_point_of_exponents(net, randn):
    space = FaultSpace(net, randn(2, 5), BitFlip(0.1, bits=[30]), "weights")
    assert not space.has_derivatives
    with pytest.raises(NotApplicableError, match="mean point"):
        space.outputs(Points.at(space.mean_point))
    with pytest.raises(NotFiniteError, match="not finite"):
        space.outputs(Points.at(np.ones(space.N)))


def test_words_and_places_that_do_not_go_together(net, seeded, randn):
    x = randn(2, 5)
    with pytest.raises(ArgumentError, match="give scale"):
        FaultSpace(net, x, BitFlip(0.1, format="int8"), "hidden")
    assert FaultSpace(net, x, BitFlip(0.1, format="int8", scale=0.1), "hidden").N == 48
    large = seeded(lambda: nn.Linear(2, 2))
    with torch.no_grad():
        large.weight.fill_(1000.0)
    with pytest.raises(ArgumentError, match="beyond its largest number 448"):
        FaultSpace(large, randn(2, 2), BitFlip(0.1, format="float8_e4m3fn"), "weights")


def test_exactly_so_many_bits(net, randn):
    space = FaultSpace(net, randn(2, 5), BitFlip(count=3, format="float32"), "weights")
    points = sample_points(space.placements, 0, 200)
    assert (points.dense().sum(1) == 3).all()


def test_other_faults_beside_words(net, randn):
    faults = {"0.weight": BitFlip(1e-3, format="float32"), "1": GainNoise(0.1)}
    space = FaultSpace(net, randn(2, 5), faults)
    points = sample_points(space.placements, 0, 30)
    alike(space.outcomes(points), space.faulty_model.outputs(space.examples, points))
