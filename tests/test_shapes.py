"""Shapes in signatures are checked while tests run: of functions, methods and dataclasses."""

import pytest
import torch
from jaxtyping import TypeCheckError

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


def test_code_without_shapes_is_not_wrapped():
    assert not hasattr(Moments.stored, "__wrapped__") and hasattr(Moments.product_times, "__wrapped__")
