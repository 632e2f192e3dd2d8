"""B's embeddings and context-free states of the tokens of a text as inputs of a regression, with a fall-back for other tokens.

Cost follows the text: the tokens that occur in it have rows. A composite also meets others. Their embedding and state
are predicted from an embedding that the composite holds anyway: B's if it is tied to B's head, otherwise A's. For B's tied
embedding the first prediction is exact; all others are ridge regressions on the tokens that occur, with λ and the reported loss
from tokens that are left out of the fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.models.model import Model
from stitch.progress import Progress
from stitch.regression.moments import accumulate
from stitch.regression.ridge import ridge
from stitch.text.windows import Windows
from stitch.translation import look_ups
from stitch.translation.inputs import ByToken
from stitch.translation.types import Fallback

HELD_OUT = 8  # every 8th token chooses λ
EXACT = 1e-2  # of the norm: rounding in bfloat16
AT_ONCE = 8192  # tokens whose products are formed at a time
SMALL = 16_384  # ids whose states are computed in seconds, whether they occur or not: then none needs a fall-back


@dataclass(frozen=True)
class TokenTables:
    """What occurs in a text, and tables of B for it. `keys` is None if every id of the vocabulary occurs.

    `unexplained`: the share of the variance of each table that its fall-back leaves unexplained on tokens left out of its fit.
    """

    vocabulary: int
    keys: Int64[Tensor, " entries"] | None
    share: float  # of tokens that are expected to have no row
    tables: dict[str, Float[Tensor, "entries d"]]
    fallbacks: dict[str, Fallback]
    unexplained: dict[str, float]

    def input(self, name: str, back: int = 0) -> ByToken:
        return ByToken(self.tables[name], back, self.keys, self.fallbacks.get(name))

    def described(self) -> dict:
        """As report.json has it."""
        entries = len(next(iter(self.tables.values())))
        of = {fallback.of for fallback in self.fallbacks.values()}
        return {
            "vocabulary": self.vocabulary, "tokens_with_rows": entries, "tokens_without_rows": self.vocabulary - entries,
            "expected_share_without_rows": self.share, "fallback_reads": f"the embedding of {of.pop()}" if of else None,
            "unexplained": self.unexplained,
        }  # fmt: skip


def token_tables(
    a: Model,
    b: Model,
    fit: Windows,
    held_out: Windows,
    site: int | None,
    progress: Progress | None = None,
    *,
    small: int = SMALL,
) -> TokenTables:
    """Tables of the tokens of both texts: `embedding`, and with a `site` the `state` entering that block of B.

    Where the vocabulary has at most `small` ids, and no more than the fit text has tokens, they are tables of all ids.
    """
    vocabulary = min(b.vocabulary, b.embedding.num_embeddings)  # they differ in a composite of such parts
    is_small = vocabulary <= min(small, fit.tokens)
    ids = torch.arange(vocabulary) if is_small else look_ups.occurring(fit.ids, held_out.ids)
    tables = {"embedding": look_ups.embeddings(b, ids)}
    if site is not None:
        tables["state"] = look_ups.context_free(b, site, ids, progress)
    if len(ids) == vocabulary:
        return TokenTables(vocabulary, None, 0.0, tables, {}, {})
    share = float((~torch.isin(held_out.ids, fit.ids.unique())).double().mean())
    fallbacks, unexplained = _fallbacks(a, b, ids, tables, share)
    return TokenTables(vocabulary, ids, share, tables, fallbacks, unexplained)


@torch.no_grad()
def _fallbacks(
    a: Model, b: Model, ids: Tensor, tables: Mapping[str, Tensor], share: float
) -> tuple[dict[str, Fallback], dict[str, float]]:
    is_tied = b.head.get_parameter("weight").data_ptr() == b.embedding.weight.data_ptr()
    of, holder = ("b", b) if is_tied else ("a", a)
    held = holder.embedding.weight[ids.to(b.device)].float()
    fallbacks, unexplained = {}, {}
    for name, table in tables.items():
        is_stored = name == "embedding" and holder.embedding.weight.data_ptr() == b.embedding.weight.data_ptr()
        scale = _scale(table, held.to(table.device)) if is_stored else None
        if scale is not None:
            weight, left = scale * torch.eye(held.shape[1] + 1, held.shape[1]), 0.0
        elif len(ids) < 2 * HELD_OUT:  # too few to fit anything
            weight, left = torch.cat([held.new_zeros(held.shape[1], table.shape[1]), table.mean(0)[None]]), 1.0
        else:
            weight, left = _prediction(held.cpu(), table.cpu())
        fallbacks[name], unexplained[name] = Fallback(of, weight.float().cpu(), share), left
    return fallbacks, unexplained


def _scale(table: Float[Tensor, "tokens d_out"], held: Float[Tensor, "tokens d_in"]) -> float | None:
    """The number that the stored rows are multiplied by, None where that is not all that the embedding does."""
    if table.shape != held.shape:
        return None
    scale = float((table * held).sum() / held.square().sum())
    return scale if float((table - scale * held).norm()) <= EXACT * float(table.norm()) else None


def _prediction(
    known: Float[Tensor, "tokens d_in"], wanted: Float[Tensor, "tokens d_out"]
) -> tuple[Float[Tensor, "d_in_and_1 d_out"], float]:
    """Weights and constant of a ridge regression, and the share of the variance that it leaves on the tokens left out."""
    left_out = torch.zeros(len(known), dtype=torch.bool)
    left_out[::HELD_OUT] = True
    fit, held = (
        accumulate(
            ({"known": x, "target": y} for x, y in zip(known[some].split(AT_ONCE), wanted[some].split(AT_ONCE), strict=True)),
            [("known", "known"), ("known", "target"), ("target", "target")],
        )
        for some in (~left_out, left_out)
    )  # fmt: skip
    found = ridge(fit, held, ("known",))
    return torch.cat([found.weights["known"], found.bias[None]]), found.unexplained
