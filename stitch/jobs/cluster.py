"""Independent tasks on the workers of a Ray cluster (extra `cluster`). What to run is the caller's; failures are handled here."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stitch.errors import StitchError, UsageError
from stitch.progress import Progress

RETRIES = 3  # of a task whose worker died


@dataclass(frozen=True)
class Cluster:
    """A connection to `workers` CPU cores, or GPUs; a task has one of them."""

    workers: int
    on_gpu: bool

    def run(
        self, task: Callable[..., Any], items: Sequence[tuple], progress: Progress | None = None, what: str = "tasks"
    ) -> list[Any]:
        """`task(*item)` for every item, in any order and place; the results in the order of the items.

        A task is run again elsewhere when its worker dies. What it raises is raised here, of the first that fails.
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
            raise StitchError(
                f"workers must stay up; one died {RETRIES + 1} times: {str(error).splitlines()[0]}"
            ) from None
        finally:
            for one in left:
                ray.cancel(one)
        return ray.get(started)


@contextmanager
def connected(address: str, *, on_gpu: bool = False) -> Iterator[Cluster]:
    """The cluster at `address`: host:port, `auto` for the one that this machine belongs to, `local` for one of its own cores.

    Raises UsageError where there is none, or none with a GPU when `on_gpu`; StitchError when Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise StitchError("--cluster needs Ray: pip install 'stitch-lm[cluster]'.") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ours = not ray.is_initialized()
    if ours:
        of_its_own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **of_its_own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"--cluster must be the address of a Ray cluster, auto or local; got {address!r}: {reason}"
            ) from None
    try:
        resource = "GPU" if on_gpu else "CPU"
        workers = int(ray.cluster_resources().get(resource, 0))
        if not workers:
            raise UsageError(f"--cluster must have a {resource}; {address!r} has none: use another --device.")
        yield Cluster(workers, on_gpu)
    finally:
        if ours:
            ray.shutdown()
