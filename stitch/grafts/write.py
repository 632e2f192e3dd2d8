"""Writes planned circuits into a host, block by block; reads get the scale that the host needs."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.grafts.norm_inputs import Spot, normalised_inputs
from stitch.grafts.plan import Plan
from stitch.internals import weights
from stitch.models.model import Model

SATURATED = 20.0  # where SiLU is the identity


@torch.no_grad()
def write(host: Model, plans: Sequence[Plan]) -> list[list[dict]]:
    """Fills the host in place. Everything of a fresh one that no plan fills keeps its random reads and writes nothing at first; a
    trained one (plans have an `output`) keeps all that it has.

    Returns per plan and spot the scale of its reads, and the share of what the donor reads there that the host does not give.
    """
    fresh = all(plan.output is None for plan in plans)
    if fresh:
        _silence(host)
    for plan in plans:
        _write_embedding(host, plan)
    said: list[list[dict]] = [[] for _ in plans]
    for block in range(host.depth):
        for stage in ("attention", "mlp"):
            spot: Spot = (stage, block)
            fills = {"attention": _write_heads, "mlp": _write_neurons}[stage]
            readings = [_Reading.of(host, plan, spot) if spot in plan.targets else None for plan in plans]
            for reading, entry in zip(readings, said, strict=True):
                if reading is not None:
                    fills(host, reading, block)
                    entry.append(reading.described())
    for plan in plans:
        if plan.output is not None:
            weights.unembedding(host).add_(_like(plan.output.read @ plan.unembedding, host))
    if not fresh:
        return said
    final = [_Reading.of(host, plan, ("final", 0)) for plan in plans]
    _write_unembedding(host, final)
    return [[*entry, reading.described()] for entry, reading in zip(said, final, strict=True)]


class _Reading:
    """What a plan's maps become at a spot: `scale` calibrated on prompts, lanes taken at the length that norms leave them."""

    def __init__(self, plan: Plan, spot: Spot, scale: float, missing: float, lane: float, code: float) -> None:
        self.plan, self.spot, self.scale, self.missing, self.lane, self.code = plan, spot, scale, missing, lane, code

    @classmethod
    def of(cls, host: Model, plan: Plan, spot: Spot) -> "_Reading":
        found = normalised_inputs(host, [spot], plan.ids)[spot]
        wanted, got = plan.targets[spot], found @ plan.frame.read
        scale = float((wanted * got).sum() / got.square().sum())
        missing = float((wanted - scale * got).square().sum() / wanted.square().sum())
        constant, codes = plan.frame.constant, plan.frame.codes
        lane = 0.0 if constant is None else float((found @ constant).mean())
        code = 0.0 if codes is None else float((found @ codes.T).norm(dim=-1).mean())
        return cls(plan, spot, scale, missing, lane, code)

    def described(self) -> dict:
        return {"spot": f"{self.spot[0]} {self.spot[1]}", "scale": self.scale, "missing": self.missing}

    def map(
        self,
        weight: Float[Tensor, "d columns"],
        bias: Float[Tensor, " columns"],
        codes: Float[Tensor, "codes columns"] | None = None,
        *,
        biased: bool,
    ) -> Float[Tensor, "d_host columns"]:
        """The map of the donor's normalised stream as one of the host's; `bias` comes from the constant lane unless the host is
        `biased`."""
        frame = self.plan.frame
        found = self.scale * frame.read @ weight
        if not biased and frame.constant is not None:
            found = found + torch.outer(frame.constant, bias) / self.lane
        if codes is not None and frame.codes is not None:
            found = found + frame.codes.T @ codes / self.code
        return found


def _silence(host: Model) -> None:
    """Nothing is written to the stream: embeddings, outputs of heads and of neurons."""
    host.embedding.weight.zero_()
    if (table := weights.positions(host)) is not None:
        table.zero_()
    for block in range(host.depth):
        attention, mlp = weights.attention(host, block), weights.mlp(host, block)
        for part in (attention.o, attention.o_bias, mlp.down, mlp.down_bias):
            if part is not None:
                part.zero_()


def _write_embedding(host: Model, plan: Plan) -> None:
    frame = plan.frame
    host.embedding.weight.add_(_like(plan.embedding @ frame.write, host))
    if frame.constant is not None:
        host.embedding.weight.add_(_like(frame.length * frame.constant, host))
        host.embedding.weight[plan.ids[0, 0]] += _like((plan.first - 1) * frame.length * frame.constant, host)
    table = weights.positions(host)
    if table is not None and plan.positions is not None:
        own = plan.positions[: len(table)] @ frame.write
        table[: len(own)] += _like(own, host)
    if table is not None and plan.codes is not None and frame.codes is not None:
        codes = frame.length * plan.codes @ frame.codes
        codes[0] *= plan.first
        table += _like(codes, host)


def _write_heads(host: Model, reading: _Reading, block: int) -> None:
    ours, plan = weights.attention(host, block), reading.plan
    biased = ours.q_bias is not None
    for placed in plan.heads:
        if placed.host_block != block:
            continue
        head, group, query = placed.maps, placed.host_group, placed.host_head
        ours.q[:, query] = _like(reading.map(head.q, head.q_bias, head.q_codes, biased=biased), host)
        ours.k[:, group] = _like(reading.map(head.k, head.k_bias, head.k_codes, biased=biased), host)
        ours.v[:, group] = _like(reading.map(head.v, head.v_bias, biased=True), host)  # its bias is here, or a constant
        ours.o[query] = _like(_written(plan, head.o, block), host)
        for own, place, bias in (
            (ours.q_bias, query, head.q_bias),
            (ours.k_bias, group, head.k_bias),
            (ours.v_bias, group, head.v_bias),
        ):
            if own is not None:
                own[place] = _like(bias, host)
    constant = plan.constants.get(("attention", block))
    if constant is not None and ours.o_bias is not None:
        ours.o_bias.add_(_like(constant @ plan.frame.write, host))
    _less_usual(ours.o_bias, reading, host)


def _write_neurons(host: Model, reading: _Reading, block: int) -> None:
    ours, plan = weights.mlp(host, block), reading.plan
    biased = ours.up_bias is not None
    for placed in plan.neurons:
        if placed.host_block != block:
            continue
        maps, columns = placed.maps, slice(placed.first, placed.first + len(placed.maps))
        ours.up[:, columns] = _like(reading.map(maps.up, maps.up_bias, biased=biased), host)
        if ours.up_bias is not None:
            ours.up_bias[columns] = _like(maps.up_bias, host)
        if ours.gate is not None and maps.gate is not None and maps.gate_bias is not None:
            ours.gate[:, columns] = _like(reading.map(maps.gate, maps.gate_bias, biased=biased), host)
            if ours.gate_bias is not None:
                ours.gate_bias[columns] = _like(maps.gate_bias, host)
        ours.down[columns] = _like(_written(plan, maps.down, block), host)
    constant = plan.constants.get(("mlp", block))
    if constant is not None and ours.down_bias is not None:
        ours.down_bias.add_(_like(constant @ plan.frame.write, host))
    _less_usual(ours.down_bias, reading, host)
    if plan.frame.constant is not None and ours.gate is not None and block in plan.spares:
        # A neuron that is 1 whatever the token writes what biases would have.
        total = torch.zeros(len(plan.frame.write), dtype=torch.float64)
        for stage, bias in (("mlp", ours.down_bias), ("attention", weights.attention(host, block).o_bias)):
            if bias is None and (stage, block) in plan.constants:
                total += plan.constants[stage, block]
        lane, spare = plan.frame.constant / reading.lane, plan.spares[block]
        ours.gate[:, spare], ours.up[:, spare] = _like(SATURATED * lane, host), _like(lane / SATURATED, host)
        ours.down[spare] = _like(total @ plan.frame.write, host)


def _written(plan: Plan, rows: Float[Tensor, "rows d"], block: int) -> Float[Tensor, "rows d_host"]:
    """Into the lanes; in a trained host the last block's into those of its output as well."""
    last = plan.output if block == max(plan.layers.values()) else None
    return rows @ (plan.frame.write if last is None else plan.frame.write + last.write)


def _less_usual(bias: Tensor | None, reading: _Reading, host: Model) -> None:
    output = reading.plan.output
    if bias is not None and output is not None and reading.spot in output.usual:
        bias.sub_(_like(output.usual[reading.spot] @ output.write, host))


def _write_unembedding(host: Model, readings: Sequence[_Reading]) -> None:
    """Logits of several donors add up. What the host's own head reads of other channels stays."""
    head: Tensor = host.head.weight  # pyright: ignore[reportAssignmentType]
    lanes = torch.cat([reading.plan.frame.lanes for reading in readings])
    fresh = head.double().cpu()
    found = fresh - fresh @ lanes.T @ lanes
    for reading in readings:
        plan = reading.plan
        biased = plan.frame.constant is None
        found += reading.map(plan.unembedding, plan.shift @ plan.unembedding, biased=biased).T
        final = weights.norm(host, "final")
        if final.bias is not None:
            final.bias.add_(_like(plan.shift @ torch.linalg.pinv(plan.frame.read) / reading.scale, host))
    head.copy_(found)


def _like(value: Tensor, host: Model) -> Tensor:
    return value.to(host.device, host.dtype)
