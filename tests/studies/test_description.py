"""Studies in TOML: what is read, and what is said of what makes no sense."""

import tomllib
from pathlib import Path

import pytest

from crashsim.errors import ArgumentError, CrashsimError, FileError
from crashsim.studies.cases import cases_of
from crashsim.studies.description import read_study, study_of, with_budget

WHOLE = """
[study]
name = "one"
chips = 100
width = {accuracy = 0.01}

[[models]]
name = "a"
model = "4-6-3:tanh"

[[models]]
name = "b"
model = "4-9-3:tanh"

[[data]]
name = "x"
inputs = "x.npz"

[grid]
fault = ["neuron-crash", "weight-crash"]
rates = "1e-3:1e-1:3"
metric = ["accuracy", "class-change"]
seeds = [0, 1]
"""


def read(tmp_path, text):
    file = tmp_path / "study.toml"
    file.write_text(text)
    return read_study(file)


def test_each_combination_is_a_case(tmp_path):
    study = read(tmp_path, WHOLE)
    cases = cases_of(study)
    assert len(cases) == len({case.name for case in cases}) == 2 * 2 * 3 * 2 * 2
    assert cases[0].name == "a | x | neuron-crash | 0.001 | seed 0 | accuracy"
    assert study.asked_width("accuracy", 0.5) == 0.01
    assert study.asked_width("class-change", 0.5) is None


def test_the_names_of_cases_do_not_depend_on_what_else_there_is(tmp_path):
    few = {case.name for case in cases_of(read(tmp_path, WHOLE))}
    more = WHOLE.replace("seeds = [0, 1]", 'seeds = [2, 1, 0]\nsites = ["hidden"]')
    assert not few & {case.name for case in cases_of(read(tmp_path, more))}
    more = WHOLE.replace("seeds = [0, 1]", "seeds = [2, 1, 0]")
    assert few < {case.name for case in cases_of(read(tmp_path, more))}


def test_several_grids_are_all_run_and_each_case_once(tmp_path):
    grids = WHOLE.replace("[grid]", "[[grid]]")
    grids += '\n[[grid]]\nfault = "weight-crash"\nrates = 0.5\nmodels = "b"\n'
    grids += '\n[[grid]]\nfault = "weight-crash"\nrates = [0.1, 0.5]\nmodels = ["b"]\n'
    cases = cases_of(read(tmp_path, grids))
    assert len(cases) == 48 + 1
    assert cases[-1].name == "b | x | weight-crash | 0.5 | seed 0 | accuracy"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("metric =", "metrics =", ["[grid] metrics", "did you mean 'metric'?"]),
        ("width = {", "rel_with = {", ["[study] rel_with", "did you mean 'rel_width'?"]),
        ("[study]", "[stud]", ["stud", "did you mean 'study'?"]),
        ('inputs = "x.npz"', "", ["[[data]] (number 1) inputs", "missing"]),
        ('inputs = "x.npz"', "inputs = 3", ["[[data]] (number 1) inputs=3", "string"]),
        ('model = "4-9-3:tanh"', 'mdl = "4"', ["[[models]] (number 2)"]),
        ('"accuracy", "class', '"acuracy", "class', ["[grid] metric", "'acuracy'", "accuracy"]),
        ("chips = 100", "chips = 0", ["[study] chips=0", "greater than or equal to 1"]),
        ("chips = 100", 'chips = "100"', ["[study] chips='100'", "integer"]),
        ("0.01}", "-1.0}", ["[study] width", "-1", "greater than 0"]),
        ("{accuracy = 0.01}", "{top-5 = 0.01}", ["[study] width", "'top-5'", "accuracy"]),
        ('"1e-3:1e-1:3"', "[0.1, -0.2]", ["[grid] rates", "above 0"]),
        ('"1e-3:1e-1:3"', '"1e-3"', None),
        ('name = "b"', 'name = "a"', ["[[models]] name='a'", "twice"]),
        ("seeds = [0, 1]", "seeds = [0, 0]", ["[grid] seeds", "twice"]),
        ("seeds = [0, 1]", "seeds = []", ["[grid] seeds"]),
        ("seeds = [0, 1]", 'data = ["y"]', ["[grid] data", "'y'", "there are x"]),
        ("chips = 100", 'budget = "soon"', ["[study] budget='soon'", "'90s'"]),
        ("chips = 100", "confidence = 1.0", ["[study] confidence=1.0", "less than 1"]),
    ],
)
def test_what_makes_no_sense_is_named(tmp_path, old, new, told):
    assert old in WHOLE
    if told is None:
        read(tmp_path, WHOLE.replace(old, new, 1))
        return
    with pytest.raises(ArgumentError) as error:
        read(tmp_path, WHOLE.replace(old, new, 1))
    for words in ["study.toml", *told]:
        assert words in str(error.value), str(error.value)


def test_what_is_no_toml_is_a_file_error(tmp_path):
    with pytest.raises(FileError, match=r"study\.toml.*no TOML"):
        read(tmp_path, "[study\n")
    with pytest.raises(FileError):
        read_study(tmp_path / "none.toml")
    with pytest.raises(CrashsimError, match=r"models.*is missing"):
        study_of({})


def test_a_budget_can_be_another(tmp_path):
    study = with_budget(read(tmp_path, WHOLE), "2m")
    assert study.study.budget == "2m"
    with pytest.raises(ArgumentError, match="budget='soon'"):
        with_budget(study, "soon")


def test_what_the_documentation_prints_is_a_study():
    page = (Path(__file__).parents[2] / "docs" / "campaigns.md").read_text()
    study = study_of(tomllib.loads(page.partition("```toml\n")[2].partition("```")[0]))
    names = [case.name for case in cases_of(study)]
    assert len(names) == 2 * 3 * 2
    assert "narrow | digits | hidden=neuron-crash | 0.001 | seed 0 | accuracy" in names
