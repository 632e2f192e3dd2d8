import threading

import pytest

from stitch.activations.one_behind import one_behind


def test_an_item_is_processed_while_the_next_is_made_and_at_most_one_waits():
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


@pytest.mark.parametrize("bad", range(3))
def test_errors_of_the_work_and_of_the_items_are_raised(bad: int):
    worked: list[int] = []

    def work(number: int) -> None:
        if number == bad:
            raise ValueError(f"work {number}")
        worked.append(number)

    with pytest.raises(ValueError, match=f"work {bad}"):
        one_behind(range(3), work)
    assert worked == list(range(bad))

    def items():
        yield from range(bad)
        raise ValueError("no more")

    worked.clear()
    with pytest.raises(ValueError, match="no more"):
        one_behind(items(), worked.append)
    assert worked == list(range(bad))
