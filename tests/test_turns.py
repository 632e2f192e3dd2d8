"""Where time does not suffice for all tests, every file is the first one in some run."""

from types import SimpleNamespace

from turns import begun_elsewhere

ITEMS = [SimpleNamespace(path=file, name=name) for file, name in ("a1", "a2", "b1", "c1", "c2")]


def test_every_file_is_the_first_one_and_none_is_split():
    found = [" ".join(item.path + item.name for item in begun_elsewhere(ITEMS, number)) for number in range(4)]
    assert found == ["a1 a2 b1 c1 c2", "b1 c1 c2 a1 a2", "c1 c2 a1 a2 b1", "a1 a2 b1 c1 c2"]
    assert begun_elsewhere([], 3) == []
