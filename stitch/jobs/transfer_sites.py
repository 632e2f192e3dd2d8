"""What is carried between: a site of each model, the streams of both at the same bytes, and each model in its own tokens."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from stitch.activations.harvest import harvest, windows_per_shard
from stitch.activations.paired import Paired, pair, without_sinks
from stitch.composite.cuts import exact_streams_from
from stitch.config import CompleteSettings
from stitch.evaluation.scores import Logits, Scores, evaluate
from stitch.evaluation.stage import Stage
from stitch.files.job import Clock
from stitch.files.store import Store
from stitch.jobs.pair.streams import harvest_pair
from stitch.jobs.pair.text import read_corpus, require_all_rows, windows_of
from stitch.jobs.transfer_across import Across, read_across
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.report.across import bits_per_byte
from stitch.text.documents import SPLITS, Split
from stitch.text.windows import Windows
from stitch.transfers.maps import Maps, all_maps, pair_moments, unexplained
from stitch.transfers.maps import Split as SplitMoments


@dataclass(frozen=True)
class Side:
    """A model on the report split, in its own tokens.

    `lengths` are the bytes of each id where the other model reads other tokens: special ones, which have none, then do not count.
    """

    stage: Stage
    lengths: Float[Tensor, " vocabulary"] | None = None

    @property
    def windows(self) -> Windows:
        return self.stage.windows

    @property
    def bytes_per_token(self) -> float | None:
        """Of the predicted tokens that count; None where both models read the same tokens."""
        if self.lengths is None:
            return None
        sizes = self.lengths[self.windows.ids[:, 1:].flatten().long()]
        return float(sizes.sum() / (sizes > 0).sum())

    def scores(self, rows: dict[str, Logits], progress: Progress | None) -> dict[str, Scores]:
        return evaluate(
            rows, self.windows, vocabulary=self.stage.vocabulary, memory=self.stage.memory, progress=progress,
            counted=None if self.lengths is None else self.lengths > 0,
        )  # fmt: skip

    def row(self, name: str, scores: Scores) -> dict:
        """The row as the report has it: nothing is compared with B's predictions."""
        found = {key: value for key, value in scores.row(name).items() if key not in ("kl_to_b", "top1")}
        return self.in_bits(found)

    def in_bits(self, row: dict) -> dict:
        """The row with bits per byte, where the other model's tokens are others."""
        return row if self.bytes_per_token is None else bits_per_byte(row, self.bytes_per_token)


@dataclass(frozen=True)
class Sites:
    """Two models and the site of each.

    `paired` has both streams at the same bytes, by split, and `own_b` all that B's is fitted and measured on; both are of B's
    tokens. `side_a` and `side_b` are the models on the report split. Where both read the same tokens, all of these are one pair.
    Otherwise `across` says what is different.
    """

    settings: CompleteSettings
    a: Model
    b: Model
    paired: dict[Split, Paired]
    own_b: dict[Split, Paired]
    side_a: Side
    side_b: Side
    across: Across | None
    scratch: Path
    clock: Clock
    progress: Progress | None

    @property
    def text(self) -> dict:
        """What the report's provenance says of the text."""
        return self.own_b["fit"].b.windows.provenance

    @cached_property
    def moments(self) -> SplitMoments:
        return pair_moments(self.paired["fit"], self.paired["sweep"])

    @cached_property
    def maps(self) -> dict[str, Maps]:
        with self.clock.stage("maps"):
            return all_maps(self.moments, self.settings.seed)

    def own_stream_a(self) -> Iterator[Float[Tensor, "_ d_a"]]:
        """A's stream on the report split."""
        return (x.float() for x, _, _ in self.side_a.stage.paired.chunks())

    def own_stream_b(self, split: Split) -> Iterator[Float[Tensor, "_ d_b"]]:
        return (y.float() for _, y, _ in self.own_b[split].chunks())

    def paired_stream_a(self, split: Split) -> Iterator[Float[Tensor, "_ d_a"]]:
        """A's stream at the bytes of `paired_stream_b`."""
        return (x.float() for x, _, _ in self.paired[split].chunks())

    def paired_stream_b(self, split: Split) -> Iterator[Float[Tensor, "_ d_b"]]:
        return (y.float() for _, y, _ in self.paired[split].chunks())

    def described(self) -> dict:
        """The part of the report that does not depend on what is carried."""
        return {
            "models": {"a": self.a.name, "b": self.b.name},
            "site": {"a": self.settings.layer, "b": self.settings.layer_b},
            "tokens": {split: one.b.windows.tokens for split, one in self.own_b.items()},
            "unexplained": {name: unexplained(maps, self.moments) for name, maps in self.maps.items()},
            **({} if self.across is None else {"across": self._described_across(self.across)}),
        }

    def _described_across(self, across: Across) -> dict:
        return {
            **across.described,
            "pairs": {split: one.tokens for split, one in self.paired.items()},
            "tokens_a": self.side_a.windows.tokens,
            "bytes_per_token": {"a": self.side_a.bytes_per_token, "b": self.side_b.bytes_per_token},
        }


def read_sites(
    settings: CompleteSettings,
    a: Model,
    b: Model,
    scratch: Path,
    clock: Clock,
    progress: Progress | None = None,
    store: Store | None = None,
) -> Sites:
    """Reads the text and writes the streams at both sites to `scratch`; those of earlier runs are taken from `store`.

    Raises: UsageError for two tokenizers that have too little in common.
    """
    with clock.stage("text"):
        corpus = read_corpus(settings, a, b, progress, store=store)
        windows = windows_of(corpus, settings, a, b, progress)
        across = read_across(settings, a, b, windows, corpus)
        if across is None:
            require_all_rows(windows, a)
    with clock.stage("activations"):
        beside_b = a if across is None else across.a
        paired: dict[Split, Paired] = {
            split: harvest_pair(settings, beside_b, b, windows[split], scratch / split, progress, store)
            for split in SPLITS
        }
        if across is None:
            both = Side(Stage(a, b, *settings.sites, paired["report"], settings.memory))
            return Sites(settings, a, b, paired, paired, both, both, None, scratch, clock, progress)
        own_a = _own_streams(settings, a, across.windows_a, scratch / "own-a", progress, store)
    own_b: dict[Split, Paired] = {split: _alone(one) for split, one in paired.items()}
    side_a = Side(Stage(a, a, settings.layer, settings.layer, own_a, settings.memory), across.lengths_a)
    side_b = Side(Stage(b, b, settings.layer_b, settings.layer_b, own_b["report"], settings.memory), across.lengths_b)
    return Sites(settings, a, b, paired, own_b, side_a, side_b, across, scratch, clock, progress)


def _own_streams(
    settings: CompleteSettings, a: Model, windows: Windows, folder: Path, progress: Progress | None, store: Store | None
) -> Paired:
    """A's stream over some windows in its own tokens, beside itself."""
    per_shard = windows_per_shard(settings.context, a.width_at(settings.layer), a.dtype, settings.memory)
    found = harvest(
        a, windows, [settings.layer], folder, per_shard=per_shard, store=store, late=exact_streams_from, progress=progress,
    )  # fmt: skip
    return pair(found, found, settings.layer, settings.layer)


def _alone(paired: Paired) -> Paired:
    """B's stream beside itself: at all of its tokens, not only where one of A's ends."""
    b, site = paired.b, paired.site_b
    return replace(paired, a=b, site_a=site, keep=without_sinks(b, [site]))
