"""The adviser against the best of all plans, real chips, and what it says of itself."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache

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
    FaultSpace,
    NeuronCrash,
    Plan,
    Protected,
)
from crashsim.errors import ArgumentError, FileError, NotApplicableError
from crashsim.files.data import load_data
from crashsim.protection.adviser.margins import margins_of
from crashsim.protection.adviser.virtual_plans import VirtualChips
from crashsim.protection.protected import Residual
from crashsim.protection.schemes import Parity
from crashsim.sampling.chips.run import chip_metrics

INT8 = BitFlip(p=3e-3, format="int8")


@cache
def digits():
    """A network of two hidden layers that knows digits, and those it was not trained on."""
    data = load_data("digits", "train")
    x, y = torch.as_tensor(data.inputs).float(), torch.as_tensor(data.targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10)
        )
        optimiser = torch.optim.Adam(net.parameters(), 5e-3)
        for _ in range(150):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()
    for parameter in net.parameters():
        parameter.grad = None
    test = load_data("digits", "test")
    return net.eval(), torch.as_tensor(test.inputs).float()[:200], torch.as_tensor(
        test.targets
    )[:200]  # fmt: skip


def real_share(net, schemes, x, y, fault=INT8, chips=400):
    space = FaultSpace(Protected(net, schemes), x[:1], fault, "weights")
    run = chip_metrics(space, (x, y), metrics=["accuracy"], samples=chips, one_exact=False, seed=9)
    values = run.found.law(0).sampled
    return values.mean(), values.std() / np.sqrt(len(values))


@pytest.mark.parametrize(
    "schemes",
    [(), (TMR(of="words", bits=[7]),), (SECDED(),), (Parity(bits=[6, 7]),)],
    ids=["none", "signs", "secded", "parity"],
)
def test_virtual_chips_judge_a_plan_as_real_ones_do(schemes):
    net, x, y = digits()
    space = FaultSpace(net, x, INT8, "weights")
    margins = margins_of(space, space.examples, y.numpy(), 2**30)
    found = VirtualChips(margins, 0, 400).accuracies(Residual(schemes))
    value, error = real_share(net, schemes, x, y)
    lost = margins.right - value
    assert lost > 5 * error
    assert abs(found.mean() - value) < 0.1 * lost + 3 * np.hypot(error, found.std() / 20)


def harm_of_layers(weights, x):
    """(layers,) the answers that change with each bit of int8 flipped alone, by torch alone."""

    def run(layers):
        h = x
        for i, w in enumerate(layers):
            h = h @ w.mT if i == len(layers) - 1 else torch.tanh(h @ w.mT)
        return h.argmax(-1)

    answers, found = run(weights), []
    for i, w in enumerate(weights):
        scale = w.abs().max() / 127
        words = (w / scale).round().to(torch.int8)
        flipped = torch.stack([words ^ m for m in (1, 2, 4, 8, 16, 32, 64, -128)])
        change = (flipped.float() - words.float()) * scale
        each = torch.diag_embed(change.flatten(1)).view(-1, *w.shape)
        struck = (w + each).contiguous()
        layers = [*weights[:i], struck[:, None], *weights[i + 1 :]]
        layers = [one.expand(len(struck), 1, *one.shape[-2:]) for one in layers]
        h = x.expand(len(struck), 1, *x.shape)
        for j, one in enumerate(layers):
            h = h @ one.mT if j == len(layers) - 1 else torch.tanh(h @ one.mT)
        found.append((h.argmax(-1)[:, 0] != answers).float().mean(1).sum().item())
    return np.array(found)


def test_the_choice_is_near_the_best_of_all_subsets_of_twelve_layers():
    """Every set of layers that fits the budget, by all single faults on the other examples."""
    width, depth = 6, 12
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = []
        for i in range(depth):
            linear = nn.Linear(width, width, bias=False)
            nn.init.orthogonal_(linear.weight, gain=1.2)
            linear.weight.data[i % width] *= 1 + i % 3  # some layers matter more
            layers += [linear, nn.Tanh()]
        net = nn.Sequential(*layers[:-1]).eval()
        x = torch.randn(400, width)
    plan = crashsim.protect(
        net, x, BitFlip(p=1e-4, format="int8"), "weights", budget=0.7, by=("layer",), chips=20,
        virtual=400, schemes=[TMR(of="words")],
    )  # fmt: skip
    own = [int(row["site"].split(".")[0]) // 2 for row in plan.chosen]
    assert 0 < len(own) <= 4  # each costs a twelfth of what three copies of all do
    weights = [m.weight.detach() for m in net if isinstance(m, nn.Linear)]
    harm = harm_of_layers(weights, x[1::2])
    sets = itertools.combinations(range(depth), 4)
    best = max(sum(harm[list(one)]) for one in sets)
    assert 0.3 < best / harm.sum() < 0.6
    assert sum(harm[own]) > 0.95 * best


def test_what_is_measured_is_what_a_run_of_the_protected_model_finds():
    net, x, y = digits()
    plan = crashsim.protect(
        net, (x, y), INT8, "weights", budget=0.1, chips=100, seed=3, virtual=100
    )
    found = plan.verified
    assert plan.overhead <= 0.1
    assert plan.chosen
    assert {row["scheme"] for row in plan.chosen} <= {"secded", "tmr"}
    space = FaultSpace(plan.protected(net), x[:1], INT8, "weights")
    run = chip_metrics(
        space, (x[1::2], y[1::2]), metrics=["accuracy"], samples=100, seed=3, one_exact=False
    )
    mean = run.found.law(0).mean(0.05)
    ends = [float(end) for end in (mean.value, mean.low, mean.high)]
    assert [found["value"], found["low"], found["high"]] == pytest.approx(ends, rel=1e-6)
    assert found["value"] > found["unprotected"]["value"]
    assert found["agrees"] == (found["low"] <= found["predicted"] <= found["high"])
    overheads = [row["overhead"] for row in plan.front]
    worths = [row["predicted"] for row in plan.front]
    assert overheads == sorted(overheads)
    assert worths == sorted(worths)
    assert sum(row["chosen"] for row in plan.front) == 1
    again = crashsim.protect(
        net, (x, y), INT8, "weights", budget=0.1, chips=100, seed=3, virtual=100,
        executor=ThreadPoolExecutor(2),
    )  # fmt: skip
    assert again.to_dict() == plan.to_dict()


def test_a_store_keeps_what_was_measured(tmp_path):
    net, x, y = digits()
    first, again = (
        crashsim.protect(
            net, (x, y), INT8, "weights", budget=0.05, by=("layer",), chips=1100, virtual=50,
            store=tmp_path,  # a whole block of chips and some
        )
        for _ in range(2)
    )  # fmt: skip
    assert first.to_dict() == again.to_dict()
    assert any(tmp_path.iterdir())


def test_ctrl_c_while_a_plan_is_measured_ends_it():
    net, x, y = digits()

    def stop(what, done, count):
        if what == "chips":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        crashsim.protect(
            net, (x, y), INT8, "weights", budget=0.05, by=("layer",), chips=40, virtual=50,
            progress=stop,
        )  # fmt: skip
    assert not isinstance(stopped.value, crashsim.Interrupted)


def test_a_target_of_a_share_of_chips_is_reached_at_less_than_half_of_three_copies():
    net, x, y = digits()
    plan = crashsim.protect(
        net,
        (x, y),
        INT8,
        "weights",
        target=0.9,
        share=0.9,
        chips=300,
        schemes=[TMR(of="words")],
        virtual=400,
    )
    accepted = plan.verified["accepted"]
    assert plan.reached is True or accepted["low"] <= 0.9 <= accepted["high"]
    assert accepted["value"] > 0.88
    assert plan.overhead < 1.0


def test_a_fifth_of_the_bits_chosen_one_by_one_does_half_of_what_all_do_by_position():
    net, x, y = digits()
    plan = crashsim.protect(
        net, (x, y), INT8, "weights", budget=0.1, schemes=[TMR(of="words")], by="coordinate",
        chips=400,
    )  # fmt: skip
    share = sum(row["coordinates"] for row in plan.chosen) / plan.coordinates
    assert share <= 0.05
    held = x[1::2], y[1::2]
    top, error = real_share(net, (TMR(of="words", bits=[6, 7]),), *held)
    bare, _ = real_share(net, (), *held)
    assert top - bare > 10 * error
    assert plan.verified["value"] > bare + 0.5 * (top - bare)


def test_what_cannot_be_reached_is_said():
    net, x, y = digits()
    plan = crashsim.protect(
        net,
        (x, y),
        INT8,
        "weights",
        target=1.0,
        chips=50,
        virtual=100,
        schemes=[SECDED(sites="4.*")],
    )
    assert plan.reached is False
    assert any("out of reach" in line for line in plan.told)
    assert "not reached" in plan.to_text()


def test_neurons_are_tripled_where_that_helps_most():
    net, x, y = digits()
    plan = crashsim.protect(net, (x, y), NeuronCrash(0.1), budget=0.2, chips=200, virtual=100)
    assert {row["scheme"] for row in plan.chosen} == {"tmr"}
    assert {row["site"] for row in plan.chosen} <= {"1", "3"}
    assert 0 < plan.cost["macs"] <= 0.2 * (64 * 24 + 24 * 16 + 160) + 1
    found = plan.verified
    assert found["value"] > found["unprotected"]["value"]


def test_clipping_is_used_where_it_pays_and_left_out_where_not():
    net, x, y = digits()
    exponents = BitFlip(p=1e-4, format="float32", bits="exponent")
    plan = crashsim.protect(
        net, (x, y), exponents, "weights", budget=0.2, chips=100,
        virtual=100, schemes=[ClipWeights(), SECDED()],
    )  # fmt: skip
    assert "clip-weights" in {row["scheme"] for row in plan.chosen}
    assert plan.verified["value"] > plan.verified["unprotected"]["value"] + 0.01
    mild = BitFlip(p=1e-3, format="int8", bits=[0, 1])
    plan = crashsim.protect(
        net,
        (x, y),
        mild,
        "weights",
        budget=0.5,
        chips=50,
        virtual=100,
        schemes=[ClipActivations(), SECDED()],
    )
    assert "clip" not in {row["scheme"] for row in plan.chosen}
    assert any("clip is left out" in line for line in plan.told)


def test_a_plan_is_saved_read_and_shown(tmp_path):
    net, x, y = digits()
    plan = crashsim.protect(net, (x, y), INT8, "weights", budget=0.05, chips=50, virtual=100)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.to_dict() == plan.to_dict()
    assert again.to_text() == str(plan)
    plain = json.loads((tmp_path / "plan.json").read_text())
    assert (plain["record"], plain["schema"]) == ("plan", 1)
    page = plan.to_html()
    assert "<svg" in page
    assert "<script" not in page
    for row in plan.chosen:
        assert row["site"] in page
        assert row["site"] in plan.to_text()
    with pytest.raises(NotApplicableError, match="protect again"):
        again.protected(net)
    (tmp_path / "other.json").write_text('{"record": "plan", "schema": 1}')
    with pytest.raises(FileError, match="damaged"):
        Plan.load(tmp_path / "other.json")
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(FileError, match="no plan"):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(FileError, match="cannot be read"):
        Plan.load(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "target"),
        ({"target": 2}, "target"),
        ({"budget": -1}, "budget"),
        ({"budget": 0.1, "metric": "mse"}, "metric"),
        ({"budget": 0.1, "share": 0.9}, "share"),
        ({"budget": 0.1, "schemes": []}, "schemes"),
        ({"budget": 0.1, "schemes": "secded"}, "schemes"),
        ({"budget": 0.1, "schemes": [3]}, "schemes"),
        ({"budget": 0.1, "by": ("wing",)}, "by"),
        ({"budget": 0.1, "chips": 0}, "chips"),
        ({"budget": 0.1, "metric": "accuracy"}, "targets"),
        ({"budget": 0.1, "targets": torch.full((20,), 30)}, "targets"),
    ],
)
def test_wrong_arguments_are_refused(options, told):
    net, x, _ = digits()
    with pytest.raises(ArgumentError, match=told):
        crashsim.protect(net, x[:20], INT8, "weights", **options)


def test_what_has_no_margins_is_refused():
    net, x, _ = digits()
    with pytest.raises(NotApplicableError, match="stored bits of neurons"):
        crashsim.protect(net, x, BitFlip(1e-3, format="float32"), "1", budget=0.1)
    with pytest.raises(ArgumentError, match="at least 4"):
        crashsim.protect(net, x[:2], INT8, "weights", budget=0.1)
    with torch.random.fork_rng(devices=[]):
        one = nn.Sequential(nn.Linear(64, 1)).eval()
    with pytest.raises(NotApplicableError, match="classes"):
        crashsim.protect(one, x, INT8, "weights", budget=0.1, metric="class-change")
