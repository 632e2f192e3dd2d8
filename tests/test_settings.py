"""Settings from Python, where any value may come."""

import numpy as np
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


@pytest.mark.parametrize("name", ["k", "seed", "ngrams"])
def test_what_has_a_number_as_its_default_is_never_none(name: str):
    with pytest.raises(UsageError, match=f"^{name} must be a whole number; got None"):
        Settings(**{"model_a": "a", "model_b": "b", "layer": 1, name: None})


def test_defaults_auto_and_numbers_of_numpy_are_accepted():
    found = Settings(model_a="a", model_b="b", layer=np.int64(1), layer_b="auto", tokens=None)
    assert found.layer_b == "auto" and type(found.layer) is int and found.layer == 1
