"""What loading the packages loads, in a fresh process."""

import json
import subprocess
import sys

import pytest

import crashsim

HEAVY = ("torch", "brian2", "matplotlib", "sklearn", "sympy", "nir")


def loaded_by(code):
    listing = f"import sys, json; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    command = [sys.executable, "-c", f"{code}\n{listing}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("import crashsim", {"torch", "brian2", "matplotlib", "sklearn", "nir"}),
        ("import crashsim.cli", {"torch", "brian2", "matplotlib", "sklearn", "nir"}),
        (
            "from crashsim import score, NeuronCrash, Score, FaultSpace, monte_carlo",
            {"brian2", "matplotlib", "sklearn", "nir"},
        ),
        ("import crashsim_theory", {"torch", "brian2", "matplotlib", "sklearn"}),
        ("import crashsim_hardware", {"torch", "sklearn"}),
    ],
)
def test_what_stays_unloaded(code, without):
    assert not loaded_by(code) & without


@pytest.mark.parametrize("name", crashsim.__all__)
def test_every_public_name_is_there(name):
    assert getattr(crashsim, name) is not None
