"""Joining two models that read different tokens: heads for A's vocabulary behind B's late blocks, and the better one chosen.

B is put behind A's tokenizer (`stitch.conversions.retokenization.behind`); its streams stay those of its own tokens, at the bytes
where A's end. What is left to make is a head that predicts A's tokens. It is fitted on what B's late blocks give for B's own
streams, so it depends on no translation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.activations.original import Original
from stitch.composite.compose import late_half
from stitch.composite.costs import Cost, Costs
from stitch.config import CompleteSettings
from stitch.conversions.retokenization import rows as made
from stitch.conversions.retokenization.behind import with_rows
from stitch.conversions.retokenization.bias import with_bias
from stitch.conversions.retokenization.head_ridge import fitted_heads
from stitch.conversions.retokenization.omp import pursued
from stitch.conversions.retokenization.passages import Passage
from stitch.conversions.retokenization.rows import Rows
from stitch.conversions.retokenization.scoring import Head, head_of
from stitch.conversions.retokenization.solve import Products, ridge
from stitch.conversions.retokenization.streams import embedding, final
from stitch.conversions.retokenization.variants import Workshop
from stitch.evaluation.scores import Logits, evaluate
from stitch.evaluation.stage import Stage
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.alignment import require_lossless
from stitch.text.correspondence import Correspondence, correspond
from stitch.text.documents import Split, read
from stitch.text.windows import Windows
from stitch.translation.types import Translation

FIT = 8_192  # tokens of the fit split that heads are fitted on
CHOICE = 4_096  # tokens of the sweep split that the head is chosen on
CHECKED, LONGEST = (
    128,
    2_000,
)  # documents, and characters of each, in which bytes that A's tokenizer loses are looked for
SHORTEST = 8  # tokens of a passage
TERMS = (8, 64)  # of a sparse combination of shared rows
PURSUIT = 2e13  # FLOPs: a pursuit that takes more is left out
HELD_OUT = 5  # one passage in so many chooses the strength of a ridge


@dataclass(frozen=True)
class Across:
    """B behind A's tokenizer: with the head chosen for its late blocks, and whole by row name.

    `heads` are the heads for its late blocks by row name, `described` is what the report says of it.
    """

    b: Model
    chosen: str
    heads: dict[str, Head]
    whole: dict[str, Model]
    described: dict

    def costs(self, costs: Costs, composite: Cost) -> dict[str, Cost]:
        """Costs of the rows that this adds, given that of the composite."""
        return {
            "ceiling:aligned": costs.whole_target,
            "null:shuffled-head": composite,
            **dict.fromkeys(self.heads, composite),
        }

    def variants(self, on: Stage, translation: Translation, settings: CompleteSettings) -> dict[str, Logits]:
        """The composite with every other head, and with the rows of its own exchanged, as far as the settings want these rows."""
        rows = self.b.embedding.weight.detach()
        heads = {name: head for name, head in self.heads.items() if name != self.chosen}
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed))
        heads["null:shuffled-head"] = self.heads[self.chosen][order]
        return {
            name: behind_head(on, rows, head).translated(translation)
            for name, head in heads.items()
            if settings.wants(name)
        }


def behind_head(on: Stage, rows: Rows, head: Head) -> Stage:
    """The same stage with another head of B. Streams are shared."""
    return replace(on, b=with_rows(on.b, rows, head), late_of_b=None)


def fit_across(
    settings: CompleteSettings, a: Model, b: Model, windows: Mapping[Split, Windows], on: Stage, lost: dict[str, float],
    progress: Progress | None = None,
) -> Across:  # fmt: skip
    """Fits the heads on the fit split and chooses one on the sweep split, whose stage is `on`. `lost` is as in `lost_bytes`."""
    shop = workshop(b, windows["fit"], settings.seed)
    rows = b.embedding.weight.detach()
    streams = late_streams(b, settings.layer_b, shop.fit, progress)
    occurring = torch.cat([found.ids.unique() for found in windows.values()]).unique()
    pursuits = _pursuits(a, shop, occurring)
    with embedding(shop.model, rows):
        of_whole = [final(shop.model, passage.new.ids, shop.new.bos) for passage in shop.fit]
    fitted, whole_head = fitted_heads([streams, of_whole], shop.heads["mean"][0], shop.on_text, shop.fit, shop.said)
    heads = _heads(a, shop, streams, fitted, {terms: found[1] for terms, found in pursuits.items()})
    scores = evaluate(
        {name: behind_head(on, rows, head).aligned() for name, head in heads.items()}, on.windows.first(CHOICE),
        vocabulary=on.vocabulary, counted=on.counted, memory=settings.memory, progress=progress,
        task="choice of the head (tokens)",
    )  # fmt: skip
    chosen = min(scores, key=lambda name: scores[name].ce)
    return Across(
        with_rows(b, rows, heads[chosen]), chosen, heads, _whole(b, rows, whole_head, pursuits),
        {
            **_alignment(b, windows), "lost": lost, "head": chosen.partition(":")[2],
            "heads": {name.partition(":")[2]: found.ce for name, found in scores.items()},
            "vocabulary": {
                "size": shop.found.size, "shared": shop.found.shared, "special": len(shop.found.new) - shop.found.shared,
                "pieces": len(shop.found.pieces), "unknown": shop.found.unknown,
            },
        },
    )  # fmt: skip


def lost_bytes(b: Model, fit: Windows, text: str) -> dict[str, float]:
    """The shares of bytes that A's tokenizer loses of some documents, and B's of what A's leaves.

    Raises: UsageError where that is too much.
    """
    original = b.original
    assert isinstance(original, Original)
    documents = islice(read(text, characters=CHECKED * LONGEST), CHECKED)
    given = original.rewriter.given
    return {
        "a": require_lossless([given.read(content[:LONGEST]) for _, content in documents], given.name),
        "b": require_lossless([passage.own for passage in _passages(original, fit)], b.name),
    }


def workshop(b: Model, fit: Windows, seed: int) -> Workshop:
    """What rows for A's vocabulary are made from."""
    original = b.original
    assert isinstance(original, Original)
    own, new = original.rewriter.own, original.rewriter.given
    return Workshop(original.model, None, own, new, correspond(own, new), _passages(original, fit), seed)


def _passages(original: Original, windows: Windows) -> list[Passage]:
    """Text without special tokens from the first windows, together FIT tokens of A."""
    found, count = [], 0
    for ids in windows.ids:
        for given, own in original.rewriter.runs(ids.tolist()):
            if len(given.ids) >= SHORTEST and len(own.ids) and count < FIT:
                found.append(Passage(own, given))
                count += len(given.ids)
        if count >= FIT:
            break
    return found


@torch.no_grad()
def late_streams(
    b: Model, site: int, passages: Sequence[Passage], progress: Progress | None = None
) -> list[Float[Tensor, "_ d"]]:
    """What B's head reads behind its late blocks, at A's tokens, where these get B's own streams."""
    original, half = b.original, late_half(b, site)
    assert isinstance(original, Original)
    found = []
    for number, passage in enumerate(passages):
        ids = torch.cat([torch.tensor([original.rewriter.given.bos]), passage.new.ids])[None]
        stream = original.residuals(ids, [site])[site].to(half.dtype)
        last = half.run(stream, base=True, use_cache=False, input_ids=ids.to(b.device)).last_hidden_state
        found.append(last[0].float())
        if progress:
            progress("head for A's tokens (passages)", number + 1, len(passages))
    return found


def _pursuits(a: Model, shop: Workshop, occurring: Tensor) -> dict[int, tuple[Rows, Head]]:
    """Embedding and head by OMP for the tokens that occur, by number of terms; those of others are means. Clipped as all rows.

    Left out where it takes more than PURSUIT FLOPs.
    """
    wanted = set(occurring.tolist())
    some = replace(shop.found, pieces={token: found for token, found in shop.found.pieces.items() if token in wanted})
    theirs = head_of(a)[: shop.found.size, : a.width], a.embedding.weight.detach()[: shop.found.size]
    found = {}
    for terms in TERMS:
        if 2.0 * terms * len(some.pieces) * some.shared * a.width <= PURSUIT and len(theirs[0]) == shop.found.size:
            head, embedded = (
                _over_means(own, pursued(own, donor, some, [terms])[terms], some, shop.found)
                for own, donor in zip((shop.own_head, shop.own_rows), theirs, strict=True)
            )
            found[terms] = embedded, head
    return found


def _over_means(own: Rows, pursuit: Rows, some: Correspondence, found: Correspondence) -> Rows:
    rows = made.mean_of_pieces(own, found)
    places = made.filled(some).to(rows.device)
    rows[places] = pursuit[places]
    return made.clipped(rows, own, found)[0]


def _heads(
    a: Model, shop: Workshop, streams: list[Tensor], fitted: Head, pursued: Mapping[int, Head]
) -> dict[str, Head]:
    """Heads for B's late blocks, by row name. `fitted` is the one whose rows are all fitted."""
    first, mean = (shop.heads[name][0] for name in ("first", "mean"))
    new_only = mean.clone()
    new_only[made.filled(shop.found)] = fitted[made.filled(shop.found)]
    read = torch.cat([stream[:-1] for stream in streams])
    targets = torch.cat([passage.new.ids for passage in shop.fit])
    return {
        "reference:head-first": first,
        "reference:head-mean": mean,
        "reference:head-mean-bias": with_bias(read, targets, mean, shop.said.cap),
        **{f"reference:head-omp-{terms}": head for terms, head in pursued.items()},
        "reference:head-ridge": new_only,
        "reference:head-ridge-all": fitted,
        "reference:head-ridge-all-bias": with_bias(read, targets, fitted, shop.said.cap),
        "reference:head-a": _through_a(a, shop, streams),
    }


def _through_a(a: Model, shop: Workshop, streams: Sequence[Float[Tensor, "_ d"]]) -> Head:
    """A's head behind a ridge from what B's head reads to what A's reads, on the same tokens."""
    products = {held: Products.empty(shop.model.width, a.width) for held in (False, True)}
    for number, (stream, passage) in enumerate(zip(streams, shop.fit, strict=True)):
        products[number % HELD_OUT == 0].add(stream, final(a, passage.new.ids, shop.new.bos))
    weights, _ = ridge(products[False], products[True])
    rows = head_of(a)[: shop.found.size, : a.width]
    return (rows.double() @ weights.T.to(rows.device)).float().to(streams[0].device)


def _whole(b: Model, rows: Rows, head: Head, pursuits: Mapping[int, tuple[Rows, Head]]) -> dict[str, Model]:
    """B retokenised, by row name. Neither has an `original`: they read A's tokens from their first block on."""
    found = {"reference:b-retokenized": with_rows(b, rows, head)}
    if pursuits:
        found["reference:b-retokenized-omp"] = with_rows(b, *pursuits[min(pursuits)])
    return {name: replace(model, original=None) for name, model in found.items()}


def _alignment(b: Model, windows: Mapping[Split, Windows]) -> dict:
    """How the tokens of both lie beside each other: the share of A's that end where one of B's does, on the fit split; bytes per
    token of A, and tokens of B per token of A, on the report split."""
    original = b.original
    assert isinstance(original, Original)
    fit, report = windows["fit"].ids, windows["report"].ids
    sizes = original.bytes_of[report[:, 1:].flatten().long()]
    own = sum(int(original.rewriter(window).is_text.sum()) for window in report)
    return {
        "coinciding": float(original.coincides(fit)[:, 1:].double().mean()),
        "bytes_per_token": float(sizes.sum() / (sizes > 0).sum()),
        "own_tokens_per_token": own / int((sizes > 0).sum()),
    }
