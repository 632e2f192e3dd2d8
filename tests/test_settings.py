"""Settings from Python, where any value may come."""

import pytest

from stitch.config import Settings
from stitch.errors import UsageError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer", 3.0),
        ("layer", "3"),
        ("layer", None),
        ("layer", True),
        ("layer_b", 2.0),
        ("tokens", 1e4),
        ("seed", 0.5),
    ],
)
def test_a_number_of_another_type_is_refused_by_name(name: str, value):
    with pytest.raises(UsageError, match=f"^{name} must be a whole number; got {value!r}"):
        Settings(**{"model_a": "a", "model_b": "b", "layer": 1, name: value})


def test_defaults_and_auto_are_accepted():
    assert Settings(model_a="a", model_b="b", layer=1, layer_b="auto", tokens=None).layer_b == "auto"
