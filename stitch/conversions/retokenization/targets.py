"""What the model, reading in its own tokens, says of the next new token, also inside one of its own."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.conversions.retokenization.passages import Passage
from stitch.conversions.retokenization.scoring import Head, logits
from stitch.conversions.retokenization.streams import OnText
from stitch.text.alignment import beside
from stitch.text.reader import Reader


@dataclass(frozen=True)
class NextToken:
    """The model's own predictions as probabilities of new tokens: p T after a whole token of its own (see `transfer_matrix`).

    After new tokens that are only the beginning of a token of its own, what is left are its tokens that begin with them.
    """

    matrix: Float[Tensor, "own new"]
    own: Reader
    new: Reader
    head: Head
    cap: float | None

    @cached_property
    def beginning_with(self) -> dict[tuple[int, ...], tuple[Tensor, Tensor]]:
        """For a beginning in new tokens: the model's tokens that go on after it, and the new token that each goes on with."""
        spelt = [(index, piece) for index, piece in enumerate(self.own.vocabulary.pieces[: len(self.head)]) if piece]
        found: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
        for (index, _), tokens in zip(spelt, self.new.spell([piece for _, piece in spelt]), strict=True):
            for size in range(1, len(tokens)):
                found[tokens[:size]].append((index, tokens[size]))
        return {
            begun: (torch.tensor([index for index, _ in pairs]), torch.tensor([token for _, token in pairs]))
            for begun, pairs in found.items()
        }

    def on(
        self, on: OnText, passages: Sequence[Passage]
    ) -> Iterator[tuple[Int[Tensor, " positions"], Float[Tensor, "positions new"]]]:
        """For each passage, positions in its new tokens (0 is BOS) and the probabilities of the token that follows.

        Positions that are neither at the end of a token of the model's nor at a known beginning of one are left out.
        """
        turned = self.matrix.T.to(on.final.device)
        for passage, (start, stop) in zip(passages, pairwise(on.starts), strict=True):
            own = logits(on.final[start:stop], self.head, self.cap).softmax(-1)
            lies = beside(passage.new, passage.own)
            at = torch.cat([torch.tensor([0]), lies.index + 1])  # the position of the model's own that ended last
            whole = torch.cat([torch.tensor([True]), lies.coincides])
            places = whole.nonzero()[:, 0]
            rows = [torch.sparse.mm(turned, own[at[places].to(own.device)].T).T]
            inside, since = [], ()
            for place in range(1, len(at)):
                since = () if whole[place] else (*since, int(passage.new.ids[place - 1]))
                if since in self.beginning_with:
                    tokens, following = self.beginning_with[since]
                    left = own[at[place], tokens.to(own.device)]
                    row = torch.zeros(self.matrix.shape[1], device=own.device)
                    row.index_add_(0, following.to(own.device), left / left.sum().clamp_min(1e-30))
                    inside.append(place)
                    rows.append(row[None])
            yield torch.cat([places, torch.tensor(inside, dtype=torch.long)]), torch.cat(rows)
