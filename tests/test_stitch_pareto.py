"""The Pareto front and the rule for the best layer, on lists small enough to check by hand."""

from stitch.layers.choose import best_layer
from stitch.layers.pareto import best_within, front


def test_the_front_of_a_small_list():
    # (cost, loss):   kept       beaten by 0  beaten by 3  kept       kept        equal to 4, later
    points = [(1.0, 5.0), (1.0, 6.0), (3.0, 4.0), (2.0, 4.0), (4.0, 1.0), (4.0, 1.0), (9.0, 1.0), (5.0, 1.5)]
    assert front(points) == [0, 3, 4]
    assert front([(1.0, 2.0), (2.0, 1.9), (3.0, 1.5)], 0.2) == [0, 2]  # the second improves by less than the margin
    assert front([]) == [] and front([(2.0, 2.0)]) == [0]


def test_the_best_within_a_budget_has_the_lowest_loss_or_else_the_lowest_cost():
    points = [(9.0, 1.0), (4.0, 3.0), (5.0, 2.0), (5.0, 2.0), (3.0, 8.0)]
    assert best_within(points, 5.0) == 2
    assert best_within(points, 4.9) == 1
    assert best_within(points, 100.0) == 0
    assert best_within(points, 2.0) == 4


def test_the_best_layer_is_chosen_within_the_budget():
    flops = {1: 50.0, 2: 40.0, 3: 30.0, 4: 20.0}
    assert best_layer(flops, {1: 2.0, 2: 2.5, 3: 2.4, 4: 2.6}, 40.0) == 3
    assert best_layer(flops, {3: 2.4, 4: 2.4}, 30.0) == 4  # ties go to the cheaper layer
    assert best_layer(flops, {}, 10.0) == 4  # all cost too much, so nothing was scored
