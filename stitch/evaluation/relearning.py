"""How fast a model learns a document: cross-entropy on it before and after each of a few steps of AdamW.

What is learned again faster than it was the first time has left a trace (savings: Ebbinghaus 1885). Models that were made to
forget are tried in the same way (Lynch et al. 2024, arXiv 2402.16835; Deeb & Roger 2024, arXiv 2410.08827).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stitch.errors import StitchError

STEPS = 8
# Bytes per parameter that learning holds beside the model: its weights before, gradients, AdamW's two moments.
HELD = 16


def in_pieces(document: Int[Tensor, " tokens"], bos: int, context: int) -> list[Int[Tensor, "one _"]]:
    """The document in pieces of at most `context` tokens, each behind a BOS, so that every token is predicted once."""
    return [torch.cat([torch.tensor([bos]), piece])[None] for piece in document.split(context - 1)]


@contextmanager
def restored(net: nn.Module) -> Iterator[None]:
    """Inside, all weights may be trained; afterwards they are as they were."""
    before = [(one, one.detach().clone(), one.requires_grad) for one in net.parameters()]
    for one, _, _ in before:
        one.requires_grad_(one.is_floating_point())
    try:
        yield
    finally:
        with torch.no_grad():
            for one, value, needed in before:
                one.copy_(value)
                one.grad = None
                one.requires_grad_(needed)


def learn(
    net: nn.Module, pieces: Sequence[Int[Tensor, "one _"]], rate: float, steps: int = STEPS
) -> Float[Tensor, " points"]:
    """Trains all weights on all pieces at every step, and returns the cross-entropy before the first step and after each.

    In nats per token, float64. Nothing is drawn at random. Raises: StitchError where it is not finite.
    """
    optimiser = torch.optim.AdamW([one for one in net.parameters() if one.requires_grad], lr=rate, weight_decay=0)
    curve = []
    for _ in range(steps):
        optimiser.zero_grad()
        curve.append(sum(_descend(net, piece, pieces) for piece in pieces))
        optimiser.step()
    with torch.no_grad():
        curve.append(sum(float(_share(net, piece, pieces)) for piece in pieces))
    found = torch.tensor(curve, dtype=torch.float64)
    if not torch.isfinite(found).all():
        raise StitchError(f"the model must learn with finite numbers; got NaN or infinity at rate {rate:g}: lower it.")
    return found


def _descend(net: nn.Module, piece: Tensor, pieces: Sequence[Tensor]) -> float:
    """Adds the gradient of a piece, and returns what it brings to the cross-entropy."""
    nats = _share(net, piece, pieces)
    nats.backward()
    return float(nats.detach())


def _share(net: nn.Module, piece: Tensor, pieces: Sequence[Tensor]) -> Float[Tensor, ""]:
    """What a piece brings to the cross-entropy: its nats, over the tokens of all pieces."""
    ids = piece.to(next(net.parameters()).device)
    logits = net(input_ids=ids, use_cache=False).logits[0, :-1].float()
    tokens = sum(one.shape[1] - 1 for one in pieces)
    return nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / tokens


def area(curve: Float[Tensor, " points"]) -> float:
    """The area under a curve, in nats per token times steps, by the trapezoidal rule."""
    return float(torch.trapezoid(curve))
