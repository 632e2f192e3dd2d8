import threading

import numpy as np
import pytest

from matching.threads import in_parts, one_behind


def test_parts_cover_the_rows_and_cost_about_the_same():
    cost = np.random.default_rng(0).integers(0, 100, 1000)
    parts = in_parts(lambda start, stop: (start, stop), cost, 4)
    assert [stop for _, stop in parts] == [start for start, _ in parts[1:]] + [1000] and parts[0][0] == 0
    assert all(abs(cost[slice(*part)].sum() - cost.sum() / 4) < 200 for part in parts)
    one_row = np.zeros(10, int)
    one_row[3] = 10**6
    assert sum(stop - start for start, stop in in_parts(lambda *part: part, one_row, 4)) == 10


def test_an_item_is_worked_on_while_the_next_is_made_and_no_more_wait():
    made = [threading.Event() for _ in range(6)]
    events: list[str] = []

    def items():
        for number in range(5):
            events.append(f"made {number}")
            made[number].set()
            yield number
        made[5].set()

    def work(number: int) -> None:
        assert made[number + 1].wait(20)
        events.append(f"done {number}")

    one_behind(items(), work)
    assert events == [
        "made 0",
        "made 1",
        "done 0",
        "made 2",
        "done 1",
        "made 3",
        "done 2",
        "made 4",
        "done 3",
        "done 4",
    ]


def test_one_thread_does_one_after_the_other():
    events: list[str] = []
    one_behind((events.append(f"made {n}") or n for n in range(2)), lambda n: events.append(f"done {n}"), threads=1)
    assert events == ["made 0", "done 0", "made 1", "done 1"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bad", range(3))
def test_what_goes_wrong_is_heard_of(bad: int, threads: int):
    worked: list[int] = []

    def work(number: int) -> None:
        if number == bad:
            raise ValueError(f"work {number}")
        worked.append(number)

    with pytest.raises(ValueError, match=f"work {bad}"):
        one_behind(range(3), work, threads)
    assert worked == list(range(bad))

    def items():
        yield from range(bad)
        raise ValueError("no more")

    worked.clear()
    with pytest.raises(ValueError, match="no more"):
        one_behind(items(), worked.append, threads)
    assert worked == list(range(bad))
