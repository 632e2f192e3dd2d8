"""All compiled loops over correlations: one row of A with all features of B at a time, and what is kept of each row.

They are in one file because compiled code is cached on disk until its own file changes (`matching.jit`). A loop in another file
would continue to use an old version of the functions that it calls.
"""

from typing import no_type_check

import numpy as np

from matching.jit import jit

# Number of tokens whose codes are copied next to each other before they are multiplied. Reading each token's codes where they
# are stored costs one memory latency. Latencies of short copies overlap, those of long products do not: several times as fast.
GATHERED = 64

ALL = -1  # returned instead of a count


@no_type_check  # compiled code has types of its own
@jit(nogil=True)
def multiply(row, a, b, work):
    """Adds products of a row of A with all features of B to `products`; lists the nonzero ones in `met`, returns their number.

    For a row with so many products that visiting all features is cheaper than listing, nothing is listed and ALL is returned.
    `products` must be 0 before; `collect` resets it to 0.
    """
    products, met, numbers, values = work.products, work.met, work.numbers, work.values
    starts, lengths = np.empty(GATHERED, np.uint64), np.empty(GATHERED, np.uint64)
    count, entry, end = 0, a.starts[row], a.starts[row + 1]
    most = float(end - entry) * len(b.numbers) > float(len(products)) * len(b.starts)
    while entry < end:
        tokens = min(np.uint64(GATHERED), end - entry)
        for n in range(tokens):
            token = a.numbers[entry + n]
            starts[n] = b.starts[token]
            lengths[n] = b.starts[token + np.uint32(1)] - starts[n]
        gathered = np.uint64(0)
        for n in range(tokens):  # loops simple enough for the compiler to vectorise
            start, length, value = starts[n], lengths[n], np.float64(a.values[entry + n])
            for place in range(length):
                numbers[gathered + place] = b.numbers[start + place]
            for place in range(length):
                values[gathered + place] = value * np.float64(b.values[start + place])
            gathered += length
        if most:
            for place in range(gathered):
                products[numbers[place]] += values[place]
        else:
            for place in range(gathered):
                col = numbers[place]
                met[count] = col  # kept if the sum was 0: no unpredictable branch; a feature may be listed twice
                count += products[col] == 0.0
                products[col] += values[place]
        entry += tokens
    return ALL if most else count


@no_type_check
@jit(nogil=True)
def correlation(row, col, tokens, scales, work):
    """Correlation of a feature of B with the row that was multiplied last; features never active together have a sum of 0."""
    covariance = work.products[col] / tokens - scales.left_a[row] * scales.left_b[col]
    return min(1.0, max(-1.0, covariance * (scales.scale_a[row] * scales.scale_b[col])))


@no_type_check
@jit(nogil=True, error_model="numpy")
def collect(row, count, tokens, scales, work):
    """Lists features of B with a nonzero product in `met`, each once, and correlations in `found`; returns their number."""
    products, met, found = work.products, work.met, work.found
    left, scale = scales.left_a[row], scales.scale_a[row]
    kept = 0
    if count == ALL:
        for col in range(len(products)):  # a loop of its own, since the next one cannot be vectorised
            covariance = products[col] / tokens - left * scales.left_b[col]
            found[col] = min(1.0, max(-1.0, covariance * (scale * scales.scale_b[col])))
        for col in range(len(products)):
            met[kept], found[kept] = col, found[col]
            kept += products[col] != 0.0
            products[col] = 0.0
        return kept
    for position in range(count):
        col = met[position]
        covariance = products[col] / tokens - left * scales.left_b[col]
        met[kept] = col
        found[kept] = min(1.0, max(-1.0, covariance * (scale * scales.scale_b[col])))
        kept += products[col] != 0.0
        products[col] = 0.0
    return kept


@no_type_check
@jit(nogil=True)
def of_pairs(a, b, scales, work, rows, cols, pairs, found):
    """Correlations of `pairs`, indices into `rows` and `cols` in ascending order of the row."""
    tokens, count, last = len(b.starts) - 1, 0, -1
    for pair in pairs:
        row = rows[pair]
        if row != last:
            collect(last, count, tokens, scales, work)
            count, last = multiply(row, a, b, work), row
        found[pair] = correlation(row, cols[pair], tokens, scales, work)


@no_type_check
@jit(nogil=True)
def best_partners(a, b, scales, work, start, stop, best_cols, of_row, best_rows, of_col, drawn, drawn_correlation):
    """Fills in the best partners of every row and, among rows start to stop, of every column, in descending order of correlation;
    and the correlations of the randomly drawn pairs."""
    # The lowest correlation among a column's partners, of earlier calls too: contiguous, and enough to reject most pairs.
    least = of_col[:, -1].copy()
    tokens = len(b.starts) - 1
    for row in range(start, stop):
        count = multiply(row, a, b, work)
        for position in range(drawn.shape[1]):
            drawn_correlation[row, position] = correlation(row, drawn[row, position], tokens, scales, work)
        worst = of_row[row, -1]
        for position in range(collect(row, count, tokens, scales, work)):
            col, value = work.met[position], work.found[position]
            if value >= worst and value > 0.0:  # the first condition seldom holds, which makes the branch predictable
                _insert(best_cols[row], of_row[row], col, value)
                worst = of_row[row, -1]
            if value > least[col]:  # rows come in ascending order, so a tie must not replace a partner
                _insert(best_rows[col], of_col[col], row, value)
                least[col] = of_col[col, -1]


@no_type_check
@jit()
def merge_columns(best_rows, of_col, other_rows, of_other):
    """Merges the best partners of columns among later rows into those among earlier rows."""
    for col in range(len(best_rows)):
        for place in range(best_rows.shape[1]):
            if of_other[col, place] > of_col[col, -1]:
                _insert(best_rows[col], of_col[col], other_rows[col, place], of_other[col, place])


@no_type_check
@jit(nogil=True)
def _insert(numbers, values, number, value):
    """Inserts a value into a list of the largest ones, in descending order, ties in ascending order of their numbers."""
    place = len(values) - 1
    if value == values[place] and number > numbers[place]:
        return
    while place > 0 and (value > values[place - 1] or (value == values[place - 1] and number < numbers[place - 1])):
        values[place], numbers[place] = values[place - 1], numbers[place - 1]
        place -= 1
    values[place], numbers[place] = value, number


@no_type_check
@jit(nogil=True)
def best_gains(a, b, scales, work, cost, rows, best_known, cols, missed, correlation, best):
    """The best gain of each of `rows`, and the pairs whose gain exceeds `best_known`, in descending order of their gain."""
    tokens = len(b.starts) - 1
    for row in rows:
        best[row] = 0.0
        for position in range(collect(row, multiply(row, a, b, work), tokens, scales, work)):
            col, value = work.met[position], work.found[position]
            gain = value - cost[col]
            best[row] = max(best[row], gain)
            if gain > best_known[row] and gain > missed[row, -1]:
                place = cols.shape[1] - 1
                while place > 0 and gain > missed[row, place - 1]:
                    missed[row, place], cols[row, place] = missed[row, place - 1], cols[row, place - 1]
                    correlation[row, place] = correlation[row, place - 1]
                    place -= 1
                missed[row, place], cols[row, place], correlation[row, place] = gain, col, value
