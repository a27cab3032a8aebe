"""Studies that are killed anywhere, and go on: nothing but what was under way is lost."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from small_study import Given, described

import crashsim
from crashsim import Store
from crashsim.results.studies.case_record import to_lines
from crashsim.studies.run import run_study


def _run(study, store, workers):
    if not workers:
        run_study(study, Given(), store=store)
        return
    with crashsim.Workers(workers) as executor:
        run_study(study, Given(), store=store, executor=executor)


def _killed_after(seconds, study, store, workers=0):
    """Runs the study in a process of its own and kills that; whether it was still running."""
    program = multiprocessing.get_context("fork").Process(
        target=_run, args=(study, store, workers), daemon=False
    )
    program.start()
    program.join(seconds)
    is_running = program.is_alive()
    if is_running:
        os.kill(program.pid, signal.SIGKILL)
    program.join()
    return is_running


def test_a_study_that_is_killed_goes_on_and_finds_the_same(tmp_path):
    study = described(chips=1000, width={"accuracy": 0.04}, rates=[0.1, 0.3])
    start = time.monotonic()
    wanted = to_lines(run_study(study, Given(), store=tmp_path / "whole"))
    usual = time.monotonic() - start
    random = np.random.default_rng(0)
    kills = sum(
        _killed_after(float(random.uniform(0.1, 0.6)) * usual, study, tmp_path / "killed")
        for _ in range(4)
    )
    assert kills
    assert all(work.damaged == () for work in Store(tmp_path / "killed").status())
    assert to_lines(run_study(study, Given(), store=tmp_path / "killed")) == wanted


@pytest.mark.slow
def test_a_thousand_cases_and_a_hundred_kills(tmp_path):
    rates = np.linspace(0.01, 0.4, 125).tolist()
    study = described(chips=300, rates=rates)
    start = time.monotonic()
    whole = run_study(study, Given())
    usual = time.monotonic() - start
    assert len(whole) == 1000
    random = np.random.default_rng(1)
    stores = [tmp_path / name for name in "abc"]
    kills = 0
    while kills < 92:
        kills += _killed_after(
            float(random.uniform(0.02, 0.3)) * usual, study, stores[random.integers(3)]
        )
        if kills % 10 == 9:  # or the stores would soon have all
            for work in random.permutation(sorted(stores[0].glob("*")))[:100]:
                for file in work.glob("*"):
                    file.unlink()
    for store in stores:
        kills += _killed_after(float(random.uniform(5, 9)), study, store, workers=2)
    merged = Store(tmp_path / "merged")
    for number in random.permutation(3):
        if stores[number].is_dir():
            merged.merge(Store(stores[number]))
    assert to_lines(run_study(study, Given(), store=merged)) == to_lines(whole)
    assert kills >= 92
