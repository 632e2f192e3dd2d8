"""Other ways to store a translation in few bytes, beside the one that composites use, for a composite and for n-gram tables.

    python benchmarks/encodings.py > build/encodings.jsonl

For the embedded pair in both directions a JSON line per limit, in percent of the bytes of both halves. Every encoding gets the
same fitted translation and the same bytes, and is scored on the same report windows; `gain` is the paired difference to the
encoding as it is (`8 bits`), below zero where it is better. The same encodings are tried on B's own n-gram tables within the
composite's bytes.

    8 bits            directions of tables by SVD over the text, rows of n-grams by squared length, numbers in 8 bits
    4 and 8 bits      each direction and row in 4 bits with a 16-bit scale for every 32 numbers, or in 8 where this takes more off
                      the squared error per byte than another direction or row would
    metric            directions and rows by the squared error in the metric of what B's late half reads: the mean outer
                      product of the gradient of its cross-entropy with respect to the stream
    4 and 8, metric   both
    embedding         tables by token are first a product of the embedding with a small matrix, then directions of what is left
    by the sweep      the bytes of each table by cross-entropy on the sweep split, by coordinate descent on a factor of its gains
    routes, rank r    a matrix per class of tokens, kept as one shared matrix and differences of rank r in 8 bits; tables get the
                      rest. Unfactored, class matrices alone take more than the limit.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from seam_bytes import DIRECTIONS, translations
from torch import Tensor

from stitch.activations.paired import Paired
from stitch.composite.compose import late_half, late_logits
from stitch.composite.costs import Costs, late
from stitch.config import CompleteSettings, Settings
from stitch.conversions.ngrams.late import LateBlocks
from stitch.evaluation.scores import Logits, Scores, evaluate, whole_model
from stitch.evaluation.scoring import stage
from stitch.frontier.alternative import Means
from stitch.frontier.own_tables import first_site_within, fitted_tables
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.pair.streams import harvest_pair
from stitch.jobs.pair.text import read_windows
from stitch.models.model import Model
from stitch.text.documents import Split
from stitch.translation import packing
from stitch.translation.module import embeddings_of
from stitch.translation.types import Ngram, Routed, Term, Token, Translation

PERCENT = (5, 10, 30)
GROUP = 32  # numbers of 4 bits that share a scale
ROUNDED = 0.008  # share of the variance that 4 bits lose: a step of a seventh of 2.2 deviations, squared, over 12
RANKS = (2, 4, 8)
FACTORS = (1 / 16, 1 / 4, 4, 16)
HALVINGS = 12
CHOICE = 8_192  # tokens of the sweep split that bytes are shared out on
GRADIENTS = 32  # windows that the metric is measured on


@dataclasses.dataclass(frozen=True)
class Encoding:
    """`root` is a square root of the metric and its inverse; None: squared error. `embedding` has rows by token id."""

    mixed: bool = False
    root: tuple[Tensor, Tensor] | None = None
    embedding: Tensor | None = None

    def price(self, numbers: int) -> float:
        """Bytes of so many numbers, in 4 bits if some are."""
        return numbers * (0.5 + 2 / GROUP) if self.mixed else numbers


@dataclasses.dataclass(frozen=True)
class Plan:
    """A table, with what its items are worth and cost. `explained` is the part that an embedding gives, at `start` bytes."""

    term: Term
    gains: Tensor
    prices: Tensor
    upgrade: float  # bytes that an item takes more in 8 bits than in 4; 0: all are in 8
    directions: tuple[Tensor, Tensor] | None  # into the metric's leading directions, and back
    left: Tensor
    explained: Tensor | None = None
    start: float = 0.0


def plan(term: Term, how: Encoding, ids: Tensor, vocabulary: int) -> Plan:
    table = packing._factors(term).folded().double()
    read, width = packing._times_read(term, ids, vocabulary), table.shape[1]
    forward, back = (torch.eye(width, dtype=torch.float64),) * 2 if how.root is None else how.root
    if isinstance(term.input, Ngram):
        gains = read * (table @ forward).square().sum(1)
        prices = torch.full_like(gains, packing.KEY + how.price(width) + packing.SCALE)
        order = (gains / prices).argsort(descending=True, stable=True)
        # Kept as positions of rows: `left` is in that order, and keys go with it.
        keyed = dataclasses.replace(term.input, keys=term.input.keys[order])
        return Plan(
            dataclasses.replace(term, input=keyed), gains[order], prices, width - how.price(width), None, table[order]
        )
    explained, start = None, 0.0
    if how.embedding is not None and isinstance(term.input, Token):
        rows = how.embedding if term.input.keys is None else how.embedding[term.input.keys]
        rows = torch.cat([rows.double(), torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        weighted = rows.T * (read + 1e-3)
        size = torch.eye(rows.shape[1], dtype=torch.float64) * weighted.square().sum().sqrt() * 1e-6
        explained = rows @ torch.linalg.solve(weighted @ rows + size, weighted @ table)
        start = 4.0 * rows.shape[1] * width
        table = table - explained
    values, vectors = torch.linalg.eigh((table @ forward).T @ (read[:, None] * (table @ forward)))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    prices = torch.full_like(values, how.price(len(table)) + packing.NUMBER * width)
    prices[0] += packing.SCALE * len(table) + packing.KEY * packing._has_keys(term) * len(table)
    prices[0] += start + (0 if term.fallback is None else packing.NUMBER * term.fallback.weight.numel())
    gains = values.clone()
    if explained is not None:
        gains[0] += (read[:, None] * (explained @ forward).square()).sum()
    return Plan(
        term,
        gains,
        prices,
        len(table) - how.price(len(table)),
        (forward @ vectors, vectors.T @ back),
        table,
        explained,
        start,
    )


def items(plans: list[Plan], budget: float, favour: list[float]) -> list[tuple[int, int]]:
    """How many items of each table are kept, and how many of these in 8 bits, by gain per byte times the table's factor."""
    listed = []
    for number, one in enumerate(plans):
        worth = (one.gains / one.prices * favour[number]).tolist()
        if one.directions is not None and len(worth) > 1:
            worth[0] = max(worth[:2])
        listed += [(value, number, False, -item, float(one.prices[item])) for item, value in enumerate(worth)]
        if one.upgrade:
            more = (one.gains * ROUNDED / one.upgrade * favour[number]).tolist()
            listed += [(value, number, True, -item, one.upgrade) for item, value in enumerate(more)]
    kept, better = [0] * len(plans), [0] * len(plans)
    for value, number, upgraded, item, price in sorted(listed, reverse=True):
        counts = better if upgraded else kept
        if (
            value > 0
            and item == -counts[number]
            and price <= budget
            and (not upgraded or better[number] < kept[number])
        ):
            counts[number], budget = counts[number] + 1, budget - price
    return [(count, fine if one.upgrade else count) for count, fine, one in zip(kept, better, plans, strict=True)]


def bytes_stored(one: Plan, count: int, fine: int) -> float:
    """Bytes of a table with `count` items, the first `fine` of them in 8 bits."""

    def numbers(in_8: int, in_4: int) -> int:
        """Of a row: 8-bit numbers with a 32-bit scale, 4-bit numbers with a 16-bit scale per group."""
        return in_8 + packing.SCALE * bool(in_8) + -(-in_4 // 2) + 2 * -(-in_4 // GROUP)

    if not count:
        return 0
    entries, width = one.left.shape
    if isinstance(one.term.input, Ngram):
        return count * packing.KEY + fine * numbers(width, 0) + (count - fine) * numbers(0, width)
    keys = packing.KEY * packing._has_keys(one.term) * entries
    fallback = 0 if one.term.fallback is None else packing.NUMBER * one.term.fallback.weight.numel()
    return entries * numbers(fine, count - fine) + packing.NUMBER * width * count + keys + fallback + one.start


def written(one: Plan, count: int, fine: int) -> Term:
    """The term with `count` items, the first `fine` of them in 8 bits, as its table is after storing, in float32."""
    if isinstance(one.term.input, Ngram):
        order = one.term.input.keys[:count].argsort()
        keyed = dataclasses.replace(one.term.input, keys=one.term.input.keys[:count][order])
        table = torch.cat([rounded(one.left[:fine], 8), rounded(one.left[fine:count], 4)])[order]
        return dataclasses.replace(one.term, input=keyed, weight=table.float())
    assert one.directions is not None
    codes = one.left @ one.directions[0][:, :count]
    size = codes.square().mean(0).sqrt().clamp_min(1e-12)
    codes = torch.cat([rounded((codes / size)[:, :fine], 8), rounded((codes / size)[:, fine:], 4)], 1)
    table = codes * size @ one.directions[1][:count]
    return dataclasses.replace(one.term, weight=(table if one.explained is None else table + one.explained).float())


def rounded(rows: Tensor, bits: int) -> Tensor:
    """8 bits have a scale per row, 4 bits one per GROUP numbers of it."""
    if not rows.numel():
        return rows
    parts = [rows] if bits == 8 else rows.split(GROUP, 1)
    largest = 2 ** (bits - 1) - 1
    scales = [(part.abs().amax(1, keepdim=True) / largest).clamp_min(1e-12) for part in parts]
    scales = scales if bits == 8 else [scale.half().double().clamp_min(1e-7) for scale in scales]
    return torch.cat([(part / scale).round() * scale for part, scale in zip(parts, scales, strict=True)], 1)


class Packer:
    """A translation, its plans under one encoding, and the bytes that are left for tables."""

    def __init__(
        self, found: Translation, limit: float, how: Encoding, ids: Tensor, vocabulary: int, dtype: torch.dtype
    ):
        self.found, self.how = found, how
        self.plans = [plan(term, how, ids, vocabulary) for term in packing._tables(found)]
        self.budget = limit - packing.bytes_without_tables(found, dtype)

    def packed(self, favour: list[float] | None = None) -> Translation:
        """As much as the bytes hold. Prices of 4-bit numbers are estimates, as scales are for whole groups: the budget that
        items are chosen with is the largest with which what is stored keeps within the bytes.
        """
        favour = favour or [1.0] * len(self.plans)
        low, high = 0.0, 2 * self.budget
        kept = items(self.plans, low, favour)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            tried = items(self.plans, middle, favour)
            stored = sum(bytes_stored(one, *counts) for one, counts in zip(self.plans, tried, strict=True))
            low, high, kept = (middle, high, tried) if stored <= self.budget else (low, middle, kept)
        terms = [written(one, *counts) for one, counts in zip(self.plans, kept, strict=True) if counts[0]]
        return dataclasses.replace(self.found, terms=(*packing._others(self.found), *terms))


def by_the_sweep(packer: Packer, score: Callable[[Translation], float]) -> Translation:
    """One pass of coordinate descent over the tables: whatever factor of a table's gains has the lowest cross-entropy."""
    favour = [1.0] * len(packer.plans)
    best = score(packer.packed(favour))
    for number in range(len(favour)):
        for factor in FACTORS:
            tried = [*favour[:number], factor, *favour[number + 1 :]]
            if (ce := score(packer.packed(tried))) < best:
                best, favour = ce, tried
    return packer.packed(favour)


def with_low_rank(found: Translation, rank: int, second: Callable[[Routed], Tensor]) -> tuple[Translation, int]:
    """Class matrices as their mean and differences of a rank, factors in 8 bits, and the bytes saved."""
    terms, saved = [], 0
    for term in found.terms:
        if isinstance(term.input, Routed):
            assert isinstance(term.weight, Tensor)
            whole = term.weight.double()
            counts = term.input.classes.bincount(minlength=len(whole)).double()
            shared = (whole * (counts / counts.sum())[:, None, None]).sum(0)
            root = torch.linalg.cholesky(second(term.input))
            left, sizes, right = torch.linalg.svd(root.T @ (whole - shared), full_matrices=False)
            left = torch.linalg.solve(root.T, left[..., :rank] * sizes[:, None, :rank].sqrt())
            right = right[:, :rank] * sizes[:, :rank, None].sqrt()
            factors = rounded(left.mT.flatten(0, 1), 8).view(left.mT.shape).mT @ rounded(right.flatten(0, 1), 8).view(
                right.shape
            )
            stored = 4 * shared.numel() + left.numel() + right.numel() + 4 * 2 * len(whole) * rank
            saved += 4 * whole.numel() - stored
            term = dataclasses.replace(term, weight=(shared + factors).float())
        terms.append(term)
    return dataclasses.replace(found, terms=tuple(terms)), saved


def gradient_root(b: Model, site: int, paired: Paired) -> tuple[Tensor, Tensor]:
    """A square root of E[g gᵀ] and its inverse, g the gradient of B's cross-entropy with respect to the stream at `site`."""
    half, total = late_half(b, site), torch.zeros(b.width, b.width, dtype=torch.float64)
    for parameter in b.net.parameters():
        parameter.requires_grad_(False)
    ids = paired.b.windows.ids.long()
    chosen = torch.linspace(0, len(ids) - 1, GRADIENTS).long()
    stream = torch.cat([paired.b.read(shard, paired.site_b) for shard in range(paired.b.shards)])[chosen]
    for hidden, text in zip(stream.split(4), ids[chosen].split(4), strict=True):
        hidden = hidden.float().requires_grad_()
        logits = late_logits(half, hidden, ids=text)[:, :-1].float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten(), reduction="sum").backward()
        assert hidden.grad is not None
        found = hidden.grad[:, 1:].flatten(0, 1).double()
        total += found.T @ found
    total += 0.01 * total.diagonal().mean() * torch.eye(len(total), dtype=torch.float64)
    root = torch.linalg.cholesky(total / total.diagonal().mean())
    return root, torch.linalg.inv(root)


def second_moment(paired: Paired) -> Callable[[Routed], Tensor]:
    """Second moments of A's stream, the same for every number of tokens back."""
    stream = (
        torch.cat([paired.a.read(shard, paired.site_a) for shard in range(paired.a.shards)])[:, 1:]
        .flatten(0, 1)
        .double()
    )
    moment = stream.T @ stream / len(stream)
    moment += 1e-6 * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    return lambda _: moment


def encodings(b: Model, root: tuple[Tensor, Tensor]) -> dict[str, Encoding]:
    embedding = embeddings_of(b, b)["b"].detach()
    return {
        "8 bits": Encoding(), "4 and 8 bits": Encoding(mixed=True), "metric": Encoding(root=root),
        "4 and 8, metric": Encoding(mixed=True, root=root), "embedding": Encoding(embedding=embedding),
    }  # fmt: skip


def lines(settings: CompleteSettings, a: Model, b: Model, folder: Path) -> Iterator[dict]:
    windows = read_windows(settings, a, b)
    paired: dict[Split, Paired] = {
        split: harvest_pair(settings, a, b, found, folder / split) for split, found in windows.items()
    }
    fitted, costs = translations(settings, a, b, paired).translations, Costs(a, b, settings.context)
    tables, routed = fitted["translation:affine+free+tables"], fitted["translation:routed+tables"]
    known = encodings(b, gradient_root(b, settings.layer_b, paired["fit"]))
    sweep, report = stage(settings, a, b, paired["sweep"]), stage(settings, a, b, paired["report"])
    ids, vocabulary = windows["fit"].ids, b.vocabulary
    halves = costs.halves(settings.layer, settings.layer_b)

    def score(translation: Translation) -> float:
        rows = {"": sweep.translated(translation)}
        return evaluate(rows, sweep.windows.first(CHOICE), vocabulary=vocabulary, memory=settings.memory)[""].ce

    own: dict[int, Translation | None] = {}
    for percent in PERCENT:
        limit = halves.bytes * percent / 100
        found: dict[str, Translation] = {}
        for name, how in known.items():
            packer = Packer(tables, limit, how, ids, vocabulary, b.dtype)
            if packer.budget <= 0:
                raise SystemExit(f"The matrices alone take more than {percent} %.")
            found[name] = packer.packed()
            if name == "8 bits":
                found["by the sweep"] = by_the_sweep(packer, score)
        for rank in RANKS:
            factored, saved = with_low_rank(routed, rank, second_moment(paired["fit"]))
            packer = Packer(factored, limit + saved, Encoding(), ids, vocabulary, b.dtype)
            if packer.budget > 0:
                found[f"routes, rank {rank}"] = packer.packed()
        rows = {f"composite: {name}": report.translated(one) for name, one in found.items()}
        cost = costs.composite(*settings.sites, packing.pack(
            tables, int(limit), ids, vocabulary, b.dtype, memory=settings.memory
        ))  # fmt: skip
        means = Means(
            limit=cost, windows=windows, context=settings.context, ngrams=settings.ngrams, routes=0, seed=0,
            memory=settings.memory, scratch=folder / "alternatives",
        )  # fmt: skip
        site = first_site_within(b, means)
        if site is not None:
            if site not in own:
                own[site] = fitted_tables(b, site, means)
            rows |= own_rows(own[site], b, site, cost.bytes - late(b, site, settings.context).bytes, windows, known)
        scores = evaluate(
            {"a": whole_model(a.net), "b": whole_model(b.net), **rows}, windows["report"], vocabulary=vocabulary,
            memory=settings.memory,
        )  # fmt: skip
        yield {
            "benchmark": "encodings", "source": a.name, "target": b.name, "percent": percent, "limit": limit,
            "context": settings.context, "tokens": windows["report"].tokens, "fitted": windows["fit"].tokens,
            "documents": scores["b"].documents, "own_site": site,
            "results": [described(name, scores) for name in rows],
        }  # fmt: skip


def own_rows(
    tables: Translation | None, b: Model, site: int, limit: float, windows: dict, known: dict[str, Encoding]
) -> dict[str, Logits]:
    """B's own tables in place of its blocks before `site`, in every encoding."""
    if tables is None:
        return {}
    blocks, rows = LateBlocks(b, site), {}
    for name, how in known.items():
        packer = Packer(tables, limit, how, windows["fit"].ids, b.vocabulary, b.dtype)
        rows[f"own tables: {name}"] = blocks.reading(packer.packed())
    return rows


def described(name: str, scores: dict[str, Scores]) -> dict:
    """A row, with its paired differences to the same in 8 bits and of both kinds to own tables in the same encoding."""
    kind, _, encoding = name.partition(": ")
    line = {"kind": kind, "encoding": encoding, **{k: v for k, v in scores[name].row("").items() if k != "name"}}
    others = {"gain": f"{kind}: 8 bits", "behind": f"own tables: {encoding}", "behind_8_bits": "own tables: 8 bits"}
    for key, other in others.items():
        if other in scores and other != name:
            low, high = scores[name].interval(minus=scores[other])
            line |= {key: scores[name].ce - scores[other].ce, f"{key}_low": low, f"{key}_high": high}
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=250_000)
    given = parser.parse_args()
    for a_name, b_name, layer in DIRECTIONS:
        settings = Settings(model_a=a_name, model_b=b_name, layer=layer, tokens=given.tokens)
        a, b, _ = load_pair(settings)
        with tempfile.TemporaryDirectory() as folder:
            for line in lines(complete(settings, a, b), a, b, Path(folder)):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
