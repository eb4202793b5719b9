"""Tasks on a Ray cluster: an existing one by its address, or one of this machine's cores (extra `ray`).

The machines of a cluster must see the footage, the data set folder and the working folder under the same paths (a
worker goes to the working folder, so that relative paths mean what they mean here), and have this project installed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import cv2

from xdyna.config.data import DataError
from xdyna.core.install import install_xdyna
from xdyna.preprocess.engines import RETRIES, Failure, Result, Task, available_cores, died, failure


class RayEngine:
    """Tasks on a Ray cluster.

    Args:
        address: of a cluster ("auto": the one this machine belongs to, "ray://HOST:10001"); None: a cluster of this
            machine's cores is started, and ended afterwards.
        workers: tasks at a time; None: as many as the cluster has cores.
        retries: how often a task is begun again whose worker or machine died.

    Raises:
        DataError: ray is not installed, or no workers.
    """

    def __init__(self, address: str | None = None, *, workers: int | None = None, retries: int = RETRIES) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise DataError(f"the engine 'ray' needs the package ray; run: {install_xdyna('ray')}") from error
        if (workers is not None and workers < 1) or retries < 0:
            raise DataError(f"workers and retries: got {workers} and {retries}, expected 1 and 0 or more")
        self._ray: Any = ray
        self.address, self.workers, self.retries = address, workers, retries

    def run(
        self, tasks: Sequence[Task], work: Callable[[Task], Result]
    ) -> Generator[tuple[int, Result | Failure], None, None]:
        """See `Engine.run`.

        Raises:
            DataError: no cluster at the address.
        """
        ray = self._ray
        ours = not ray.is_initialized()
        if ours:
            self._connect()
        try:
            places = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            task = ray.remote(num_cpus=1, max_retries=self.retries)(_call)
            # The function is stored once; no more tasks are handed over than can run, and the next ones wait here.
            shared, queue = ray.put((work, os.getcwd())), deque(range(len(tasks)))
            running: dict[Any, int] = {}
            while queue or running:
                while queue and len(running) < places:
                    number = queue.popleft()
                    running[task.remote(shared, tasks[number])] = number
                done, _ = ray.wait(list(running), num_returns=1)
                yield running.pop(done[0]), self._result(done[0])
        finally:
            if ours:
                ray.shutdown()

    def _connect(self) -> None:
        cores = None if self.address else self.workers or available_cores()
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns about a coming change
        terminate = signal.getsignal(signal.SIGTERM)
        try:
            _check_address(self.address)
            self._ray.init(
                address=self.address or "local",
                num_cpus=cores,
                include_dashboard=None if self.address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"no Ray cluster at '{self.address}' ({error}); start one with 'ray start --head', or leave the "
                f"address out for one of this machine"
            ) from error
        finally:
            signal.signal(signal.SIGTERM, terminate)  # ray sets its own, which ends a program without cleaning up

    def _result(self, reference: Any) -> Any:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except (exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.OutOfMemoryError):
            return died(self.retries + 1)
        except exceptions.RayTaskError as error:
            return failure(error.cause or error, str(error))  # its text is the worker's trace


def _check_address(address: str | None) -> None:
    """Refuse an address where nobody listens: ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _call(shared: tuple[Callable[[Any], Any], str], task: Any) -> Any:
    """What runs on the cluster, on one core: the function, in the folder where the program was started."""
    work, folder = shared
    cv2.setNumThreads(1)
    try:
        os.chdir(folder)
    except OSError as error:
        raise DataError(
            f"a worker on {socket.gethostname()} does not see the working folder '{folder}' ({error.strerror}); start "
            f"the program in a folder that all machines share"
        ) from error
    return work(task)
