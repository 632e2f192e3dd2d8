"""Runs independent tasks on the workers of a Ray cluster (extra `cluster`), and repeats them when a worker dies."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stitch.errors import StitchError, UsageError, require_extra
from stitch.progress import Progress

RETRIES = 3  # of a task whose worker dies


@dataclass(frozen=True)
class Cluster:
    """A connection to `workers` CPU cores, or GPUs if `on_gpu`. A task uses one of them."""

    workers: int
    on_gpu: bool

    def run(
        self, task: Callable[..., Any], items: Sequence[tuple], progress: Progress | None = None, what: str = "tasks"
    ) -> list[Any]:
        """`task(*item)` for every item, in any order and on any worker. Returns the results in the order of the items.

        A task is repeated on another worker when its worker dies. The exception of the first task that fails is raised here.
        Raises: StitchError when a task's workers die too often.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        remote: Any = ray.remote(num_cpus=1, num_gpus=1 if self.on_gpu else 0, max_retries=RETRIES)(task)
        started = [remote.remote(*item) for item in items]
        left = list(started)
        try:
            while left:
                done, left = ray.wait(left)
                ray.get(done)
                if progress:
                    progress(what, len(started) - len(left), len(started))
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise StitchError(f"a task's worker died {RETRIES + 1} times: {str(error).splitlines()[0]}") from None
        finally:
            for unfinished in left:
                ray.cancel(unfinished)
        return ray.get(started)


@contextmanager
def connected(address: str, *, on_gpu: bool = False) -> Iterator[Cluster]:
    """A connection to the cluster at `address`: host:port, "auto" for this machine's cluster, or "local" for its cores.

    Raises: UsageError when there is no such cluster, or with `on_gpu` when it has no GPU, or when Ray is not installed.
    """
    require_extra("cluster", "`cluster`")
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    is_new = not ray.is_initialized()
    if is_new:
        options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        try:
            with _sigterm_as_it_was():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"cluster must be the address of a Ray cluster, auto or local; got {address!r}: {reason}"
            ) from None
    try:
        resource = "GPU" if on_gpu else "CPU"
        workers = int(ray.cluster_resources().get(resource, 0))
        if not workers:
            raise UsageError(f"cluster must have a {resource}; {address!r} has none: choose another `device`.")
        yield Cluster(workers, on_gpu)
    finally:
        if is_new:
            ray.shutdown()


@contextmanager
def _sigterm_as_it_was() -> Iterator[None]:
    """Undoes that Ray takes SIGTERM for itself, after which the process would end without a word on how to go on."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
