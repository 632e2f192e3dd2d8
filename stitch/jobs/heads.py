"""Heads that predict A's tokens behind late blocks of a B that reads others, each made in another way in closed form."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.activations.original import Original
from stitch.composite.compose import late_half
from stitch.conversions.retokenization import rows as made
from stitch.conversions.retokenization.at_once import rows_at_once
from stitch.conversions.retokenization.bias import with_bias
from stitch.conversions.retokenization.head_ridge import HELD_OUT
from stitch.conversions.retokenization.marginal import marginal_rows
from stitch.conversions.retokenization.omp import affordable, pursued
from stitch.conversions.retokenization.passages import Passage
from stitch.conversions.retokenization.rows import Rows
from stitch.conversions.retokenization.scoring import Head, head_of, nats, passes_over
from stitch.conversions.retokenization.solve import Products, passes_of_ridge, ridge
from stitch.conversions.retokenization.streams import final, read_by
from stitch.conversions.retokenization.variants import Workshop
from stitch.evaluation.stage import Stage
from stitch.modeling.modeling_halves import Half
from stitch.models.model import Model
from stitch.progress import Progress, Steps, counted
from stitch.text.correspondence import Correspondence
from stitch.text.windows import Windows

CLOSED = 9  # heads in closed form, beside those of pursuits
TOKENS_AT_ONCE = 2_048  # in a pass


@torch.no_grad()
def late_streams(
    b: Model, site: int, passages: Sequence[Passage], progress: Progress | None = None
) -> list[Float[Tensor, "_ d"]]:
    """What B's head reads behind its late blocks, at A's tokens, where these get B's own streams."""
    original, half = b.original, late_half(b, site)
    assert isinstance(original, Original)
    found = []
    for passage in counted(passages, "head for A's tokens (passages)", progress):
        ids = torch.cat([torch.tensor([original.rewriter.given.bos]), passage.new.ids])[None]
        stream = original.residuals(ids, [site])[site].to(half.dtype)
        found.append(_read_behind(half, stream, ids)[0].float())
    return found


def _read_behind(
    half: Half, stream: Float[Tensor, "batch positions d"], ids: Tensor
) -> Float[Tensor, "batch positions d"]:
    """What the head of a second half reads."""
    head, ids = half.net.get_submodule(half.flow["head"]), ids.to(stream.device)
    return read_by(head, lambda: half.run(stream, use_cache=False, input_ids=ids))


def pursued_rows(a: Model, shop: Workshop, occurring: Tensor) -> tuple[dict[int, Head], Rows | None]:
    """Heads by OMP for the tokens that occur, by number of terms, and an embedding of the fewest. Rows of other tokens are means.

    Clipped as all rows. Left out where a pursuit takes more than AFFORDABLE FLOPs, or A has no row for some token.
    """
    wanted = set(occurring.tolist())
    some = replace(shop.found, pieces={token: found for token, found in shop.found.pieces.items() if token in wanted})
    head, rows = head_of(a)[: shop.found.size, : a.width], a.embedding.weight.detach()[: shop.found.size]
    terms = affordable(some, a.width) if len(head) == shop.found.size else []
    if not terms:
        return {}, None
    heads = {one: _over_means(shop.own_head, found, some, shop.found)
             for one, found in pursued(shop.own_head, head, some, terms, shop.progress).items()}  # fmt: skip
    found = pursued(shop.own_rows, rows, some, terms[:1], shop.progress)[terms[0]]
    return heads, _over_means(shop.own_rows, found, some, shop.found)


def _over_means(own: Rows, pursuit: Rows, some: Correspondence, found: Correspondence) -> Rows:
    rows = made.mean_of_pieces(own, found)
    places = made.filled(some).to(rows.device)
    rows[places] = pursuit[places]
    return made.clipped(rows, own, found)[0]


def read_and_next(
    streams: Sequence[Float[Tensor, "_ d"]], passages: Sequence[Passage]
) -> tuple[Float[Tensor, "tokens d"], Int[Tensor, " tokens"]]:
    """What a head reads before every token of A, and the token."""
    return torch.cat([stream[:-1] for stream in streams]), torch.cat([passage.new.ids for passage in passages])


def marginal_head(shop: Workshop) -> Head:
    """See `marginal_rows`; other tokens have means of their pieces' rows."""
    return marginal_rows(shop.own_head, shop.said.matrix, shop.probabilities.everywhere, shop.heads["mean"][0])


def candidates(
    a: Model, shop: Workshop, streams: list[Tensor], marginal: Head, fitted: Head, pursued: Mapping[int, Head]
) -> Iterator[tuple[str, Head]]:
    """Heads for B's late blocks and their row names, one after another, as each is as large as B's own head or larger.

    `fitted` is the one whose rows are all fitted, from `marginal` on.
    """
    read, targets = read_and_next(streams, shop.fit)
    mean = shop.heads["mean"][0]
    yield "reference:head-first", shop.heads["first"][0]
    yield "reference:head-mean", mean
    yield "reference:head-mean-bias", with_bias(read, targets, mean, shop.said.cap, shop.progress)
    yield "reference:head-marginal", marginal
    yield "reference:head-marginal-bias", with_bias(read, targets, marginal, shop.said.cap, shop.progress)
    for terms, head in pursued.items():
        yield f"reference:head-omp-{terms}", head
    new_only, places = mean.clone(), made.filled(shop.found)
    new_only[places] = fitted[places]
    yield "reference:head-ridge", new_only
    del new_only
    yield "reference:head-ridge-all", fitted
    yield "reference:head-ridge-all-bias", with_bias(read, targets, fitted, shop.said.cap, shop.progress)
    yield "reference:head-a", _through_a(a, shop, streams)


def _through_a(a: Model, shop: Workshop, streams: Sequence[Float[Tensor, "_ d"]]) -> Head:
    """A's head behind a ridge from what B's head reads to what A's reads, on the same tokens."""
    products = {held: Products.empty(shop.model.width, a.width, a.device) for held in (False, True)}
    pairs = list(zip(streams, shop.fit, strict=True))
    for number, (stream, passage) in enumerate(counted(pairs, "head of A (passages)", shop.progress)):
        products[number % HELD_OUT == 0].add(stream, final(a, passage.new.ids, shop.new.bos))
    step = Steps("head of A (parts)", passes_of_ridge(products[False]), shop.progress)
    weights, _ = ridge(products[False], products[True], step)
    rows = head_of(a)[: shop.found.size, : a.width]
    return (rows.double() @ weights.T.double().to(rows.device)).float().to(streams[0].device)


@dataclass(frozen=True)
class Choice:
    """The head with the least loss, its row name, the other heads that are kept, and the nats per token of every candidate."""

    name: str
    head: Head
    others: dict[str, Head]
    losses: dict[str, float]


def choose_head(
    on: Stage, windows: Windows, heads: Iterable[tuple[str, Head]], number: int, cap: float | None,
    wanted: Callable[[str], bool], progress: Progress | None = None,
) -> Choice:  # fmt: skip
    """Scores the `number` heads behind B's late blocks on B's own streams of `windows`.

    Of those that are not `wanted` only the best so far is kept.
    """
    read, targets = _behind_late(on, windows, progress)
    losses: dict[str, float] = {}
    kept: dict[str, Head] = {}
    step: Steps | None = None
    for name, head in heads:
        if step is None:
            step = Steps("choice of the head (parts)", number * passes_over(len(read), len(head)), progress)
        losses[name] = nats(read, head, targets, cap, step) / len(targets)
        kept[name] = head
        best = min(losses, key=lambda one: losses[one])
        kept = {one: found for one, found in kept.items() if one == best or wanted(one)}
    best = min(losses, key=lambda one: losses[one])
    head = kept.pop(best)
    return Choice(best, head, kept, losses)


@torch.no_grad()
def _behind_late(
    on: Stage, windows: Windows, progress: Progress | None
) -> tuple[Float[Tensor, "tokens d"], Int[Tensor, " tokens"]]:
    """What B's head reads behind its late blocks before every token that counts, and the token."""
    assert on.counted is not None
    read, targets = [], []
    for rows in torch.arange(len(windows.ids)).split(rows_at_once(windows.context, TOKENS_AT_ONCE)):
        ids = windows.ids[rows].long()
        stream = on.y(slice(int(rows[0]), int(rows[-1]) + 1)).to(on.b.device, on.late.dtype)
        last = _read_behind(on.late, stream, ids)
        chosen = on.counted[ids[:, 1:]]
        read.append(last[:, :-1][chosen.to(last.device)].float())
        targets.append(ids[:, 1:][chosen])
        if progress:
            progress("choice of the head (tokens)", (int(rows[-1]) + 1) * windows.context, windows.tokens)
    return torch.cat(read), torch.cat(targets)
