"""Writes planned circuits into a host block by block, and calibrates the scale of what they read on prompts."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.grafts import constant_neurons
from stitch.grafts.first_token import FirstTokenHeads
from stitch.grafts.plan import Plan
from stitch.grafts.reading import Reading, like
from stitch.grafts.unembedding import write_unembedding
from stitch.grafts.written_positions import write_positions
from stitch.internals import weights
from stitch.internals.weights import Spot
from stitch.models.model import Model


@torch.no_grad()
def write(host: Model, plans: Sequence[Plan]) -> list[list[dict]]:
    """Writes the plans into the host, in place.

    In a fresh host, components that no plan fills keep their random reads and write nothing. A trained host, whose plans have an
    `output`, keeps all that it has. Returns per plan and spot the scale of its reads, and the share of the donor's normalised
    stream there that is missing in the host's.
    """
    fresh = all(plan.output is None for plan in plans)
    if fresh:
        _silence(host)
    for plan in plans:
        _write_embedding(host, plan)
    for plan in plans:
        if plan.written_positions is not None:
            write_positions(host, plan.written_positions, plan.frame, plan.ids)
    described: list[list[dict]] = [[] for _ in plans]
    for block in range(host.depth):
        for stage in ("attention", "mlp"):
            spot: Spot = (stage, block)
            write_components = {"attention": _write_heads, "mlp": _write_neurons}[stage]
            readings = [Reading.of(host, plan, spot) if spot in plan.targets else None for plan in plans]
            for reading, entries in zip(readings, described, strict=True):
                if reading is not None:
                    write_components(host, reading, block)
                    entries.append(reading.described())
    for plan in plans:
        if plan.output is not None:
            weights.unembedding(host).add_(like(plan.output.read @ plan.unembedding, host))
    if not fresh:
        return described
    final = [Reading.of(host, plan, ("final", 0)) for plan in plans]
    write_unembedding(host, final)
    return [[*entries, reading.described()] for entries, reading in zip(described, final, strict=True)]


def _silence(host: Model) -> None:
    """Sets everything to zero that writes to the stream: embeddings, and the outputs of heads and neurons."""
    host.embedding.weight.zero_()
    if (table := weights.positions(host)) is not None:
        table.zero_()
    for block in range(host.depth):
        attention, mlp = weights.attention(host, block), weights.mlp(host, block)
        for part in (attention.o, attention.o_bias, mlp.down, mlp.down_bias):
            if part is not None:
                part.zero_()


def _write_embedding(host: Model, plan: Plan) -> None:
    """Adds the donor's tokens, positions, position codes and the constant to the host's embeddings."""
    frame = plan.frame
    host.embedding.weight.add_(like(plan.embedding @ frame.write, host))
    if frame.bos is not None:
        host.embedding.weight[plan.ids[0, 0]] += like(frame.bos, host)
    if frame.constant is not None:
        host.embedding.weight.add_(like(frame.length * frame.constant, host))
        host.embedding.weight[plan.ids[0, 0]] += like((plan.first - 1) * frame.length * frame.constant, host)
    table = weights.positions(host)
    if table is not None and plan.positions is not None:
        own = plan.positions[: len(table)] @ frame.write
        table[: len(own)] += like(own, host)
    if table is not None and plan.codes is not None and frame.codes is not None:
        codes = frame.length * plan.codes @ frame.codes
        codes[0] *= plan.first
        table += like(codes, host)


def _write_heads(host: Model, reading: Reading, block: int) -> None:
    """Writes the plan's heads in this block of the host, and its constant after them."""
    ours, plan = weights.attention(host, block), reading.plan
    biased = ours.q_bias is not None
    for placed in plan.heads:
        if placed.host_block != block:
            continue
        head, group, query = placed.maps, placed.host_group, placed.host_head
        ours.q[:, query] = like(reading.host_map(head.q, head.q_bias, head.q_codes, biased=biased), host)
        ours.k[:, group] = like(reading.host_map(head.k, head.k_bias, head.k_codes, biased=biased), host)
        # The bias of values is written below, or is among the constants of the plan.
        ours.v[:, group] = like(reading.host_map(head.v, head.v_bias, biased=True), host)
        ours.o[query] = like(_written(plan, head.o, block), host)
        for own, place, bias in (
            (ours.q_bias, query, head.q_bias),
            (ours.k_bias, group, head.k_bias),
            (ours.v_bias, group, head.v_bias),
        ):
            if own is not None:
                own[place] = like(bias, host)
    _write_output_bias(host, reading, ours.o_bias)
    if block in plan.constant_heads:
        heads = FirstTokenHeads.of(host, block, plan.frame, plan.ids)
        heads.write_constant(plan.constant_heads[block], plan.constants["attention", block], weights.frequencies(host))


def _write_neurons(host: Model, reading: Reading, block: int) -> None:
    """Writes the plan's neurons in this block of the host, and its constants that have no bias to go to."""
    ours, plan = weights.mlp(host, block), reading.plan
    biased = ours.up_bias is not None
    for placed in plan.neurons:
        if placed.host_block != block:
            continue
        maps, columns = placed.maps, slice(placed.first, placed.first + len(placed.maps))
        ours.up[:, columns] = like(reading.host_map(maps.up, maps.up_bias, biased=biased), host)
        if ours.up_bias is not None:
            ours.up_bias[columns] = like(maps.up_bias, host)
        if ours.gate is not None and maps.gate is not None and maps.gate_bias is not None:
            ours.gate[:, columns] = like(reading.host_map(maps.gate, maps.gate_bias, biased=biased), host)
            if ours.gate_bias is not None:
                ours.gate_bias[columns] = like(maps.gate_bias, host)
        ours.down[columns] = like(_written(plan, maps.down, block), host)
    _write_output_bias(host, reading, ours.down_bias)
    if plan.frame.constant is not None and ours.gate is not None and block in plan.spares:
        _write_constant_neurons(host, reading, block)


def _write_constant_neurons(host: Model, reading: Reading, block: int) -> None:
    """Makes gated neurons that are 1 for every token: they write the constants of this block that have no bias or head."""
    ours, plan = weights.mlp(host, block), reading.plan
    assert plan.frame.constant is not None and ours.gate is not None and reading.lane is not None
    total = torch.zeros(len(plan.frame.write), dtype=torch.float64)
    if ours.down_bias is None:
        total += plan.constants.get(("mlp", block), 0)
    if weights.attention(host, block).o_bias is None and block not in plan.constant_heads:
        total += plan.constants.get(("attention", block), 0)
    lane, spares = plan.frame.constant / reading.constant, plan.spares[block]
    columns, slopes = slice(spares.start, spares.stop), constant_neurons.slopes(len(spares))
    ours.gate[:, columns] = like(torch.outer(lane, slopes), host)
    ours.up[:, columns] = like(lane[:, None].expand(-1, len(spares)), host)
    ours.down[columns] = like(
        torch.outer(constant_neurons.sum_to_one(reading.lane, len(spares)), total @ plan.frame.write), host
    )


def _written(plan: Plan, rows: Float[Tensor, "rows d"], block: int) -> Float[Tensor, "rows d_host"]:
    """Output vectors in the host's stream: in the frame's lanes, and for the last block in the output lanes of a trained host."""
    last = plan.output if block == max(plan.layers.values()) else None
    return rows @ (plan.frame.write if last is None else plan.frame.write + last.write)


def _write_output_bias(host: Model, reading: Reading, bias: Tensor | None) -> None:
    """Adds the plan's constant at this spot to the bias of the output projection, and subtracts what is usually written to the
    output lanes."""
    if bias is None:
        return
    plan, spot = reading.plan, reading.spot
    if spot in plan.constants:
        bias.add_(like(plan.constants[spot] @ plan.frame.write, host))
    if plan.output is not None and spot in plan.output.usual:
        bias.sub_(like(plan.output.usual[spot] @ plan.output.write, host))
