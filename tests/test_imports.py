"""What loading the packages loads, in a fresh process."""

import importlib
import json
import subprocess
import sys

import pytest

import crashsim
from crashsim.moved import MOVED

SLOW = {"sympy", "scipy.optimize", "scipy.ndimage", "scipy.stats", "pydantic"}
HEAVY = ("torch", "brian2", "matplotlib", "sklearn", "nir", *sorted(SLOW))

NETWORK = """
import torch, warnings, crashsim
warnings.simplefilter("ignore")
net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).eval()
x = torch.ones(2, 3)
"""


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
        ("import crashsim_theory", {"torch", "brian2", "matplotlib", "sklearn"} | SLOW),
        (
            f"{NETWORK}\ncrashsim.score(net, x, crashsim.BitFlip(1e-3), samples=64)",
            SLOW - {"sympy"},
        ),
        ("import crashsim_hardware", {"torch", "sklearn"}),
    ],
)
def test_what_stays_unloaded(code, without):
    assert not loaded_by(code) & without


@pytest.mark.parametrize(
    "fault",
    [
        "NeuronCrash(0.1)", "StuckAt(1.0, 0.1)", "SignFlip(0.1)", "GainNoise(0.1)",
        "AdditiveNoise(0.1)", "WeightCrash(0.1)", "BitFlip(0.01)", "BitStuck(0.01)",
        "BitFlip(0.01, format='float32')",
    ],
)  # fmt: skip
def test_sampling_built_in_faults_needs_no_formula(fault):
    run = f"crashsim.monte_carlo(crashsim.FaultSpace(net, x, crashsim.{fault}), samples=64)"
    assert loaded_by(f"{NETWORK}\nassert {run}.estimates") == {"torch"}


def test_a_score_from_the_command_line_loads_what_it_needs():
    code = (
        "import sys, contextlib, os\nfrom crashsim.cli import main\n"
        "sys.argv = 'crashsim score 64-4-2:tanh --inputs digits --samples 64 --p 0.01'.split()\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(open(os.devnull, 'w')):"
        "\n    main()"
    )
    assert not loaded_by(code) & {
        "brian2",
        "matplotlib",
        "sklearn",
        "nir",
        *SLOW - {"pydantic", "sympy"},
    }


@pytest.mark.parametrize("name", crashsim.__all__)
def test_every_public_name_is_there(name):
    assert getattr(crashsim, name) is not None


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_module_that_moved_is_found_by_its_old_name(old, new):
    code = (
        "import importlib, warnings; warnings.simplefilter('ignore');"
        f"assert importlib.import_module({old!r}) is importlib.import_module({new!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_old_names_warn_and_others_are_still_unknown():
    import crashsim_hardware

    with pytest.warns(DeprecationWarning, match="is now Linear"):
        assert crashsim_hardware.Dense is crashsim_hardware.Linear
    from crashsim import training

    assert training.Recipe is importlib.import_module("crashsim.training.classifier").Recipe
    for module in (crashsim, crashsim_hardware, training):
        assert not hasattr(module, "nothing_of_this_name")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("crashsim.nothing_of_this_name")
