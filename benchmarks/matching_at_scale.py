"""Time, memory and certified gap of the matching, by number of features. One JSON line per size.

Codes are synthetic: at most 32 active features of each model per token, with power-law firing rates. Three fifths of
B's active features are partners of A's; the rest are drawn at random. In `planted` codes every feature has one partner;
`mixed` codes are harder for the exact solver. `dense` is scipy: its sparse product for the whole correlation matrix and
its exact solver (up to 16,384 features). Every run is a process of its own; code compiled on the first run is cached on
disk. Codes are read from sorted shards on disk, like an SAE's, and peak memory is the operating system's figure. "graph
alone" is not a step of the matching: it measures how far the optimum on the graph is from the optimum on all pairs.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from _processes import last_line, peak_bytes
from safetensors.numpy import load_file, save_file

ACTIVE = 32
SHARD = 20_480  # tokens
LARGEST_DENSE = 16_384
NONE = -1


def planted(features: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One partner in B for every feature of A.

    A feature has two entries, and each activation picks one of them. Here both are the same. NONE: no feature of B
    follows it.
    """
    partner = generator.permutation(features)
    return partner, partner


def mixed(features: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Half of A's features have a partner of their own. Of the rest, one quarter each is split between two features
    of B, shares a partner with another feature of A, shares one of features/1024 hubs, and has no partner.
    """
    first = generator.permutation(features)
    kind = generator.integers(8, size=features)
    split, shared, hub = (np.flatnonzero(kind == number) for number in range(3))
    hubs = first[generator.choice(hub, max(1, features // 1024), replace=False)]
    first[hub] = generator.choice(hubs, len(hub))
    pairs = len(shared) // 2
    first[shared[:pairs]] = first[shared[-pairs:]]
    first[kind == 3] = NONE
    second = first.copy()
    second[split] = generator.permutation(first[split])
    return first, second


KINDS = {"planted": planted, "mixed": mixed}


def write_codes(folder: Path, features: int, tokens: int, kind: str) -> None:
    weights = np.arange(10, features + 10) ** -0.7
    cumulative = np.cumsum(weights / weights.sum())
    partners = np.stack(KINDS[kind](features, np.random.default_rng(0)))
    for shard, start in enumerate(range(0, tokens, SHARD)):
        generator = np.random.default_rng(shard)
        shape = (min(SHARD, tokens - start), ACTIVE)

        def drawn(generator=generator, shape=shape) -> np.ndarray:
            return np.searchsorted(cumulative, generator.random(shape)).clip(max=features - 1)

        a = drawn()
        partner = partners[generator.integers(2, size=shape), a]
        b = np.where((generator.random(shape) < 0.6) & (partner != NONE), partner, drawn())
        tensors = {}
        for side, cols in (("a", a), ("b", b)):
            values = generator.gamma(2.0, 1.0, shape).astype(np.float32)
            values[repeated(cols)] = 0  # a feature is active once on a token, as in an SAE
            codes = sp.csr_array(
                (values.ravel(), cols.ravel(), np.arange(0, cols.size + 1, ACTIVE)), shape=(len(cols), features)
            )
            codes.eliminate_zeros()
            codes.sort_indices()
            tensors |= {f"{side}.values": codes.data, f"{side}.columns": codes.indices.astype(np.int32)}
            tensors[f"{side}.starts"] = codes.indptr.astype(np.int64)
        save_file(tensors, folder / f"{shard:05d}.safetensors")


def repeated(cols: np.ndarray) -> np.ndarray:
    """Marks the entries of each row that occurred in it before."""
    order = np.argsort(cols, axis=1, kind="stable")
    ascending = np.take_along_axis(cols, order, 1)
    again = np.zeros(cols.shape, bool)
    np.put_along_axis(again, order[:, 1:], ascending[:, 1:] == ascending[:, :-1], 1)
    return again


def stream(folder: Path, features: int):
    """Codes as stitch keeps them on disk."""
    for place in sorted(folder.glob("*.safetensors")):
        found = load_file(place)
        parts = ([found[f"{side}.{name}"] for name in ("values", "columns", "starts")] for side in "ab")
        yield tuple(sp.csr_array(tuple(part), shape=(len(part[2]) - 1, features)) for part in parts)


def sparse(folder: Path, features: int, threads: int) -> dict:
    from matching.assignment import assign_with_prices
    from matching.certificate import assign_certified, certify
    from matching.correlations import Correlations
    from matching.graph import candidates

    seconds = {}

    def timed(name, work):
        start = time.perf_counter()
        found = work()
        seconds[name] = round(time.perf_counter() - start, 2)
        return found

    generator = np.random.default_rng(0)
    correlations = timed("read", lambda: Correlations.read(lambda: stream(folder, features), threads=threads))
    graph = timed("candidates", lambda: candidates(correlations, generator=generator))
    alone = timed("graph alone", lambda: certify(correlations, graph, *assign_with_prices(graph))[0])
    pairs, certificate = timed("certified", lambda: assign_certified(correlations, graph))
    return {
        "seconds": seconds,
        "pairs": len(pairs),
        "gain": certificate.gain,
        "gap": certificate.gap,
        "gap_of_graph": alone.gap,
    }


def dense(folder: Path, features: int, threads: int) -> dict:
    """scipy's solver and product use one thread only."""
    from matching.assignment import assign_dense

    start = time.perf_counter()
    correlation = whole_matrix(folder, features)
    made = time.perf_counter()
    pairs = assign_dense(correlation, generator=np.random.default_rng(0))
    seconds = {"matrix": round(made - start, 2), "solver": round(time.perf_counter() - made, 2)}
    return {"seconds": seconds, "gain": float(pairs.scores.sum())}


def whole_matrix(folder: Path, features: int, *, rows: int = 1024, minimum_firings: int = 10) -> np.ndarray:
    """Pearson correlations [features of A, features of B], computed `rows` at a time; NaN for features that rarely
    fire.
    """
    a, b = (sp.vstack(parts, format="csr").astype(np.float64) for parts in zip(*stream(folder, features), strict=True))
    tokens = a.shape[0]
    by_feature = a.T.tocsr()
    mean_a, mean_b = by_feature.sum(1) / tokens, b.sum(0) / tokens
    deviation_a, deviation_b = (np.sqrt((z**2).sum(0) / tokens - mean**2) for z, mean in ((a, mean_a), (b, mean_b)))
    found = np.empty((features, features))
    for start in range(0, features, rows):
        part = slice(start, start + rows)
        found[part] = (by_feature[part] @ b).toarray() / tokens
        found[part] -= mean_a[part, None] * mean_b
        with np.errstate(divide="ignore", invalid="ignore"):
            found[part] /= deviation_a[part, None] * deviation_b
    found[np.diff(by_feature.indptr) < minimum_firings] = np.nan
    found[:, np.bincount(b.indices, minlength=features) < minimum_firings] = np.nan
    return found


def measured(folder: Path, features: int, threads: int) -> dict:
    """Time, memory, gain and gap of stitch and, up to LARGEST_DENSE features, of the dense solver, each in its own
    process.
    """
    found = {"threads": threads}
    for name in ("sparse", "dense")[: 1 + (features <= LARGEST_DENSE)]:
        options = {"--only": name, "--folder": folder, "--features": features, "--threads": threads}
        command = [sys.executable, __file__, *(word for option in options.items() for word in option)]
        found[name] = last_line(command)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--features", action="append", type=int, help="Default: 4,096 to 131,072 planted, 16,384 mixed."
    )
    parser.add_argument("--kind", choices=KINDS, default="planted", help="Kind of codes, with --features.")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=("sparse", "dense"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        found = {"sparse": sparse, "dense": dense}[given.only](given.folder, given.features[0], given.threads)
        print(json.dumps({**found, "peak_bytes": peak_bytes()}))
        return
    sizes = (4_096, 16_384, 65_536, 131_072)
    cells = [(size, given.kind) for size in given.features or sizes] + [(LARGEST_DENSE, "mixed")] * (not given.features)
    for features, kind in cells:
        with tempfile.TemporaryDirectory() as folder:
            write_codes(Path(folder), features, given.tokens, kind)
            found = measured(Path(folder), features, given.threads)
        line = {"benchmark": "matching_at_scale", "kind": kind, "features": features, "tokens": given.tokens, **found}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
