"""No module reaches into what another one keeps to itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("crashsim", "theory/crashsim_theory", "hardware/crashsim_hardware")
OURS = ("crashsim", "crashsim_theory", "crashsim_hardware")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Private names of others that are needed, and why nothing public serves.
OF_OTHERS = {
    "_version": "torch: how often a tensor was written to; it has no public name",
    "_parameters": "torch: a module's own entries, with those that another module holds too",
    "_buffers": "torch: likewise",
    "_modules": "torch: likewise",
    "_forward_hooks": "torch: there is no public way to ask whether a module has hooks",
    "_forward_pre_hooks": "torch: likewise",
    "_forward_pre_hooks_with_kwargs": "torch: likewise, which of them take keywords",
    "_global_forward_hooks": "torch: likewise, of all modules",
    "_global_forward_pre_hooks": "torch: likewise, of all modules",
    "_call_impl": "torch: what a module's __call__ is, which packages replace",
    "_compiled_call_impl": "torch: what module.compile() leaves",
    "_orig_mod": "torch: the module that torch.compile wraps",
    "_C": "torch: the namespace of its functions that are built in",
    "_nn": "torch: likewise",
    "_ConvNd": "torch: the base class of all convolutions",
    "_AvgPoolNd": "torch: likewise, of average pooling",
    "_AdaptiveAvgPoolNd": "torch: likewise, of average pooling to a given size",
    "_MaxPoolNd": "torch: likewise, of max pooling",
    "_BatchNorm": "torch: likewise, of batch norms",
    "_InstanceNorm": "torch: likewise, of instance norms",
    "_DropoutNd": "torch: likewise, of dropouts",
    "_reversed_padding_repeated_twice": "torch: the padding that a convolution computes with",
    "_overloadpacket": "torch: the key of its table of operations' costs",
    "_scaled_dot_product_attention_math": "torch: attention by its formula, which vmap can map",
    "_checkpoint_without_reentrant_generator": "torch: what checkpoints run, to be watched",
    "_tensor_name": "torch: which weight a pruning hook computes",
    "_weight_bias": "torch: the tensors that a quantised layer has packed",
    "_fields": "Python: the documented fields of a named tuple",
    "_warnings_showwarning": "Python: whether logging captures warnings; it does not say",
}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def defined_in(tree):
    """The private names that a module defines: functions, classes, variables and attributes."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
    return {name for name in found if is_private(name)}


def reached_into(source):
    """(line, name) of each private name of another module that a module uses."""
    tree = ast.parse(source)
    own = defined_in(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue  # a base class may be another module's, to which it belongs
            case ast.Attribute(attr=name):
                names = [name]
            case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr")):
                texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
                names = [text for text in texts if isinstance(text, str)]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in OURS:
                parts = [*module.split("."), *(alias.name for alias in node.names)]
                yield from ((node.lineno, name) for name in parts if is_private(name))
                continue
            case _:
                continue
        for name in names:
            if is_private(name) and name not in own and name not in OF_OTHERS:
                yield node.lineno, name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_underscores_are_left_to_their_modules(path):
    assert list(reached_into(path.read_text(encoding="utf-8"))) == []


def test_every_exception_is_needed():
    sources = [path.read_text(encoding="utf-8") for path in MODULES]
    assert [name for name in OF_OTHERS if not any(name in source for source in sources)] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("space._call(x)", ["_call"]),
        ("run().part[0]._held = 1", ["_held"]),
        ("self.space._call(x)", ["_call"]),
        ("getattr(space, '_call')", ["_call"]),
        ("from crashsim.space import _Hidden", ["_Hidden"]),
        ("from crashsim._hidden import Shown", ["_hidden"]),
        ("import torch\nversion = weight._version", []),
        ("self._call(x)\nspace.__dict__", []),
        ("class A:\n    def _call(self): ...\n    def copy(self, a): return a._call()", []),
        ("class A:\n    def __init__(self, a): self._x = a._x", []),
        ("class A:\n    _x: int\ndef f(a): return a._x", []),
    ],
)
def test_what_counts_as_reaching_in(source, found):
    assert [name for _, name in reached_into(source)] == found
