"""Workers: processes that are replaced where they die, and a block that kills is given up."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError

import pytest
import torch
from light_work import die, die_unless, fail, threads, twice

from crashsim import NeuronCrash, Workers, monte_carlo
from crashsim.errors import ArgumentError, CrashsimError
from crashsim.space import FaultSpace


def test_work_is_shared_and_errors_come_back():
    with Workers(2) as workers:
        assert list(workers.map(twice, range(20))) == [2 * x for x in range(20)]
        with pytest.raises(ValueError, match="as asked"):
            workers.submit(fail).result()
        assert workers.submit(threads).result() == "1"
        assert len(workers.processes) == 2
    with pytest.raises(RuntimeError, match="after shutdown"):
        workers.submit(twice, 1)


def test_a_process_that_dies_is_replaced(tmp_path):
    with Workers(1) as workers:
        assert workers.submit(die_unless, str(tmp_path / "died")).result() == "alive"
        before = workers.processes
        os.kill(before[0], signal.SIGKILL)
        assert workers.submit(twice, 4).result() == 8
        assert workers.processes != before


def test_a_block_that_ends_every_process_is_named():
    with Workers(2) as workers:
        good = [workers.submit(twice, x) for x in range(8)]
        poisoned = workers.submit(die, 17)
        with pytest.raises(CrashsimError, match="block 17 ended 4 processes"):
            poisoned.result()
        assert [each.result() for each in good] == [2 * x for x in range(8)]
        assert workers.submit(twice, 5).result() == 10


def test_leaving_by_an_error_ends_the_processes_at_once():
    began = time.monotonic()
    workers = Workers(1)
    workers.submit(twice, 1).result()
    (process,) = workers.processes
    busy, waiting = workers.submit(time.sleep, 60), workers.submit(time.sleep, 60)
    with pytest.raises(KeyError), workers:
        raise KeyError
    assert time.monotonic() - began < 30
    with pytest.raises((CrashsimError, CancelledError)):
        busy.result()
    assert waiting.cancelled()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


ORPHANS = """
import time
from crashsim import Workers
if __name__ == "__main__":
    workers = Workers(1)
    workers.submit(abs, -1).result()
    print(workers.processes[0], flush=True)
    workers.submit(time.sleep, 100)
    time.sleep(100)
"""


def test_processes_end_with_the_program_that_started_them(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent")


def test_bad_numbers_of_workers_are_refused():
    for count in (0, -1, 1.5, "2"):
        with pytest.raises(ArgumentError, match="workers="):
            Workers(count)


def test_the_numbers_are_the_same_with_any_number_of_workers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Linear(6, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3)
        x = torch.randn(4, 6)
    space = FaultSpace(torch.nn.Sequential(*layers).eval(), x, NeuronCrash(p=0.1))
    plain = monte_carlo(space, rel_width=0.03)
    assert plain.stopped == "relative width"
    for count in (1, 3):
        with Workers(count) as workers:
            assert monte_carlo(space, rel_width=0.03, executor=workers).estimates == plain.estimates
