"""Every random number of crashsim comes from one table, where each use has its own part."""

import ast
import sys
from pathlib import Path

import crashsim_hardware.streams
import numpy as np
import pytest

import crashsim.coordinates.streams
from crashsim.coordinates.streams import Stream, generator

TABLES = [crashsim.coordinates.streams, crashsim_hardware.streams]


def modules_beside(table):
    """The source of every module of the table's distribution package, parsed, by its name in it."""
    folder = Path(sys.modules[table.__name__.partition(".")[0]].__file__).parent
    return {str(p.relative_to(folder)): ast.parse(p.read_text()) for p in folder.rglob("*.py")}


def names_in(tree):
    return [n.attr if isinstance(n, ast.Attribute) else n.id
            for n in ast.walk(tree) if isinstance(n, ast.Attribute | ast.Name)]  # fmt: skip


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.__name__)
def test_nothing_draws_random_numbers_but_from_the_table(table):
    sources = {"Philox", "default_rng", "RandomState", "PCG64", "SeedSequence"}
    found = {m for m, tree in modules_beside(table).items() if sources & set(names_in(tree))}
    # One splits data the same way for everyone; one holds a law's draws against its moments.
    assert {Path(m).name for m in found} - {"data.py", "checks.py"} == {"streams.py"}


def streams_used():
    """Each table's entries with the modules that draw from them, in all distribution packages."""
    users = {table.__name__: {member.name: set() for member in table.Stream} for table in TABLES}
    for beside in TABLES:
        for module, tree in modules_beside(beside).items():
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            chips = any(
                "crashsim_hardware" in (node.module or "")
                and "Stream" in {alias.name for alias in node.names}
                for node in imports
            )
            home = crashsim_hardware.streams.__name__ if chips else beside.__name__
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "Stream":
                    users[home][node.attr].add((beside.__name__, module))
    return users


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.__name__)
def test_every_stream_has_one_user(table):
    users = streams_used()[table.__name__]
    assert users
    assert {name: len(where) for name, where in users.items()} == dict.fromkeys(users, 1)


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.__name__)
def test_every_draw_names_its_stream(table):
    calls = []
    for module, tree in modules_beside(table).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "generator":
                named = ast.unparse(node.args[1])
                calls.append((module, named))
                assert named.startswith("Stream.") or named in {"stream", "self.stream"}, (
                    module,
                    named,
                )
    assert len(calls) > 3


def test_streams_do_not_run_into_each_other():
    ends = [stream + stream.size for stream in Stream]
    starts = [int(stream) for stream in Stream]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert ends == [*starts[1:], 2**64]
    for stream in Stream:
        assert stream.size >= 2**59  # more blocks than anyone draws
        generator(0, stream, stream.size - 1)
        for beyond in (-1, stream.size):
            with pytest.raises(ValueError, match=stream.name):
                generator(0, stream, beyond)


def test_plain_samples_are_those_of_the_counter_alone():
    ours = generator(7, Stream.MONTE_CARLO, 3).random(8)
    theirs = np.random.Generator(np.random.Philox(key=7, counter=[0, 0, 0, 3])).random(8)
    np.testing.assert_array_equal(ours, theirs)


def test_neighbouring_blocks_and_seeds_differ_wherever_they_lie():
    """Beyond 2^53, floating-point numbers do not tell them apart."""
    blocks = [(stream, i) for stream in Stream for i in (0, 1, 2)]
    assert len({generator(5, *where).integers(2**63) for where in blocks}) == len(blocks)
    seeds = [2**54, 2**54 + 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    for table in TABLES:
        stream = next(iter(table.Stream))
        first = {table.generator(seed, stream).integers(2**63) for seed in seeds}
        assert len(first) == len(seeds)


def test_layers_of_a_large_chip_share_no_random_numbers():
    streams = [(s, i) for s in crashsim_hardware.streams.Stream for i in (0, 1, 99, 100, 101, 300)]
    first = {crashsim_hardware.streams.generator(5, s, i).integers(2**63) for s, i in streams}
    assert len(first) == len(streams)
