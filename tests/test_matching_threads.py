import numpy as np

from matching.threads import in_parts


def test_parts_cover_the_rows_and_cost_about_the_same():
    cost = np.random.default_rng(0).integers(0, 100, 1000)
    parts = in_parts(lambda start, stop: (start, stop), cost, 4)
    assert [stop for _, stop in parts] == [start for start, _ in parts[1:]] + [1000] and parts[0][0] == 0
    assert all(abs(cost[slice(*part)].sum() - cost.sum() / 4) < 200 for part in parts)
    one_row = np.zeros(10, int)
    one_row[3] = 10**6
    assert sum(stop - start for start, stop in in_parts(lambda *part: part, one_row, 4)) == 10
