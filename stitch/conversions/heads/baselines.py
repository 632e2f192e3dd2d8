"""Baselines and null for merging key heads, as maps of the same form: mean pooling, first head, rotate-then-mean, random."""

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.conversions.heads.merge import Keys, Values


def pooled_keys(old: int, d: int, head_of: tuple[int, ...]) -> Keys:
    """The mean of the group's key heads; queries are unchanged. Source: GQA, arXiv 2305.13245."""
    eye = torch.eye(d, dtype=torch.float64)
    return Keys(torch.cat([eye / old] * old, 1), torch.stack([eye for _ in head_of]))


def first_keys(old: int, d: int, head_of: tuple[int, ...]) -> Keys:
    """The first key head of the group; queries are unchanged."""
    eye = torch.eye(d, old * d, dtype=torch.float64)
    return Keys(eye, torch.stack([eye[:, :d] for _ in head_of]))


def random_keys(old: int, d: int, head_of: tuple[int, ...], generator: torch.Generator) -> Keys:
    """Random mixtures of the group's keys."""
    mix = torch.randn(d, old * d, generator=generator, dtype=torch.float64) / (old * d) ** 0.5
    eye = torch.eye(d, dtype=torch.float64)
    return Keys(mix, torch.stack([eye for _ in head_of]))


def turned_keys(moment: Float[Tensor, "stacked stacked"], d: int, head_of: tuple[int, ...], *, rotary: bool) -> Keys:
    """The mean of all old heads after each is rotated onto the first. Queries are rotated with their keys.

    With RoPE the rotation is one angle per plane, which commutes with RoPE; otherwise any orthogonal matrix (Procrustes).
    Source: mha2gqa, arXiv 2412.20677.
    """
    turns = alignments(moment, d, rotary=rotary)
    return Keys(torch.cat(turns, 1) / len(turns), torch.stack([turns[head] for head in head_of]))


def turned_values(
    moment: Float[Tensor, "stacked stacked"], output: Float[Tensor, "heads d width"], head_of: tuple[int, ...]
) -> Values:
    """Values merged like `turned_keys`; the output weights undo the rotation."""
    d = output.shape[1]
    turns = alignments(moment, d, rotary=False)
    return Values(
        torch.cat(turns, 1) / len(turns),
        torch.stack([turns[head] @ own for head, own in zip(head_of, output, strict=True)]),
    )


def alignments(moment: Float[Tensor, "stacked stacked"], d: int, *, rotary: bool) -> list[Float[Tensor, "d d"]]:
    """Orthogonal R_g that minimise E‖R_g k_g − k_0‖²."""
    found = [torch.eye(d, dtype=torch.float64)]
    for head in range(1, len(moment) // d):
        cross = moment[:d, head * d : (head + 1) * d]  # E k_0 k_gᵀ
        if not rotary:
            u, _, v = torch.linalg.svd(cross)
            found.append(u @ v)
            continue
        half = d // 2
        plane = torch.arange(half)
        real = cross[plane, plane] + cross[plane + half, plane + half]
        imaginary = cross[plane + half, plane] - cross[plane, plane + half]
        cos, sin = real / (length := torch.hypot(real, imaginary).clamp_min(1e-300)), imaginary / length
        found.append(torch.cat([
            torch.cat([cos.diag(), -sin.diag()], 1), torch.cat([sin.diag(), cos.diag()], 1)
        ]))  # fmt: skip
    return found


def pooled_values(old: int, output: Float[Tensor, "heads d width"]) -> Values:
    eye = torch.eye(output.shape[1], dtype=torch.float64)
    return Values(torch.cat([eye / old] * old, 1), output)


def first_values(old: int, output: Float[Tensor, "heads d width"]) -> Values:
    d = output.shape[1]
    return Values(torch.eye(d, old * d, dtype=torch.float64), output)


def random_values(old: int, output: Float[Tensor, "heads d width"], generator: torch.Generator) -> Values:
    d = output.shape[1]
    return Values(torch.randn(d, old * d, generator=generator, dtype=torch.float64) / (old * d) ** 0.5, output)
