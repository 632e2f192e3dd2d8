"""Shapes in signatures are checked while tests run: of functions, methods and dataclasses."""

import pytest
import torch
from jaxtyping import TypeCheckError

from shapes import ALWAYS, THEN_EVERY
from stitch.grafts.heads import attended
from stitch.regression.moments import Moments


def test_a_wrong_shape_is_refused_in_functions_methods_and_dataclasses():
    with pytest.raises(TypeCheckError, match="scores"):
        attended(torch.zeros(2, 3))
    matrix = torch.zeros(3, 3)
    moments = Moments(1, {"x": matrix[0]}, {"x": matrix[0]}, {("x", "x"): matrix})
    with pytest.raises(TypeCheckError, match="matrix"):
        moments.product_times("x", "x", matrix[0])
    with pytest.raises(TypeCheckError, match="sums"):
        Moments(1, {"x": matrix}, {"x": matrix[0]}, {("x", "x"): matrix})


def test_of_many_calls_the_first_and_some_of_the_rest_are_checked():
    for _ in range(ALWAYS):
        attended(torch.zeros(1, 2, 2))
    found = []
    for _ in range(2 * THEN_EVERY):
        try:
            attended(torch.zeros(2))
        except (TypeCheckError, RuntimeError) as error:
            found.append(type(error))
    assert found.count(TypeCheckError) == 2


def test_code_without_shapes_is_not_wrapped():
    assert not hasattr(Moments.stored, "__wrapped__") and hasattr(Moments.product_times, "__wrapped__")
