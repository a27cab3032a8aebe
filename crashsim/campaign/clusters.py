"""Clusters as executors: Dask, Ray and SLURM, each an extra that is imported when it is used.

MPI needs nothing of crashsim: ``mpi4py.futures.MPIPoolExecutor`` is an executor as it stands.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from crashsim.errors import ArgumentError, CrashsimError, MissingExtraError

_CONNECT = 10  # seconds for a scheduler to answer
_LOOK = 0.5  # seconds between two looks at the jobs of a SLURM cluster


class DaskExecutor(Executor):
    """Workers of a Dask cluster.

    Args:
        client: a ``distributed.Client``, or the address of a scheduler (``tcp://host:8786``).

    Raises:
        MissingExtraError: the package ``distributed`` is not installed.
        CrashsimError: there is no scheduler at the address.
    """

    def __init__(self, client: Any) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise _missing("dask", "a Dask cluster") from error
        self._is_ours = isinstance(client, str)
        if self._is_ours:
            try:
                client = Client(client, set_as_default=False, timeout=_CONNECT)
            except (OSError, ValueError) as error:
                raise CrashsimError(
                    f"dask={client!r}: no scheduler answers there ({error}); start one with `dask "
                    "scheduler`, and give the address that it prints"
                ) from error
        self._client, self._executor = client, client.get_executor(pure=False)

    @property
    def count(self) -> int:
        """How many blocks the workers that are there run at once."""
        return sum(self._client.nthreads().values())

    def share(self, content: bytes) -> Any:
        """Sends what several pieces of work need to each worker that asks for it, once."""
        # Not scattered: data that are results the scheduler makes anew where their worker died.
        return self._client.submit(bytes, content, pure=False)

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        found: Future[Any] = self._executor.submit(work, *args, **options)
        return found

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._executor.shutdown(wait and not cancel_futures)
        if self._is_ours:
            self._client.close()


class RayExecutor(Executor):
    """Workers of a Ray cluster.

    Args:
        address: of the cluster (``auto``, ``ray://host:10001``); None: the one that runs already,
            or processes of this machine.
        options: of ``ray.remote``, such as ``num_cpus`` and ``max_retries``.

    Raises:
        MissingExtraError: the package ``ray`` is not installed.
        CrashsimError: there is no cluster at the address.
    """

    def __init__(self, address: str | None = None, **options: Any) -> None:
        try:
            import ray
        except ImportError as error:
            raise _missing("ray", "a Ray cluster") from error
        self._ray, self._options = ray, options
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            try:
                ray.init(address=address, log_to_driver=False)
            except (OSError, ValueError) as error:
                raise CrashsimError(f"ray={address!r}: no cluster there ({error})") from error

    @property
    def count(self) -> int:
        """How many processors the cluster has."""
        return int(self._ray.cluster_resources().get("CPU", 1))

    def share(self, content: bytes) -> Any:
        """Puts what several pieces of work need where every worker finds it."""
        return self._ray.put(content)

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        remote = (
            self._ray.remote(**self._options)(work) if self._options else self._ray.remote(work)
        )
        found: Future[Any] = remote.remote(*args, **options).future()
        return found

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._is_ours:
            self._ray.shutdown()


class SlurmExecutor(Executor):
    """Jobs of a SLURM cluster, one for each block, through submitit.

    Args:
        folder: for the jobs' scripts and logs; on a disk that all machines share.
        parameters: of submitit's ``update_parameters``: ``slurm_partition``, ``timeout_min``,
            ``mem_gb``, ``cpus_per_task``; names without a prefix that submitit does not know get
            ``slurm_``.
        cluster: ``slurm``, or ``local``: processes of this machine, to try it out.

    Raises:
        MissingExtraError: the package ``submitit`` is not installed.
        ArgumentError: a parameter that submitit does not take.
        CrashsimError: there is no SLURM here.
    """

    def __init__(
        self,
        folder: str | Path = "slurm",
        parameters: Mapping[str, Any] | None = None,
        cluster: str = "slurm",
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise _missing("slurm", "a SLURM cluster") from error
        try:
            self._jobs = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
            given = {_as_submitit(name): value for name, value in (parameters or {}).items()}
            self._jobs.update_parameters(**given)
        except (NameError, TypeError, ValueError) as error:
            raise ArgumentError(f"slurm: submitit does not take this ({error})") from error
        except RuntimeError as error:
            raise CrashsimError(f"slurm: no SLURM answers here ({error})") from error
        self._folder = Path(folder)
        self._lock = threading.Lock()
        self._flying: dict[Future[Any], Any] = {}
        self._watcher: threading.Thread | None = None

    def share(self, content: bytes) -> Path:
        """Puts what several jobs need into a file beside theirs."""
        file = (self._folder / f"task-{time.time_ns()}.pkl").resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        job = self._jobs.submit(work, *args, **options)
        with self._lock:
            self._flying[future] = job
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, daemon=True)
                self._watcher.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            flying, watcher = dict(self._flying), self._watcher
        if cancel_futures:
            for future, job in flying.items():
                future.cancel()
                with suppress(Exception):  # it may be over
                    job.cancel()
        if wait and watcher is not None:
            watcher.join()

    def _watch(self) -> None:
        """Hands on what is done, until nothing is under way."""
        while True:
            with self._lock:
                flying = dict(self._flying)
                if not flying:
                    self._watcher = None
                    return
            for future, job in flying.items():
                if future.cancelled():
                    with suppress(Exception):
                        job.cancel()
                elif job.done():
                    _hand_on(future, job)
                else:
                    continue
                with self._lock:
                    del self._flying[future]
            time.sleep(_LOOK)


def _hand_on(future: Future[Any], job: Any) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(job.result())
    except BaseException as error:
        future.set_exception(error)


def _as_submitit(name: str) -> str:
    shared = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "tasks_per_node", "name")
    return name if name in shared or name.startswith(("slurm_", "local_")) else f"slurm_{name}"


def _missing(extra: str, what: str) -> MissingExtraError:
    return MissingExtraError(f"{extra}: {what} needs `pip install crashsim[{extra}]`")
