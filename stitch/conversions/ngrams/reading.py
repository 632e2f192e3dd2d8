"""Reads a text for an n-gram memory: all tokens except BOS, with the ids before them and the stream to be looked up."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from stitch.activations.harvest import TOKENS_AT_ONCE
from stitch.activations.observe import residuals
from stitch.activations.paired import Tokens
from stitch.modeling.modeling_translation import ngram_keys
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.windows import Windows
from stitch.translation.types import Ngram, Position, Token


@dataclass(frozen=True)
class TableIndex:
    """What a table is looked up by, and the sorted keys that have rows."""

    by: Token | Position | Ngram
    keys: Int64[Tensor, " rows"] = field(repr=False)

    @property
    def reach(self) -> int:
        """The number of ids before a token that it reads."""
        return self.by.back if isinstance(self.by, Token) else self.by.order - 1 if isinstance(self.by, Ngram) else 0

    def rows(self, tokens: Tokens, vocabulary: int) -> Int64[Tensor, " tokens"]:
        """The row of the table for each token, −1 where it has none."""
        if not len(self.keys):
            return torch.full_like(tokens.positions, -1)
        match self.by:
            case Token(back):
                own, reaches = tokens.ids[:, back].contiguous(), tokens.ids[:, back] >= 0
            case Position():
                own, reaches = tokens.positions, torch.ones_like(tokens.positions, dtype=torch.bool)
            case Ngram(order, _):
                own = ngram_keys([tokens.ids[:, back].clamp_min(0) for back in range(order)], vocabulary)
                reaches = tokens.ids[:, order - 1] >= 0
        place = torch.searchsorted(self.keys, own).clamp_max(len(self.keys) - 1)
        return torch.where((self.keys[place] == own) & reaches, place, -1)


def history(ids: Int[Tensor, "windows context"], reach: int) -> Int64[Tensor, "tokens back"]:
    """Ids of all tokens except the windows' first, each with the `reach` ids before it; −1 before the window."""
    columns = []
    for back in range(reach + 1):
        moved = torch.full_like(ids, -1)
        moved[:, back:] = ids[:, : ids.shape[1] - back]
        columns.append(moved[:, 1:].flatten())
    return torch.stack(columns, 1).long()


def stream(
    model: Model, windows: Windows, site: int, reach: int, progress: Progress | None = None, task: str = "reading"
) -> Iterator[Tokens]:
    """The tokens of `windows` with the stream entering block `site` as the target, one forward pass at a time.

    Those that end inside a token of the model's own tokenizer are left out.
    """
    batch = max(1, TOKENS_AT_ONCE.get(model.device.type, TOKENS_AT_ONCE["cpu"]) // windows.context)
    done = 0
    for ids in windows.ids.split(batch) if windows.tokens else ():
        target = residuals(model, ids.to(model.device).long(), [site])[site][:, 1:].flatten(0, 1)
        positions = torch.arange(1, ids.shape[1]).repeat(len(ids))
        found = Tokens({}, history(ids, reach), positions, target.float().cpu())
        yield found if model.original is None else _some(found, model.original.coincides(ids)[:, 1:].flatten())
        done += ids.numel()
        if progress:
            progress(f"{task} (tokens)", done, windows.tokens)


def _some(tokens: Tokens, chosen: Bool[Tensor, " tokens"]) -> Tokens:
    """Those that are `chosen`. `tokens` have no streams."""
    return Tokens({}, tokens.ids[chosen], tokens.positions[chosen], tokens.target[chosen])
