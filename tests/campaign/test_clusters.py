"""Clusters on this machine: the same sums as here, and a clear word where one is missing."""

import os
import random
import signal
import sys
import time

import numpy as np
import pytest
import torch
from light_work import Thirds, die, die_unless, fail, twice

from crashsim import FaultSpace, NeuronCrash, Store, monte_carlo
from crashsim.campaign.clusters import DaskExecutor, RayExecutor, SlurmExecutor
from crashsim.campaign.tasks import fold
from crashsim.errors import ArgumentError, CrashsimError, MissingExtraError


def space():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Linear(6, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3)
        x = torch.randn(4, 6)
    return FaultSpace(torch.nn.Sequential(*layers).eval(), x, NeuronCrash(p=0.1))


def last(executor=None, store=None):
    return list(fold(Thirds(), range(30), executor, store=store))[-1].sums


@pytest.fixture(autouse=True)
def _their_random_numbers():
    """Clusters draw from Python's generator, each time that they wait for something."""
    state = random.getstate()
    yield
    random.setstate(state)


@pytest.fixture(scope="module")
def cluster():
    """A Dask cluster of processes."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            env={"PYTHONPATH": os.path.dirname(__file__)},
        ) as found,
        distributed.Client(found, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.filterwarnings("ignore")  # of Dask's own
def test_dask_gives_the_same_sums(cluster, tmp_path):
    with DaskExecutor(cluster) as executor:
        assert last(executor, Store(tmp_path)) == last()
        assert monte_carlo(space(), samples=3000, executor=executor).estimates == (
            monte_carlo(space(), samples=3000).estimates
        )
        with pytest.raises(ValueError, match="as asked"):
            executor.submit(fail).result()
    with DaskExecutor(cluster.scheduler.address) as executor:
        assert executor.submit(twice, 4).result() == 8


@pytest.mark.filterwarnings("ignore")
def test_a_worker_of_dask_that_dies_is_replaced(cluster, tmp_path):
    with DaskExecutor(cluster) as executor:
        assert executor.submit(die_unless, str(tmp_path / "died")).result() == "alive"
        works = fold(Thirds(seconds=0.05), range(30), executor)
        sums = next(works)
        os.kill(next(iter(cluster.run(os.getpid).values())), signal.SIGKILL)
        sums = list(works)[-1].sums
    assert sums == last()


@pytest.mark.filterwarnings("ignore")
def test_a_block_that_ends_workers_of_dask_is_given_up(cluster):
    class Poisoned(Thirds):
        def run(self, block):
            die(block)

    with (
        DaskExecutor(cluster) as executor,
        pytest.raises(CrashsimError, match="a worker ended before its work did"),
    ):
        list(fold(Poisoned(), range(2), executor))


def test_jobs_of_submitit_give_the_same_sums(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    with SlurmExecutor(tmp_path / "jobs", {"timeout_min": 5}, cluster="local") as executor:
        found = [at.sums for at in fold(Thirds(), range(3), executor, ahead=3)]
    assert found[-1] == list(fold(Thirds(), range(3)))[-1].sums
    with pytest.raises(ArgumentError, match="submitit does not take this"):
        SlurmExecutor(tmp_path, {"partitoin": "gpu"}, cluster="slurm_typo")


def test_ray_gives_the_same_sums(monkeypatch):
    pytest.importorskip("ray", reason="needs `pip install crashsim[ray]`: `make test-ray`")
    path = [os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    with RayExecutor(num_cpus=1) as executor:
        assert last(executor) == last()


@pytest.mark.parametrize(
    ("module", "made"),
    [("distributed", DaskExecutor), ("ray", RayExecutor), ("submitit", SlurmExecutor)],
)
def test_what_is_not_installed_says_how_to_install_it(monkeypatch, module, made):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install crashsim\["):
        made("x")


def test_waiting_for_a_scheduler_that_is_not_there_ends():
    pytest.importorskip("distributed")
    began = time.monotonic()
    with pytest.raises(CrashsimError, match="no scheduler answers there"):
        DaskExecutor("tcp://127.0.0.1:1")
    assert np.isfinite(time.monotonic() - began)
