"""Joining two models that read different tokens: heads for A's vocabulary behind B's late blocks, and the better one chosen.

B is put behind A's tokenizer (`stitch.conversions.retokenization.behind`); its streams stay those of its own tokens, at the bytes
where A's end. What is left to make is a head that predicts A's tokens. It is fitted on what B's late blocks give for B's own
streams, so it depends on no translation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from uuid import uuid4

import torch

from stitch.activations.in_own_tokens import alignment
from stitch.activations.original import Original
from stitch.composite.costs import Cost, Costs
from stitch.config import CompleteSettings
from stitch.conversions.retokenization.behind import with_rows
from stitch.conversions.retokenization.bias import with_bias
from stitch.conversions.retokenization.head_ridge import fitted_heads
from stitch.conversions.retokenization.passages import Passage
from stitch.conversions.retokenization.rows import Rows
from stitch.conversions.retokenization.scoring import Head, head_of
from stitch.conversions.retokenization.streams import embedding, final_of
from stitch.conversions.retokenization.variants import Workshop
from stitch.errors import UsageError
from stitch.evaluation.scores import Logits
from stitch.evaluation.stage import Stage
from stitch.jobs.heads import CLOSED, candidates, choose_head, late_streams, marginal_head, pursued_rows, read_and_next
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.alignment import require_lossless
from stitch.text.correspondence import correspond
from stitch.text.documents import Split
from stitch.text.sources import Corpus
from stitch.text.windows import Windows
from stitch.translation.types import Translation

FIT = 8_192  # tokens of the fit split that heads are fitted on
CHOICE = 4_096  # tokens of the sweep split that the head is chosen on
CHECKED = 128  # documents in which bytes that A's tokenizer loses are looked for
LONGEST = 2_000  # characters of each of them
SHUFFLED = "null:shuffled-head"
SHORTEST = 8  # tokens of a passage


@dataclass(frozen=True)
class Across:
    """B behind A's tokenizer: with the head chosen for its late blocks, and whole by row name.

    `rows` are the names of the heads for its late blocks, `others` those of them that the report has a row for beside the chosen
    one, `described` is what the report says of it.
    """

    b: Model
    rows: tuple[str, ...]
    others: dict[str, Head]
    whole: dict[str, Model]
    described: dict

    def costs(self, costs: Costs, composite: Cost) -> dict[str, Cost]:
        """Costs of the rows that this adds, given that of the composite."""
        return {
            "ceiling:aligned": costs.whole_target,
            SHUFFLED: composite,
            **dict.fromkeys(self.rows, composite),
        }

    def variants(self, on: Stage, translation: Translation, settings: CompleteSettings) -> dict[str, Logits]:
        """The composite with every other head, and with the rows of its own exchanged, as far as the settings want these rows."""
        rows, chosen = self.b.embedding.weight.detach(), head_of(self.b)
        heads = dict(self.others)
        if settings.wants(SHUFFLED):
            heads[SHUFFLED] = chosen[torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed))]
        return {name: behind_head(on, rows, head).translated(translation) for name, head in heads.items()}


def behind_head(on: Stage, rows: Rows, head: Head) -> Stage:
    """The same stage with another head of B. Streams are shared."""
    return replace(on, b=with_rows(on.b, rows, head), late_of_b=None)


def fit_across(
    settings: CompleteSettings, a: Model, b: Model, windows: Mapping[Split, Windows], on: Stage, lost: dict[str, float],
    progress: Progress | None = None,
) -> Across:  # fmt: skip
    """Fits the heads on the fit split and chooses one on the sweep split, whose stage is `on`. `lost` is as in `lost_bytes`."""
    original = b.original
    assert isinstance(original, Original)
    shop = workshop(b, windows["fit"], settings.seed, progress)
    rows = b.embedding.weight.detach()
    occurring = torch.cat([found.ids.unique() for found in windows.values()]).unique()
    by_omp, embedded = pursued_rows(a, shop, occurring)
    streams = late_streams(b, settings.layer_b, shop.fit, progress)
    with embedding(shop.model, rows):
        of_whole = final_of(shop.model, shop.fit, shop.new.bos, "all of B for A's tokens", progress)
    marginal = marginal_head(shop)
    fitted, whole_head = fitted_heads([streams, of_whole], marginal, shop.on_text, shop.fit, shop.said, progress)
    whole_head = with_bias(*read_and_next(of_whole, shop.fit), whole_head, shop.said.cap, progress)
    found = candidates(a, shop, streams, marginal, fitted, by_omp)
    number = CLOSED + len(by_omp)
    choice = choose_head(on, on.windows.first(CHOICE), found, number, shop.said.cap, settings.wants, progress)
    whole = {"reference:b-retokenized": with_rows(b, rows, whole_head)}
    if embedded is not None:
        whole["reference:b-retokenized-omp"] = with_rows(b, embedded, by_omp[min(by_omp)])
    # They read A's tokens throughout.
    whole = {
        name: replace(model, original=None, altered=uuid4().hex).with_flow(model.flow) for name, model in whole.items()
    }
    return Across(
        with_rows(b, rows, choice.head), tuple(choice.losses), choice.others, whole,
        {
            **alignment(original, windows["fit"], windows["report"]), "lost": lost, "head": choice.name.partition(":")[2],
            "heads": {name.partition(":")[2]: loss for name, loss in choice.losses.items()},
            "vocabulary": {
                "size": shop.found.size, "shared": shop.found.shared, "special": len(shop.found.new) - shop.found.shared,
                "pieces": len(shop.found.pieces), "unknown": shop.found.unknown,
            },
        },
    )  # fmt: skip


def lost_bytes(b: Model, fit: Windows, corpus: Corpus) -> dict[str, float]:
    """The shares of bytes that A's tokenizer loses of some documents of the text, and B's of what A's leaves.

    Raises: UsageError where that is too much.
    """
    original = b.original
    assert isinstance(original, Original)
    given = original.rewriter.given
    some = corpus.documents[:: max(1, len(corpus.documents) // CHECKED)][:CHECKED]
    return {
        "a": require_lossless([given.read(content[:LONGEST]) for _, content in some], given.name),
        "b": require_lossless([passage.own for passage in _passages(original, fit)], b.name),
    }


def workshop(b: Model, fit: Windows, seed: int, progress: Progress | None = None) -> Workshop:
    """What rows for A's vocabulary are made from."""
    original = b.original
    assert isinstance(original, Original)
    own, new = original.rewriter.own, original.rewriter.given
    return Workshop(original.model, None, own, new, correspond(own, new), _passages(original, fit), seed, progress)


def _passages(original: Original, windows: Windows) -> list[Passage]:
    """Text without special tokens from the first windows, together FIT tokens of A, in runs that B takes at once.

    Raises: UsageError where there is no such run.
    """
    found, count = [], 0
    for ids in windows.ids:
        for given, own in original.rewriter.runs(ids.tolist()):
            if len(given.ids) >= SHORTEST and 0 < len(own.ids) < original.longest and count < FIT:
                found.append(Passage(own, given))
                count += len(given.ids)
        if count >= FIT:
            break
    if not found:
        raise UsageError(
            f"text must have runs of at least {SHORTEST} tokens that {original.model.name} reads in at most {original.longest} "
            f"of its own, with one at the start; the first {len(windows.ids)} windows have none: lower `context`."
        )
    return found
