"""Every stage tells how far it is, by the work that is done."""

import threading

import numpy as np
import pytest
import torch

import crashsim
from crashsim import FaultSpace, NeuronCrash
from crashsim.coordinates.drawing import sample_points
from crashsim.errors import Interrupted
from crashsim.working import Steps, listening, worked


@pytest.fixture
def told():
    """What a score says of its progress, by stage."""
    calls = {}

    def progress(name, done, total):
        calls.setdefault(name, []).append((done, total))

    progress.calls = calls
    return progress


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr("crashsim.working._SELDOM", 0.0)


def test_rows_that_are_computed_are_told(make_net, randn, monkeypatch):
    space = FaultSpace(make_net((4, 6, 2)), randn(5, 4), NeuronCrash(0.3))
    points = sample_points(space.placements, 0, 30)
    monkeypatch.setattr("crashsim.injection.batches._BATCH_SCALARS", 7 * space._scalars)
    rows = []
    with listening(rows.append):
        space.outputs(points)
    assert sum(rows) == 5 * 30
    assert len(rows) > 10
    space.outputs(points)  # nobody listens any more
    assert sum(rows) == 5 * 30


def test_other_threads_work_is_not_told():
    rows = []
    with listening(rows.append):
        thread = threading.Thread(target=worked, args=(3,))
        thread.start()
        thread.join()
        worked(2)
    assert rows == [2]


def test_steps_never_go_back_and_end_once(at_once):
    found = []
    steps = Steps(lambda *step: found.append(step), 4, 10)
    steps.begin()
    for rows in (5, 5, 25, 100):
        steps.work(rows)
    steps.count(2, 4)  # less than was told
    steps.end()
    steps.end()
    assert found == [(0, 4), (1, 4), (3, 4), (4, 4)]


def test_steps_are_told_a_few_times_a_second_alone():
    found = []
    steps = Steps(lambda *step: found.append(step), 1000, 1)
    for _ in range(900):
        steps.work(1)
    assert 1 <= len(found) <= 5


def test_work_that_completes_no_step_is_told_now_and_then(monkeypatch):
    monkeypatch.setattr("crashsim.working._AT_LEAST", 0.0)
    found = []
    steps = Steps(lambda *step: found.append(step), 4, 10)
    steps.begin()
    with listening(steps.work):
        for _ in range(3):
            worked(0.0)
    steps.end()
    assert found == [(0, 4), (0, 4), (0, 4), (0, 4), (4, 4)]


def test_every_stage_begins_goes_on_and_ends(make_net, randn, told, at_once):
    net, x = make_net((6, 30, 20, 3)), randn(3, 6)
    score = crashsim.score(
        net, x, NeuronCrash(0.1), epsilon=0.2, samples=2000, progress=told,
        methods=["+pairs", "+importance-sampling"],
    )  # fmt: skip
    ran = {e.method for e in score.estimates}
    assert {"single", "pairs", "monte-carlo", "importance-sampling"} <= ran <= told.calls.keys()
    assert {"model and sites", "plan", "curves", "summary"} <= told.calls.keys()
    for calls in told.calls.values():
        done = [step for step, _ in calls]
        assert done == sorted(done)
        assert (calls[0][0], calls[-1][0]) == (0, calls[-1][1])
    told_often = ("single", "differences", "pairs", "surrogate-law", "importance-sampling")
    for name in (*told_often, "monte-carlo"):
        assert len(told.calls[name]) >= 3, name


@pytest.mark.parametrize("stage", ["single", "differences", "pairs", "importance-sampling"])
def test_interrupted_within_a_stage(stage, make_net, randn, at_once):
    """What was finished before is there, and no more."""

    def stop(name, done, total):
        if name == stage and 0 < done < total:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        crashsim.score(
            make_net((6, 30, 20, 3)), randn(3, 6), NeuronCrash(0.1), samples=500, progress=stop,
            methods=["taylor", "single", "mean-point-single", "pairs", "importance-sampling"],
        )  # fmt: skip
    partial = caught.value.partial
    assert partial.partial
    assert partial.find("taylor", "variance") is not None
    assert "interrupted" in partial.warnings[0]
    assert np.isfinite(partial.find("taylor", "variance").value)
    assert torch.is_grad_enabled()
