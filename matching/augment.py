"""The best one-to-one matching on a sparse graph, and prices that prove it optimal: shortest augmenting paths, compiled.

Rows are matched one after another. If a row's best column is taken, Dijkstra's algorithm finds the cheapest augmenting path, a
chain of rows that each move to another column; the cost of a move is the gain that the row loses. The path ends at a free column,
or at a row that becomes unmatched and loses its whole gain. Only columns on the path are visited, a handful for most rows.

Source: Jonker & Volgenant 1987, Computing 38 (the augmentation phase), with a private dummy column for every row.
"""

import heapq
from typing import no_type_check

import numpy as np
from jaxtyping import Float64, Int64

from matching.jit import jit

NONE = -1


def best_matching(
    shape: tuple[int, int],
    rows: Int64[np.ndarray, " edges"],
    cols: Int64[np.ndarray, " edges"],
    gain: Float64[np.ndarray, " edges"],
) -> tuple[Int64[np.ndarray, " rows"], Float64[np.ndarray, " cols"]]:
    """The column of every row (−1: none) in the matching that maximises the sum of positive gains, and prices of the columns.

    Edges must be in order of (row, col). At these prices no row gains more from another column on the graph, and unmatched
    columns have price 0. Ties go to the column found first, so that the result is a function of the edges alone.
    """
    starts = np.searchsorted(rows, np.arange(shape[0] + 1))
    return _augment(starts, cols, gain, shape[1])


@no_type_check  # compiled code has types of its own
@jit()
def _augment(starts, cols, gain, width):
    rows = len(starts) - 1
    col_of = np.full(rows, NONE, np.int64)
    gain_of = np.zeros(rows)  # gain of the edge by which a row is matched
    row_of = np.full(width, NONE, np.int64)
    price = np.zeros(width)
    loss = np.full(width, np.inf)  # of the cheapest path by which the current row gets a column
    came_from = np.full(width, NONE, np.int64)  # the row that would move to the column
    edge_from = np.full(width, NONE, np.int64)
    for source in range(rows):
        heap = [(0.0, NONE)]
        heap.clear()
        touched = [NONE]
        touched.clear()
        # Gain of `row` at current prices: the source's from its best column, another row's from its own column.
        own = 0.0
        for edge in range(starts[source], starts[source + 1]):
            own = max(own, gain[edge] - price[cols[edge]])
        row, so_far = source, 0.0
        last_row, last_loss, last_col = source, own, NONE  # the best end of a path so far: the source stays unmatched
        while True:
            # Visit every column to which `row` could move, giving up its gain `own`.
            for edge in range(starts[row], starts[row + 1]):
                col = cols[edge]
                # At least `so_far` in spite of rounding, so that a column that was settled is not reached again.
                found = max(so_far, so_far + own - (gain[edge] - price[col]))
                if found < loss[col] and found < last_loss:
                    if loss[col] == np.inf:
                        touched.append(col)
                    loss[col], came_from[col], edge_from[col] = found, row, edge
                    heapq.heappush(heap, (found, col))
            col = NONE
            while len(heap):
                found, nearest = heapq.heappop(heap)
                if found == loss[nearest]:  # otherwise a cheaper path to it was found later
                    col = nearest
                    break
            if col == NONE or loss[col] >= last_loss:
                break
            so_far, row = loss[col], row_of[col]
            if row == NONE:
                last_row, last_loss, last_col = NONE, so_far, col
                break
            own = gain_of[row] - price[col]
            if so_far + own < last_loss:
                last_row, last_loss, last_col = row, so_far + own, col
        for col in touched:
            if loss[col] < last_loss:
                price[col] += last_loss - loss[col]
        # Every row on the path moves to its new column, from the end of the path to its start.
        if last_row != NONE:
            col_of[last_row], gain_of[last_row] = NONE, 0.0
        col = last_col
        while col != NONE:
            row = came_from[col]
            before = col_of[row]
            col_of[row], gain_of[row], row_of[col] = col, gain[edge_from[col]], row
            if row == source:
                break
            col = before
        for col in touched:
            loss[col] = np.inf
    return col_of, price
