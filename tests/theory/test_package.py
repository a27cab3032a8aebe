"""The package stands alone, and every public name is there."""

import subprocess
import sys

import crashsim_theory as ct


def test_imports_neither_torch_nor_brian2():
    code = (
        "import sys, crashsim_theory\n"
        "print([m for m in ('torch', 'brian2', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_public_names_exist():
    assert all(hasattr(ct, name) for name in ct.__all__)
    assert len(set(ct.__all__)) == len(ct.__all__)


def test_modules_are_attributes_before_anything_is_derived():
    code = (
        "import crashsim_theory as ct\n"
        "print(ct.activations.x, ct.laws.t, ct.networks.Network is ct.Network, hasattr(ct, 'none'))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["x", "t", "True", "False"]
