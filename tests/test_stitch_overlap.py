import threading

import pytest

from stitch.activations.one_behind import one_behind


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


@pytest.mark.parametrize("bad", range(3))
def test_what_goes_wrong_is_heard_of(bad: int):
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
