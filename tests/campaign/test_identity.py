"""What work depends on: the same name for the same, another for whatever changes the numbers."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from crashsim import BitFlip, Event, FaultSpace, NeuronCrash
from crashsim.campaign.identity import difference, digest, name_of
from crashsim.errors import ArgumentError
from crashsim.sampling.identity import identity_of

SCALE = 2.0


class Scaled(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)
        self.factor = factor

    def forward(self, x):
        return self.factor * torch.relu(self.layer(x))


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ).eval()


def module(body, factor=1.0):
    """A module whose forward is compiled from text, as in a notebook."""
    space = {"torch": torch, "SCALE": factor}
    code = f"class Net(torch.nn.Module):\n    def forward(self, x):\n        return {body}\n"
    exec(code, space)
    return space["Net"]()


def test_the_same_contents_have_the_same_digest():
    assert digest(net()) == digest(net())
    assert digest(np.arange(3)) == digest(np.arange(3))
    assert digest({"a": [1, (2.5, None)]}) == digest({"a": [1, (2.5, None)]})
    assert digest(lambda x: x + 1) != digest(lambda x: x + 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (net(0), net(1)),
        (net(), net().double()),
        (net(), net().train()),
        (module("x + 1"), module("x + 2")),
        (module("SCALE * x", 1.0), module("SCALE * x", 2.0)),
        (np.zeros(2), np.zeros(2, np.float32)),
        (np.zeros(2), -np.zeros(2)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (1, 1.0),
        (1, True),
        ("1", b"1"),
        ([1, 2], (1, 2)),
        ([[1], 2], [[1, 2]]),
        (NeuronCrash(p=0.1), NeuronCrash(p=0.2)),
        (NeuronCrash(p=np.full(9999, 0.1)), NeuronCrash(p=np.r_[np.full(9998, 0.1), 0.2])),
        (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
        (Event("e", lambda a, b, t: a > 1), Event("e", lambda a, b, t: a > 2)),
    ],
)
def test_other_contents_have_another(one, other):
    assert digest(one) != digest(other)


def test_a_plain_attribute_of_a_module_counts():
    with torch.random.fork_rng():
        one, other = Scaled(1.0), Scaled(1.5)
    other.load_state_dict(one.state_dict())
    assert digest(one) != digest(other)
    other.factor = 1.0
    assert digest(one) == digest(other)


def test_what_a_closure_holds_counts():
    def times(factor):
        return lambda x: factor * x

    assert digest(times(2)) == digest(times(2)) != digest(times(3))


def test_what_refers_to_itself_ends():
    one, other = [1], [2]
    one.append(one)
    other.append(other)
    assert digest(one) == digest(one) != digest(other)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ArgumentError, match="holds cannot be told"):
        digest([object()])


def test_another_process_finds_the_same():
    code = (
        "import torch; from crashsim import *; from crashsim.campaign.identity import digest;"
        "torch.manual_seed(0); L = torch.nn.Linear;"
        "net = torch.nn.Sequential(L(3, 4), torch.nn.ReLU(), L(4, 2)).eval();"
        "print(digest((net, NeuronCrash(p=0.1), {'a', 'b', 'c'})))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == digest((net(), NeuronCrash(p=0.1), {"a", "b", "c"}))


def test_a_space_says_in_words_what_differs():
    x = torch.ones(2, 3)
    one = identity_of(FaultSpace(net(), x, NeuronCrash(p=0.1)))
    assert one["faults"].startswith("NeuronCrash(p=0.1) at 1 ")
    assert identity_of(FaultSpace(net(), x, NeuronCrash(p=0.1))) == one
    other = identity_of(FaultSpace(net(), x, NeuronCrash(p=0.2)))
    assert [told.split(" (")[0] for told in difference(one, other)] == ["faults"]
    assert name_of(one) != name_of(other)
    words = BitFlip(p=0.1, format="int8")
    other = identity_of(FaultSpace(net(), x, words, sites="weights"))
    assert "format=int8" in other["faults"]
    other = identity_of(FaultSpace(net(), x, NeuronCrash(p=0.1), dtype=torch.float64))
    assert {told.split(" (")[0] for told in difference(one, other)} == {
        "clean outputs",
        "computed in",
        "inputs",
    }


@dataclass(frozen=True, eq=False)
class Law:
    table: np.ndarray


def test_dataclasses_count_with_their_fields():
    assert digest(Law(np.arange(3))) == digest(Law(np.arange(3))) != digest(Law(np.arange(4)))
