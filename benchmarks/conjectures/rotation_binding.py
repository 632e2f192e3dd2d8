"""Conjecture: the value-output maps of a block's heads are near-orthogonal to each other and to the identity, so that one linear
read of the stream tells a head's token from the present one.

    python benchmarks/conjectures/rotation_binding.py

For every head, M = W_V W_O in coordinates in which the stream entering the block is white. Measure: `flatness`, the
participation ratio of M's squared singular values over its rank (1: a rotation, scaled); `identity`, |tr M| / (‖M‖ √r), and
`crosstalk`, the root mean square over pairs of heads of ⟨M, M'⟩ / (‖M‖ ‖M'‖). Null: the same singular values with random
singular vectors, three draws.

Rule, set before the run: holds for a model where crosstalk and identity, as medians over blocks, are at most the null's
largest draw and flatness is at least 0.5; refuted where crosstalk and identity are both above twice the null's, or flatness
is below 0.25; partly otherwise. No documents are scored; the whiteness is from 112 windows.
"""

import argparse
from statistics import median

import _shared
import torch
from torch import Tensor

from stitch.activations.observe import residuals
from stitch.internals.weights import attention, norm
from stitch.layers.moments import Moments


def maps(found: _shared.Subject, block: int, root: Tensor, back: Tensor) -> Tensor:
    """Every head's map from the stream to the stream, [heads, width, width], in white coordinates."""
    heads = attention(found.model, block)
    gain = norm(found.model, "attention", block).gain.double()
    values = heads.v.double().repeat_interleave(heads.q.shape[1] // heads.v.shape[1], 1)  # [width, heads, d]
    return torch.einsum("ij,j,jhd,hdk,kl->hil", root, gain, values, heads.o.double(), back)


def statistics(heads: Tensor) -> dict[str, float]:
    width = heads.shape[-1]
    flat, singular = heads.flatten(1), torch.linalg.svdvals(heads)
    power = singular.square()
    rank = (singular > 1e-6 * singular[:, :1]).sum(1)
    flatness = power.sum(1) ** 2 / power.square().sum(1) / rank
    cosine = torch.nn.functional.normalize(flat, dim=1) @ torch.nn.functional.normalize(flat, dim=1).T
    off = cosine[~torch.eye(len(heads), dtype=torch.bool)]
    trace = heads.diagonal(dim1=1, dim2=2).sum(1).abs() / (flat.norm(dim=1) * width**0.5)
    return {
        "flatness": float(flatness.mean()),
        "identity": float(trace.mean()),
        "crosstalk": float(off.square().mean().sqrt()),
    }


def drawn(heads: Tensor, seed: int) -> Tensor:
    """Maps with the same singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    singular = torch.linalg.svdvals(heads)
    rank = int((singular > 1e-6 * singular[:, :1]).sum(1).max())

    def basis() -> Tensor:
        return torch.linalg.qr(torch.randn(len(heads), heads.shape[-1], rank, generator=generator, dtype=heads.dtype))[
            0
        ]

    return basis() @ torch.diag_embed(singular[:, :rank]) @ basis().mT


@torch.no_grad()
def measure(name: str, given: argparse.Namespace) -> None:
    found = _shared.subject(name, context=128, windows=28 if given.small else 112)
    model, blocks = found.model, []
    moments = {site: Moments(torch.eye(model.width, dtype=torch.float64)) for site in range(model.depth)}
    for row in range(len(found.windows.ids)):
        for site, stream in residuals(model, found.windows.ids[row : row + 1].long(), range(model.depth)).items():
            moments[site].add(stream[0, 1:])
    for block in range(model.depth):
        values, vectors = torch.linalg.eigh(moments[block].covariance)
        scale = values.clamp_min(1e-6 * float(values.max())).sqrt()
        root, back = vectors * scale @ vectors.T, vectors / scale @ vectors.T
        heads = maps(found, block, root, back)
        nulls = [statistics(drawn(heads, seed)) for seed in _shared.SEEDS]
        blocks.append({"block": block, **statistics(heads), "null": nulls})

    def middle(key: str, seed: int | None = None) -> float:
        return median(block[key] if seed is None else block["null"][seed][key] for block in blocks)

    numbers = {key: middle(key) for key in ("flatness", "identity", "crosstalk")}
    null = {key: [middle(key, seed) for seed in _shared.SEEDS] for key in numbers}
    within = [numbers[key] <= max(null[key]) for key in ("identity", "crosstalk")]
    beyond = [numbers[key] > 2 * max(null[key]) for key in ("identity", "crosstalk")]
    if all(within) and numbers["flatness"] >= 0.5:
        verdict = "holds"
    else:
        verdict = "refuted" if all(beyond) or numbers["flatness"] < 0.25 else "partly"
    _shared.tell("rotation_binding", name, verdict, **numbers, null=null, blocks=blocks)


if __name__ == "__main__":
    _shared.run(__doc__, ["demo:gpt2", "demo:llama", "smollm2"], measure)
