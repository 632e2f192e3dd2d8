"""A progress callback that remembers, and knows what it should have heard."""

import itertools
from collections.abc import Iterable


class Heard:
    """Records what stages report: by stage, in order, how much is done and of how much."""

    def __init__(self) -> None:
        self.stages: dict[str, list[tuple[int, int]]] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.stages.setdefault(stage, []).append((done, total))

    def runs(self, stage: str) -> list[list[tuple[int, int]]]:
        """What is heard of each time that the stage takes place: less done than before is another time."""
        runs: list[list[tuple[int, int]]] = []
        for done, total in self.stages.get(stage, []):
            if not runs or done < runs[-1][-1][0] or runs[-1][-1] == (total, total):
                runs.append([])
            runs[-1].append((done, total))
        return runs

    def require(self, stages: Iterable[str], between: int = 0) -> None:
        """Each stage takes place. Every time it begins with nothing done, goes one way and ends with all of it done, and is heard
        of at least so often in between."""
        for stage in stages:
            assert stage in self.stages, f"nothing is heard of {stage}, only of {list(self.stages)}"
            for run in self.runs(stage):
                done, totals = zip(*run, strict=True)
                assert done[0] == 0 and done[-1] == totals[-1], (stage, run)
                assert len(set(totals[:-1])) == 1 and totals[-1] <= totals[0], (stage, run)  # fewer where it ends early
                assert all(one <= other for one, other in itertools.pairwise(done)), (stage, run)
                assert len(run) - 2 >= between, (stage, run)

    @property
    def unfinished(self) -> set[str]:
        """Stages that were heard of and not of their end."""
        return {
            stage for stage, found in self.stages.items() if any(run[-1][0] < run[-1][1] for run in self.runs(stage))
        }
