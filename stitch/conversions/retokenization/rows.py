"""Rows of an embedding or a head for a new vocabulary: copied ones, and those of tokens that consist of several pieces."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.text.correspondence import Correspondence

Rows = Float[Tensor, "_ d"]  # by token id; of two vocabularies in one call


def copied(own: Rows, found: Correspondence) -> Rows:
    """Copied rows, in float32; all others are the mean of the copied ones."""
    taken = own.float()[found.own.to(own.device)]
    rows = taken.mean(0).repeat(found.size, 1)
    rows[found.new.to(own.device)] = taken
    return rows


def mean_of_pieces(own: Rows, found: Correspondence) -> Rows:
    """Copied rows, and the means of the rows of a token's pieces. Source: Gee et al. 2022 (fast vocabulary transfer)."""
    rows = copied(own, found)
    places, tokens = _all_pieces(found)
    sums = torch.zeros(found.size, own.shape[1], device=own.device)
    sums.index_add_(0, places.to(own.device), own.float()[tokens.to(own.device)])
    counts = torch.bincount(places, minlength=found.size).to(own.device)
    several = counts > 0
    rows[several] = sums[several] / counts[several, None]
    return rows


def one_piece(own: Rows, found: Correspondence, which: int) -> Rows:
    """Copied rows, and those of the first piece of a token (`which` 0) or of its last (−1)."""
    rows = copied(own, found)
    tokens = torch.tensor([pieces[which] for pieces in found.pieces.values()], dtype=torch.long, device=own.device)
    rows[filled(found).to(own.device)] = own.float()[tokens]
    return rows


def filled(found: Correspondence) -> Int[Tensor, " tokens"]:
    """The new tokens whose rows are made, and not copied."""
    return torch.tensor(list(found.pieces), dtype=torch.long)


def _all_pieces(found: Correspondence) -> tuple[Int[Tensor, " pieces"], Int[Tensor, " pieces"]]:
    """Every piece of every such token: the new token, and the model's own."""
    pairs = [(token, piece) for token, pieces in found.pieces.items() for piece in pieces]
    new, own = zip(*pairs, strict=True) if pairs else ((), ())
    return torch.tensor(new, dtype=torch.long), torch.tensor(own, dtype=torch.long)


def clipped(rows: Rows, own: Rows, found: Correspondence) -> tuple[Rows, int]:
    """Rows that are at most as long as the longest copied row that stands for text, and how many were shortened for that.

    A donor can be made so that a few tokens get huge rows (arXiv 2601.00065); what it can do with short ones is seen on a text
    alone (`loud.py`). Short rows stay: a mean of rows in different
    directions says little of any one of them, and a head that gives it their full length says it too loudly.
    """
    most = own.float()[found.own[: found.shared].to(own.device)].norm(dim=1).max()
    now = rows.norm(dim=1)
    outside = now > most * (1 + 1e-5)
    outside[found.new.to(own.device)] = False
    return torch.where(outside[:, None], rows * (most / now.clamp_min(1e-30))[:, None], rows), int(outside.sum())


def random_rows(rows: Rows, found: Correspondence, seed: int) -> Rows:
    """The null of what is made: rows in random directions, as long as those of `rows`."""
    generator, made = torch.Generator().manual_seed(seed), filled(found)
    noise = torch.randn(len(made), rows.shape[1], generator=generator).to(rows.device)
    changed = rows.clone()
    lengths = rows[made.to(rows.device)].norm(dim=1, keepdim=True)
    changed[made.to(rows.device)] = noise / noise.norm(dim=1, keepdim=True) * lengths
    return changed


def shuffled_rows(rows: Rows, found: Correspondence, seed: int) -> Rows:
    """The null of copying: the rows of shared tokens, each given to another."""
    generator, shared = torch.Generator().manual_seed(seed), found.new[: found.shared].to(rows.device)
    changed = rows.clone()
    changed[shared] = rows[shared[torch.randperm(len(shared), generator=generator).to(rows.device)]]
    return changed
