"""From no paired tokens to 10,000: do matched features help when least squares has few tokens?

Both models have plenty of text, but different text: half of the fit split is A's, the other half B's. Maps are fitted
on this unpaired text with and without features, and then serve as the prior of a ridge on n paired tokens. One JSON
line per seed and direction.

Without features, a context (the last three ids) that occurs in both halves takes the place of a pair: A's mean stream
over its occurrences is paired with B's. Least squares on such means needs no paired token (two-sample instrumental
variables, Angrist & Krueger 1992). With features, codes are averaged in the same way, features are matched by the
correlation of these profiles, and the matched directions, the permutation and the cross-code are fitted as in the main
job. `+look-ups` fits either to the residual of B's look-ups, which are fitted on B's own text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from _pair import Pair, prepare, print_lines, row
from torch import Tensor

from matching.assignment import assign
from matching.null import draw_columns
from matching.types import Alternatives, Candidates
from stitch.activations.paired import Paired
from stitch.features.codes import sparse_codes
from stitch.modeling.modeling_translation import ngram_keys
from stitch.regression.moments import Moments, Variable, accumulate
from stitch.regression.ridge import Ridge, ridge
from stitch.translation import cross_code, matched
from stitch.translation.fit import from_ridge
from stitch.translation.groups import needed
from stitch.translation.inputs import Input, Lift, reach, streams
from stitch.translation.rows import FREE, LOOK_UPS
from stitch.translation.types import Codes, Term, Translation

PAIRS = (100, 300, 1_000, 3_000, 10_000)
LEAST = 4  # occurrences of a context in each half, at least
TOP = 16  # partners kept per feature, as in `matching.candidates`
CHUNK = 2048
NULLS = ("exemplars", "rbf")  # lifts that the SAE's codes are compared with


@dataclass(frozen=True, eq=False)
class Matched:
    """An input: the prediction of B's stream by matched features, one column per dimension of B."""

    site: int
    translation: Translation

    @property
    def _parts(self) -> tuple[Codes, Tensor]:
        (term,) = self.translation.terms
        assert isinstance(term.input, Codes)
        return term.input, term.matrix

    def columns(self, tokens) -> Variable:
        codes, weight = self._parts
        return torch.from_numpy(sparse_codes(codes.dictionary, tokens.streams[self.site, 0]) @ weight.numpy())

    def term(self, weight: Tensor) -> Term:
        codes, own = self._parts
        return Term(codes, (own.double() @ weight).float())


@dataclass(frozen=True)
class Means:
    """Columns averaged over the occurrences of each context: A's over its half of the text, B's over the other."""

    keys: Tensor
    columns: dict[str, Tensor]
    weight: Tensor  # of a context: the harmonic mean of its two counts

    def moments(self, pairs, part: Tensor) -> Moments:
        weight = self.weight[part]
        columns = {name: self.columns[name][part].double() for name in {name for pair in pairs for name in pair}}
        weighted = {name: value * weight[:, None] for name, value in columns.items()}
        return Moments(
            int(weight.sum()),
            {name: value.sum(0) * int(weight.sum()) / weight.sum() for name, value in weighted.items()},
            {name: (weighted[name] * value).sum(0) for name, value in columns.items()},
            {(first, second): weighted[first].T @ columns[second] for first, second in pairs},
        )


def rows_of(paired: Paired, windows: Tensor) -> Paired:
    """Keeps only these windows of the text."""
    chosen = torch.zeros(len(paired.keep), dtype=torch.bool)
    chosen[windows] = True
    return replace(paired, keep=paired.keep & chosen[:, None])


def variables(paired: Paired, inputs: Mapping[str, Input], names):
    """Tokens with the columns of the named inputs and of the target."""
    read = {name: inputs[name] for name in names}
    plain = [found for found in read.values() if not isinstance(found, Matched)]
    wanted = sorted({*streams(plain), *((found.site, 0) for found in read.values() if isinstance(found, Matched))})
    for tokens in paired.with_history(wanted, max(2, reach(plain)), CHUNK):
        found = {name: given.columns(tokens) for name, given in read.items()}
        yield tokens, {**found, "target": tokens.target}


def sums_by_context(rows, keys: Tensor, vocabulary: int) -> tuple[dict[str, Tensor], Tensor]:
    """Sums of columns and counts of tokens per context. `rows` are tokens with their columns."""
    sums: dict[str, np.ndarray] = {}
    counts = torch.zeros(len(keys), dtype=torch.float64)
    for tokens, found in rows:
        place, known = places(tokens.ids, keys, vocabulary)
        counts.index_add_(0, place[known], torch.ones(int(known.sum()), dtype=torch.float64))
        chosen = np.flatnonzero(known.numpy())
        select = sp.csr_array(
            (np.ones(len(chosen), np.float32), (place[known].numpy(), chosen)), (len(keys), len(known))
        )
        for name, value in found.items():
            added = select @ (value.float().numpy() if isinstance(value, Tensor) else value)
            added = added.toarray() if sp.issparse(added) else added
            sums[name] = added if name not in sums else sums[name] + added
    return {name: torch.from_numpy(value) for name, value in sums.items()}, counts


def places(ids: Tensor, keys: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    key = ngram_keys([ids[:, back] for back in range(3)], vocabulary)
    place = torch.searchsorted(keys, key).clamp_max(len(keys) - 1)
    return place, (keys[place] == key) & (ids[:, :3] >= 0).all(1)


def common_contexts(paired: Paired, halves: tuple[Tensor, Tensor], vocabulary: int) -> Tensor:
    found = []
    for half in halves:
        ids = paired.a.windows.ids[half].long()
        keys = ngram_keys([ids[:, 2:], ids[:, 1:-1], ids[:, :-2]], vocabulary).flatten()
        values, counts = keys.unique(return_counts=True)
        found.append(values[counts >= LEAST])
    return found[0][torch.isin(found[0], found[1])]


def means(
    pair: Pair, fit: Paired, halves: tuple[Tensor, Tensor], inputs: dict[str, Input], source: list[str], known: Ridge
) -> Means:
    """A's streams and codes from the first half; from the second half B's codes, its stream, and the residual of the
    `known` look-ups.
    """
    vocabulary = pair.b.config.vocab_size
    keys = common_contexts(fit, halves, vocabulary)

    def of_b():
        for tokens, found in variables(rows_of(fit, halves[1]), inputs, list(known.weights)):
            explained = sum(
                (found[name].float() @ weight.float() for name, weight in known.weights.items()), known.bias
            )
            found |= {"left": tokens.target - explained, "codes-b": sparse_codes(pair.saes.b, tokens.target)}
            # a context has no position
            yield (tokens, {name: value for name, value in found.items() if name != "position"})

    of_a, count_a = sums_by_context(variables(rows_of(fit, halves[0]), inputs, source), keys, vocabulary)
    own, count_b = sums_by_context(of_b(), keys, vocabulary)
    kept = (count_a >= LEAST) & (count_b >= LEAST)
    columns = {name: of_a[name][kept] / count_a[kept, None].float() for name in source}
    columns |= {name: value[kept] / count_b[kept, None].float() for name, value in own.items()}
    weight = count_a * count_b / (count_a + count_b)
    return Means(keys[kept], columns, weight[kept])


def added(first: Ridge, second: Ridge) -> Ridge:
    """The sum of both maps."""
    weights = {**first.weights}
    for name, weight in second.weights.items():
        weights[name] = weights[name] + weight if name in weights else weight
    return Ridge(weights, first.bias + second.bias, second.strength, second.unexplained)


def match_profiles(found: Means, pair: Pair, generator: np.random.Generator, shuffle: bool):
    """One-to-one pairs and the candidate graph, by the weighted correlation of the mean codes. `shuffle` permutes
    the contexts of B.
    """
    weight = found.weight / found.weight.sum()
    a, b = found.columns["codes"].double(), found.columns["codes-b"].double()
    if shuffle:
        b = b[torch.from_numpy(generator.permutation(len(b)))]
    mean_a, mean_b = weight @ a, weight @ b
    second = (weight[:, None] * a).T @ b
    deviation_a, deviation_b = (
        ((weight @ value.square()) - mean.square()).clamp_min(0).sqrt() for value, mean in ((a, mean_a), (b, mean_b))
    )
    live_a, live_b = deviation_a > 1e-6 * deviation_a.max(), deviation_b > 1e-6 * deviation_b.max()
    correlation = (second - torch.outer(mean_a, mean_b)) / torch.outer(deviation_a, deviation_b).clamp_min(1e-30)
    correlation[~live_a] = -torch.inf
    correlation[:, ~live_b] = -torch.inf
    near = torch.zeros_like(correlation, dtype=torch.bool)
    near.scatter_(1, correlation.topk(TOP, 1).indices, True)
    near.scatter_(0, correlation.topk(TOP, 0).indices, True)
    rows, cols = (near & correlation.isfinite()).nonzero(as_tuple=True)
    drawn = draw_columns(len(mean_a), np.flatnonzero(live_b.numpy()), TOP, generator)
    scores = correlation.gather(1, torch.from_numpy(drawn)).numpy()
    graph = Candidates(
        shape=(len(mean_a), len(mean_b)), rows=rows.numpy(), cols=cols.numpy(),
        correlation=correlation[rows, cols].numpy(), co_moment=second[rows, cols].numpy(),
        alternatives=Alternatives(drawn, scores),
    )  # fmt: skip
    pairs = assign(graph)
    left, right = torch.from_numpy(pairs.rows), torch.from_numpy(pairs.cols)
    edges = matched.Matched(
        left, right, torch.ones(len(left), dtype=torch.float64), correlation[left, right], second[left, right], mean_a,
        weight @ a.square(),
    )  # fmt: skip
    return edges, graph, deviation_b


def run(direction: str, seed: int, tokens: int, held_out: int, work: Path) -> dict:
    pair = prepare(direction, seed=seed, tokens=tokens, held_out=held_out, work=work)
    fit, site = pair.paired["fit"], pair.paired["fit"].site_a
    inputs: dict = pair.inputs
    order = torch.randperm(len(fit.keep), generator=torch.Generator().manual_seed(seed))
    pool = -(-2 * PAIRS[-1] // fit.keep.shape[1])  # windows from which pairs are drawn
    rest = (len(order) - pool) // 2
    halves = order[pool : pool + rest], order[pool + rest : pool + 2 * rest]
    free = [name for name in FREE if name in inputs]
    tables = [name for name in free if name in LOOK_UPS]
    timeless = [name for name in free if name != "position"]
    source = ["x", *(name for name in free if name not in LOOK_UPS), "codes", *NULLS]

    rows: dict[str, Translation] = {}
    ridges: dict[str, Ridge] = {}

    def add(name: str, solved: Ridge) -> None:
        ridges[name] = solved
        rows[name] = from_ridge(name, solved, inputs)

    # B's look-ups need only B's text.
    part = halves[1][len(halves[1]) // 5 :], halves[1][: len(halves[1]) // 5]
    both = [accumulate((v for _, v in variables(rows_of(fit, w), inputs, tables)), needed(tables)) for w in part]
    known = ridge(*both, tuple(tables))
    add("0:look-ups", known)

    # No pairs, no features: contexts take the place of pairs.
    found = means(pair, fit, halves, inputs, source, known)
    some = torch.rand(len(found.keys), generator=torch.Generator().manual_seed(seed)) < 0.8

    def on_means(names: list[str], columns: dict[str, Tensor] = found.columns) -> Ridge:
        given, pairs = replace(found, columns=columns), needed(names)
        apart = next((name for name in names if isinstance(inputs[name], Lift)), None)
        return ridge(given.moments(pairs, some), given.moments(pairs, ~some), tuple(names), apart=apart)

    left = {**found.columns, "target": found.columns["left"]}
    mixed = torch.randperm(len(found.keys), generator=torch.Generator().manual_seed(seed))
    add("0:means", on_means(["x"]))
    add("0:shuffled-means", on_means(["x"], {**found.columns, "target": found.columns["target"][mixed]}))
    add("0:means+look-ups", added(known, on_means(["x", *(name for name in timeless if name in LOOK_UPS)], left)))
    add("0:means+free", added(known, on_means(["x", *timeless], left)))
    for lift in ("codes", *NULLS):
        add(f"0:means+free, {lift}", added(known, on_means([lift, "x", *timeless], left)))
    # No pairs, matched features.
    generator = np.random.default_rng(seed)
    for prefix, shuffle in (("0:matched", False), ("0:shuffled-matched", True)):
        edges, graph, deviation_b = match_profiles(found, pair, generator, shuffle)
        mean = (found.weight @ found.columns["target"].double()) / found.weight.sum()
        through = matched.permutation("permutation", edges, pair.saes.a, pair.saes.b, site, mean)
        rows[f"{prefix} permutation"] = through
        pairs = needed(["codes", "x"])
        if not shuffle:
            fitted, held = found.moments(pairs, some), found.moments(pairs, ~some)
            rows[f"{prefix} directions"] = matched.directions("d", edges, pair.saes.a, pair.saes.b, site, fitted)
            crossed = cross_code.cross_code(graph, pair.saes.b, deviation_b, fitted, held)
            through = cross_code.translation("cross-code", crossed, pair.saes.a, pair.saes.b, site, fitted)
            rows[f"{prefix} cross-code"] = through
        key = f"through{'-shuffled' if shuffle else ''}"
        inputs[key] = Matched(site, through)
        left[key] = found.columns["codes"] @ through.terms[0].matrix
        add(f"{prefix}+look-ups", added(known, on_means([key, *(name for name in timeless if name in LOOK_UPS)], left)))

    # n paired tokens, with a map fitted on unpaired text as the prior of ridge.
    wide = ["x", *free]
    for n in PAIRS:
        windows = -(-n // fit.keep.shape[1])
        part = order[:windows], order[windows : windows + max(1, windows // 4)]
        names = [*wide, "codes", *NULLS, "through", "through-shuffled"]
        sets = {
            "pairs alone": (wide, None),
            "look-ups prior": (wide, "0:look-ups"),
            "means prior": (wide, "0:means+free"),
            "matched prior": (["through", *wide], "0:matched+look-ups"),
            "shuffled-matched prior": (["through-shuffled", *wide], "0:shuffled-matched+look-ups"),
            **{f"means prior, {lift}": ([lift, *wide], f"0:means+free, {lift}") for lift in ("codes", *NULLS)},
        }
        pairs = set().union(*(needed(used) for used, _ in sets.values()), needed(["x"]))
        both = [accumulate((v for _, v in variables(rows_of(fit, w), inputs, names)), pairs) for w in part]
        add(f"{n}:affine", ridge(*both, ("x",)))
        for name, (used, prior) in sets.items():
            before = ridges[prior].weights if prior else None
            add(f"{n}:{name}", ridge(*both, tuple(used), prior=before))

    scores = pair.scores(rows)
    against = [
        ("0:matched+look-ups", "0:look-ups"), ("0:means+look-ups", "0:look-ups"), ("0:matched+look-ups", "0:means+look-ups"),
        ("0:means+free, codes", "0:means+free"), *(("0:means+free, codes", f"0:means+free, {null}") for null in NULLS),
    ]  # fmt: skip
    for n in PAIRS:
        against += [
            (f"{n}:matched prior", f"{n}:look-ups prior"), (f"{n}:matched prior", f"{n}:means prior"),
            (f"{n}:means prior, codes", f"{n}:means prior"),
            *((f"{n}:means prior, codes", f"{n}:means prior, {null}") for null in NULLS),
            (f"{n}:means prior", f"{n}:pairs alone"),
        ]  # fmt: skip
    return {
        "benchmark": "few_pairs", "direction": direction, "seed": seed, "tokens": fit.tokens, "contexts": len(found.keys),
        "results": [row(scores, name) for name in scores],
        "differences": [row(scores, name, other) for name, other in against],
    }  # fmt: skip


if __name__ == "__main__":
    print_lines(run, tokens=200_000)
