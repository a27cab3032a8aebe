"""Studies: their numbers are those of single calls, for any executor, and their intervals hold."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_study import FAULTS, RATES, Given, described

import crashsim
from crashsim import FaultSpace, NeuronCrash
from crashsim.errors import ArgumentError, CrashsimError, Interrupted
from crashsim.results.studies.case_record import from_lines, to_lines
from crashsim.sampling.chips.run import chip_metrics
from crashsim.studies.allocation import Standing, next_round
from crashsim.studies.run import planned, run_study


@pytest.mark.parametrize("chips", [200, 40])
def test_cases_are_what_single_calls_find(chips):
    given = Given()
    study = described(chips=chips)
    cases = {
        (c.model, c.fault, c.rate, c.metric): c
        for c in run_study(study, given)
        if c.confidence == 0.95
    }
    assert len(cases) == 2 * 2 * 3 * 2
    assert given.loaded == ["a", "b"]
    for model, fault, rate in itertools.product("ab", FAULTS, RATES):
        space = FaultSpace(
            given.nets[model],
            given.x,
            replace(FAULTS[fault], p=rate),
            "weights" if fault == "weights" else "hidden",
        )
        metrics = ["accuracy", "cross-entropy"]
        run = chip_metrics(space, targets=given.y, metrics=metrics, samples=chips)
        for number, metric in enumerate(metrics):
            case, mean = cases[model, fault, rate, metric], run.found.mean(number, 1 - 0.95)
            assert (case.value, case.low, case.high) == (mean.value, mean.low, mean.high)
            assert case.clean == run.found.clean[number]
            assert case.chips == run.chips == chips
            assert case.low < case.high


def test_widest_intervals_get_chips_until_all_are_narrow():
    study = described(chips=5000, width={"accuracy": 0.03}, models="a")
    cases = [case for case in run_study(study, Given()) if case.metric == "accuracy"]
    assert all(case.is_narrow and case.half_width <= 0.03 for case in cases)
    assert len({case.chips for case in cases}) > 2
    hard = max(cases, key=lambda case: case.chips)
    assert hard.chips < 5000
    few = described(chips=hard.chips // 2, width={"accuracy": 0.03}, models="a")
    assert not all(case.is_narrow for case in run_study(few, Given()))


def test_what_is_found_does_not_depend_on_who_runs_it_or_when(tmp_path):
    study = described(chips=1000, width={"accuracy": 0.04}, rates=[0.1, 0.3])
    wanted = to_lines(run_study(study, Given()))
    with ThreadPoolExecutor(3) as threads:
        assert to_lines(run_study(study, Given(), executor=threads)) == wanted
    assert to_lines(run_study(study, Given(), store=tmp_path / "a")) == wanted
    assert to_lines(run_study(study, Given(), store=tmp_path / "a")) == wanted
    # An interrupt after any number of looks, and the same call again.
    for number in (3, 7, 11):
        calls = itertools.count(1)

        def stop(progress, calls=calls, number=number):
            if next(calls) == number:
                raise KeyboardInterrupt

        with pytest.raises(Interrupted) as stopped:
            run_study(study, Given(), store=tmp_path / "b", watch=stop)
        assert all(case.partial for case in stopped.value.partial)
        assert 0 < len(stopped.value.partial) <= 16
    assert to_lines(run_study(study, Given(), store=tmp_path / "b")) == wanted


def test_processes_find_the_same(tmp_path):
    study = described(chips=500, width={"accuracy": 0.05}, rates=[0.3])
    wanted = to_lines(run_study(study, Given()))
    with crashsim.Workers(2) as workers:
        found = to_lines(run_study(study, Given(), executor=workers, store=tmp_path))
    assert found == wanted


def test_a_budget_is_kept():
    few = {"faults": ["neurons"], "rates": [0.1, 0.3]}
    first = sum(e.first_operations for e in planned(described(budget="1h", **few), Given()))
    study = described(chips=10**6, width={"accuracy": 1e-4}, budget=6 * first, **few)
    cases = run_study(study, Given())
    spent = sum(c.operations for c in cases if c.metric == "accuracy")
    assert 2 * first < spent <= 6 * first
    assert not all(case.is_narrow for case in cases)
    alone = run_study(described(chips=10**6, budget=6 * first, **few), Given())
    assert max(case.chips for case in alone) > min(case.chips for case in alone)
    with pytest.raises(ArgumentError, match=r"budget=.*: the first chips"):
        run_study(described(budget=0.9 * first, **few), Given())


def test_the_plan_is_what_is_then_spent():
    study = described(chips=100)
    sets = planned(study, Given())
    assert [len(each.cases) for each in sets] == [2] * 12
    cases = {case.case: case for case in run_study(study, Given())}
    for each in sets:
        assert each.first == each.most == 100
        assert cases[each.cases[0]].operations == pytest.approx(each.most_operations)


def test_models_that_meet_the_same_faults_are_compared_chip_by_chip():
    study = described(models="abc", chips=400, faults=["neurons"], rates=[0.3])
    cases = run_study(study, Given())
    given = Given()
    group = [c for c in cases if (c.fault, c.rate, c.metric) == ("neurons", 0.3, "accuracy")]
    assert sorted(case.rank for case in group) == [1, 2, 3]
    by_rank = sorted(group, key=lambda case: case.rank)
    assert [c.value for c in by_rank] == sorted((c.value for c in group), reverse=True)
    assert by_rank[0].behind is None
    for better, case in itertools.pairwise(by_rank):
        behind = case.behind
        assert behind["model"] == better.model
        assert behind["same_chips"] == ({better.model, case.model} == {"a", "b"})
        assert behind["difference"] == pytest.approx(better.value - case.value, abs=1e-12)
        assert behind["low"] < behind["difference"] < behind["high"]

    spaces = [FaultSpace(given.nets[m], given.x, NeuronCrash(p=0.3), "hidden") for m in "ab"]
    first, second = (
        chip_metrics(space, targets=given.y, metrics=["accuracy"], samples=400).found
        for space in spaces
    )
    paired, share = first.values[:, 0] - second.values[:, 0], first.law(0).rest
    both = run_study(described(models="ab", chips=400, faults=["neurons"], rates=[0.3]), given)
    (behind,) = [c.behind for c in both if (c.metric, c.rank) == ("accuracy", 2)]
    assert behind["same_chips"]
    pair = behind["high"] - behind["low"]
    student = 2 * 1.966 * share * paired.std(ddof=1) / np.sqrt(len(paired))
    assert student * 0.9 < pair < student * 1.4


def test_losses_rank_the_lowest_first():
    cases = run_study(described(chips=100, faults=["weights"]), Given())
    group = [c for c in cases if (c.fault, c.rate, c.metric) == ("weights", 0.1, "cross-entropy")]
    first, second = sorted(group, key=lambda case: case.rank)
    assert first.value < second.value
    assert second.behind["difference"] == pytest.approx(second.value - first.value)


def test_lines_are_read_back():
    cases = run_study(described(chips=64), Given())
    assert from_lines(to_lines(cases), "file") == cases


def test_what_does_not_go_together_says_of_which_case():
    given = Given()
    given.faults = lambda fault, sites: {"nowhere": NeuronCrash(p=0.1)}
    with pytest.raises(CrashsimError, match=r"case 'a \| x \| neurons"):
        run_study(described(), given)


def test_rounds_take_the_widest_first_and_keep_to_what_is_left():
    cases = [Standing(4.0, 10), Standing(1.0, 10), Standing(3.0, 10), Standing(2.0, 10)]
    assert next_round(cases, 100) == [0, 2]
    assert next_round(cases, 10) == [0]
    assert next_round([replace(cases[0], price=50), *cases[1:]], 10) == [2]
    assert next_round([replace(cases[0], price=float("inf")), *cases[1:]], 100) == [2]
    assert next_round(cases[1:2], 100) == []
    assert next_round([Standing(float("nan"), 1), Standing(float("inf"), 1)], 100) == [0, 1]


def _coverage(runs):
    """How many of the adaptive intervals hold the exact mean, and how many there are."""
    given = Given()
    study = described(models="a", chips=1200, width={"accuracy": 0.03}, confidence=0.8)
    exact = {}
    for rate in RATES:
        space = FaultSpace(given.nets["a"], given.x, NeuronCrash(p=rate), "hidden")
        masks = np.array(list(itertools.product([0.0, 1.0], repeat=5)))
        right = []
        for mask in masks:
            hidden = torch.tanh(given.nets["a"][0](given.x)) * torch.tensor(1 - mask).float()
            right.append((given.nets["a"][2](hidden).argmax(1) == given.y).double().mean())
        chance = rate ** masks.sum(1) * (1 - rate) ** (5 - masks.sum(1))
        exact[rate] = float(chance @ np.array(right))
        assert space.N == 5
    held = looked = 0
    for seed in range(runs):
        grid = [
            table.model_copy(update={"seeds": [seed], "fault": ["neurons"]}) for table in study.grid
        ]
        for case in run_study(study.model_copy(update={"grid": grid}), given):
            if case.metric == "accuracy":
                held += case.low <= exact[case.rate] <= case.high
                looked += 1
    return held, looked


def test_adaptive_intervals_hold_the_truth():
    held, looked = _coverage(4)
    assert looked == 12
    assert held >= 8


@pytest.mark.slow
def test_adaptive_intervals_hold_the_truth_as_often_as_they_say():
    held, looked = _coverage(100)
    assert looked == 300
    assert held / looked >= 0.8
