"""The logits of a report's rows: B's late half, run on what a row puts in place of B's stream."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae.types import Dictionary
from stitch.activations.paired import Paired
from stitch.composite.compose import late_half, late_logits, whole_from
from stitch.composite.cuts import can_be_cut
from stitch.evaluation.scores import Batch, Logits, whole_model
from stitch.modeling.modeling_halves import Half
from stitch.models.model import Model
from stitch.text.windows import Windows
from stitch.translation.module import embeddings_of, unfolded_module
from stitch.translation.types import Translation


@dataclass(frozen=True)
class Stage:
    """Both models and their activations on one split.

    Rows read A's stream from disk, some windows at a time, so only B's late half is run.
    """

    a: Model
    b: Model
    site_a: int
    site_b: int
    paired: Paired
    memory: int
    late_of_b: Half | None = None  # B's late half, if it has been built already

    @property
    def windows(self) -> Windows:
        return self.paired.a.windows

    @property
    def vocabulary(self) -> int:
        """The number of ids that both models have logits for. Others are padding rows of an embedding."""
        return min(self.a.vocabulary, self.b.vocabulary)

    @cached_property
    def counted(self) -> Bool[Tensor, " vocabulary"] | None:
        """The tokens whose predictions count; None: all. Across tokenizers those that stand for text, as special ones differ."""
        return None if self.b.original is None else self.b.original.bytes_of > 0

    def stream(self, site: int, rows: slice) -> Float[Tensor, "windows context d_a"]:
        """A's stream entering block `site`, in the windows `rows`."""
        return self.paired.a.at(site, rows)

    def y(self, rows: slice) -> Float[Tensor, "windows context d_b"]:
        """B's stream in the windows `rows`."""
        return self.paired.b.at(self.site_b, rows)

    @cached_property
    def late(self) -> Half:
        return late_half(self.b, self.site_b) if self.late_of_b is None else self.late_of_b

    def whole(self, net: nn.Module) -> Logits:
        return whole_model(net)

    def translated(self, *draws: Translation) -> Logits:
        """A's stream through a translation. Given several draws of a null, window w goes through draw w modulo their number."""
        modules = [unfolded_module(draw, self.a, self.b, self.site_a) for draw in draws]
        embeddings = embeddings_of(self.a, self.b)
        sites = {site for draw in draws for site in draw.sites}

        def logits(batch: Batch) -> Tensor:
            ids = batch.ids.to(self.b.device)
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            streams = {site: self.stream(site, batch.rows).to(ids.device) for site in sites}
            translated = torch.empty(*ids.shape, self.b.width, device=ids.device)
            for number, module in enumerate(modules):
                mine = slice((number - batch.rows.start) % len(modules), None, len(modules))
                if len(ids[mine]):
                    mine_of = {site: stream[mine] for site, stream in streams.items()}
                    translated[mine] = module(mine_of, ids[mine], positions[mine], embeddings=embeddings)
            return late_logits(self.late, translated, ids=ids)

        return logits

    def constant(self, value: Float[Tensor, " d_b"]) -> Logits:
        """The same vector at every position, BOS included, so nothing of the text is passed on."""

        def logits(batch: Batch) -> Tensor:
            ids = batch.ids.to(self.b.device)
            hidden = value.to(ids.device).expand(*ids.shape, -1).contiguous()  # some families cannot read it otherwise
            return late_logits(self.late, hidden, ids=ids)

        return logits

    def aligned(self) -> Logits:
        """B's own stream. Where B reads other tokens than A, it is that at the token which ends last."""

        def logits(batch: Batch) -> Tensor:
            return late_logits(self.late, self.y(batch.rows).to(self.b.device), ids=batch.ids.to(self.b.device))

        return logits

    def wrong_text(self) -> Logits:
        """B's own stream of the next window: right in distribution, but of another text."""
        count = len(self.windows.ids)

        def logits(batch: Batch) -> Tensor:
            other = slice(batch.rows.start + 1, min(batch.rows.stop + 1, count))
            around = [self.y(slice(0, 1))] if batch.rows.stop == count else []
            y = torch.cat([self.y(other), *around]) if other.start < count else around[0]
            return late_logits(self.late, y.to(self.b.device), ids=batch.ids.to(self.b.device))

        return logits

    def spliced_b(self, dictionary: Dictionary) -> Logits:
        """B with its SAE's reconstruction in place of its stream: the ceiling for any translation through B's features."""
        return _spliced(self.late, self.y, self.paired, dictionary)

    def spliced_a(self, dictionary: Dictionary) -> Logits:
        """A with its SAE's reconstruction in place of its stream: what A's SAE loses before any translation."""
        late = late_half if can_be_cut(self.a, self.site_a) else whole_from
        return _spliced(late(self.a, self.site_a), partial(self.stream, self.site_a), self.paired, dictionary)


def _spliced(late: Half, stream: Callable[[slice], Tensor], paired: Paired, dictionary: Dictionary) -> Logits:
    device = dictionary.decoder.device
    spliced = paired.keep if paired.b.exact is None else paired.keep | ~paired.b.exact

    def logits(batch: Batch) -> Tensor:
        own = stream(batch.rows).to(device)
        # SAEs are not trained on BOS and attention sinks: these are kept as they are.
        keep = spliced[batch.rows].to(device)
        hidden = torch.where(keep[..., None], dictionary(own).to(own.dtype), own)
        return late_logits(late, hidden, ids=batch.ids.to(device))

    return logits
