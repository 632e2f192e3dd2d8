"""Writes the unembedding of a fresh host, where the logits of all circuits add up."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.grafts.apart import AskedStreams, among_alone, set_apart
from stitch.grafts.reading import Reading, like
from stitch.internals import weights
from stitch.models.model import Model


def write_unembedding(host: Model, readings: Sequence[Reading]) -> None:
    """Writes the unembeddings of all plans, set apart where they share the host. What the host's head reads of other channels
    stays."""
    head: Tensor = host.head.weight  # pyright: ignore[reportAssignmentType]
    lanes = torch.cat([reading.plan.frame.lanes for reading in readings])
    before = head.double().cpu()
    total = before - before @ lanes.T @ lanes
    asked = {
        number: AskedStreams.of(host, reading.plan.apart)
        for number, reading in enumerate(readings)
        if reading.plan.apart is not None and len(readings) > 1
    }
    for number, reading in enumerate(readings):
        final, plan = weights.norm(host, "final"), reading.plan
        others = [one for other, one in asked.items() if other != number]
        total += _logit_map(host, reading, asked.get(number), others).T
        if final.bias is not None:
            final.bias.add_(like(plan.shift @ torch.linalg.pinv(plan.frame.read) / reading.scale, host))
    head.copy_(total)


def _logit_map(
    host: Model, reading: Reading, own: AskedStreams | None, others: Sequence[AskedStreams]
) -> Float[Tensor, "d_host vocabulary"]:
    """The plan's logits as a map of the host's normalised stream."""
    plan, has_bias = reading.plan, weights.norm(host, "final").bias is not None
    bias = torch.zeros_like(plan.unembedding[0]) if has_bias else plan.shift @ plan.unembedding
    logits = reading.host_map(plan.unembedding, bias, biased=plan.frame.constant is None)
    if plan.apart is not None:
        logits = among_alone(logits, plan.apart)
    if own is None or plan.frame.constant is None:
        return logits
    usual = torch.outer(plan.frame.constant, own.corrupt @ logits) / reading.constant
    return set_apart(logits, logits - usual, plan.frame.lanes, own, others)
