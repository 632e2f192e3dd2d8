"""The rows of a report: what each of them feeds into B's late blocks, and how rows compare."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae.types import Dictionary
from stitch.activations import Paired
from stitch.composite import late_half, late_logits, translation_module
from stitch.costs import Costs
from stitch.evaluate import Batch, Logits, Scores, whole_model
from stitch.models import Model
from stitch.tokens import Windows
from stitch.translation.types import Translation


@dataclass(frozen=True)
class Stage:
    """Both models and their cached activations on one split. Rows read A's stream from the cache and run B's late half alone."""

    a: Model
    b: Model
    site_a: int
    site_b: int
    paired: Paired
    memory: int
    late_of_b: PreTrainedModel | None = None  # the late half, where it is at hand already
    _streams: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def windows(self) -> Windows:
        return self.paired.a.windows

    @property
    def vocabulary(self) -> int:
        """Ids that both models have logits for; the rest are padding rows of one embedding."""
        return min(self.a.config.vocab_size, self.b.config.vocab_size)

    def stream(self, site: int) -> Float[Tensor, "windows context d_a"]:
        """A's stream entering block `site`."""
        if site not in self._streams:
            shards = range(self.paired.a.shards)
            self._streams[site] = torch.cat([self.paired.a.read(shard, site) for shard in shards])
        return self._streams[site]

    @cached_property
    def y(self) -> Float[Tensor, "windows context d_b"]:
        return torch.cat([self.paired.b.read(shard, self.site_b) for shard in range(self.paired.b.shards)])

    @cached_property
    def late(self) -> PreTrainedModel:
        return late_half(self.b, self.site_b) if self.late_of_b is None else self.late_of_b

    def whole(self, net: nn.Module) -> Logits:
        return whole_model(net)

    def translated(self, *draws: Translation) -> Logits:
        """A's stream through a translation; of several (draws of one null), window w goes through draw w modulo their number."""
        modules = [translation_module(draw, self.a, self.b, self.site_a) for draw in draws]
        sites = {site for draw in draws for site in draw.sites}

        def logits(batch: Batch) -> Tensor:
            ids = batch.ids.to(self.b.device)
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            streams = {site: self.stream(site)[batch.rows].to(ids.device) for site in sites}
            translated = torch.empty(*ids.shape, self.b.width, device=ids.device)
            for number, module in enumerate(modules):
                mine = slice((number - batch.rows.start) % len(modules), None, len(modules))
                if len(ids[mine]):
                    mine_of = {site: stream[mine] for site, stream in streams.items()}
                    translated[mine] = module(mine_of, ids[mine], positions[mine])
            return late_logits(self.late, translated)

        return logits

    def constant(self, value: Float[Tensor, " d_b"]) -> Logits:
        """The same vector everywhere, BOS included: nothing at all comes from the text."""
        return lambda batch: late_logits(self.late, value.to(self.b.device).expand(*batch.ids.shape, -1))

    def wrong_text(self) -> Logits:
        """B's own stream, of the next window: everything right but the text."""
        count = len(self.windows.ids)

        def logits(batch: Batch) -> Tensor:
            other = (torch.arange(batch.rows.start, batch.rows.stop) + 1) % count
            return late_logits(self.late, self.y[other].to(self.b.device))

        return logits

    def spliced_b(self, dictionary: Dictionary) -> Logits:
        """B with its SAE's reconstruction in place of its stream: the ceiling of every route through SAE_B's features."""
        return _spliced(self.late, self.y, self.paired, dictionary)

    def spliced_a(self, dictionary: Dictionary) -> Logits:
        """A with its SAE's reconstruction: what SAE_A loses before any stitching."""
        return _spliced(late_half(self.a, self.site_a), self.stream(self.site_a), self.paired, dictionary)


def _spliced(late: PreTrainedModel, stream: Tensor, paired: Paired, dictionary: Dictionary) -> Logits:
    device = dictionary.decoder.device

    def logits(batch: Batch) -> Tensor:
        own = stream[batch.rows].to(device)
        keep = paired.keep[batch.rows].to(device)  # the SAE has never seen BOS and sinks: they stay as they are
        return late_logits(late, torch.where(keep[..., None], dictionary(own).to(own.dtype), own))

    return logits


def ranked(scores: dict[str, Scores]) -> list[str]:
    """Row names in the order of the report: the models, then each kind, best first."""
    kinds = ("translation", "floor", "ceiling", "reference", "null")
    rest = [name for name in scores if name.partition(":")[0] in kinds]
    return [
        "a",
        "b",
        "composite",
        *sorted(rest, key=lambda name: (kinds.index(name.partition(":")[0]), scores[name].ce)),
    ]


def line(costs: Costs, site_a: int, site_b: int, translation: Translation, scores: dict[str, Scores]) -> dict:
    """The yardstick: CE_A + share · (CE_B − CE_A), share the composite's place between A's and B's block FLOPs per token.

    The share is kept within 0..1; where both models cost the same it is the share of the composite's blocks that are B's.
    """
    cost = costs.flops(site_a, site_b, translation.multiply_adds)
    share = costs.share(site_a, site_b, cost)
    ce = scores["a"].ce + share * (scores["b"].ce - scores["a"].ce)
    return {"name": "line", "ce": ce, "ce_low": None, "ce_high": None, "ppl": None, "kl_to_b": None, "top1": None,
            "share": share,
            "flops": {"a": sum(costs.source_blocks), "b": sum(costs.target_blocks), "composite": cost}}  # fmt: skip


def against_line(scores: dict[str, Scores], share: float) -> dict:
    """The paired difference of the composite and its line, whose nats are those of both models, mixed."""
    a, b = scores["a"], scores["b"]
    mixed = Scores(a.nats + share * (b.nats - a.nats), None, None, a.tokens)
    low, high = scores["composite"].interval(minus=mixed)
    difference = scores["composite"].ce - mixed.ce
    return {"name": "composite", "minus": "line", "ce": difference, "ce_low": low, "ce_high": high}


def differences(scores: dict[str, Scores], chosen: str, null_of: dict[str, str]) -> list[dict]:
    """Paired differences in nats, 95 % intervals: the composite against models and affine, each null against what it mocks."""
    against = ("a", "b", "translation:affine", "reference:affine-trained", "ceiling:sae-b", "null:no-source")
    pairs = [("composite", other) for other in against if other in scores]
    pairs += list(null_of.items())
    found = []
    for name, other in pairs:
        if name not in scores or other not in scores:
            continue
        low, high = scores[name].interval(minus=scores[other])
        found.append(
            {"name": name, "minus": other, "ce": scores[name].ce - scores[other].ce, "ce_low": low, "ce_high": high}
        )
    return found
