"""Learned positions in hosts with rotary ones, and constants in hosts without biases, each against the vectors themselves."""

import math

import pytest
import torch

import tiny
from stitch.errors import UsageError
from stitch.grafts import constant_neurons
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.first_token import FirstTokenHeads
from stitch.grafts.frame import Frame, whole
from stitch.grafts.norm_inputs import norm_inputs
from stitch.grafts.position_heads import position_heads
from stitch.grafts.write import _silence
from stitch.grafts.written_positions import PlacedPositions, write_positions
from stitch.internals import weights
from stitch.models.model import Model

pytestmark = pytest.mark.numeric

LENGTH = 96
ROPE = 1e4 ** (-torch.arange(0, 32, 2, dtype=torch.float64) / 32)


def spiral(length: int = LENGTH) -> torch.Tensor:
    """Positions as GPT-2 learns them: slow waves. The first is far from the others."""
    turn = torch.arange(length, dtype=torch.float64)[:, None] * (math.pi / length) * torch.tensor([1.0, 2.0, 4.0])
    table = torch.cat([turn.cos(), turn.sin()], 1)
    table[0] += 3
    return table


def test_a_few_heads_write_slow_positions_and_none_write_the_mean():
    table = spiral()
    lost = [position_heads(table, ROPE, count).lost for count in (0, 2, 4, 6)]
    assert lost[0] == pytest.approx(1) and lost == sorted(lost, reverse=True) and lost[-1] < 0.03
    for count in (0, 6):
        found = position_heads(table, ROPE, count)
        assert len(found.profiles) == len(found.write) == count
        assert torch.allclose(found.written[0], table[0])
        assert torch.allclose(found.bos + found.write.sum(0), table[0])
    drawn = torch.randn(table.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert position_heads(drawn, ROPE, 6).lost > 0.5  # positions without any order cannot be written


def test_no_more_heads_than_the_table_has_directions():
    assert len(position_heads(spiral()[:, :4], ROPE, 8).profiles) <= 4


@pytest.mark.parametrize(
    ("family", "changes", "length", "most"),
    [
        ("llama", {"attention_bias": True}, 1.0, 1e-5),
        ("qwen2", {}, 1.0, 1e-5),
        # Without biases queries are read from the constant lane, after the norm: the longer it is, the less they vary.
        ("llama", {}, 30.0, 0.05),
        ("mistral", {"sliding_window": None}, 30.0, 0.05),
    ],
)
@torch.no_grad()
def test_the_stream_behind_block_0_has_the_written_positions(family: str, changes: dict, length: float, most: float):
    table = spiral()
    width = {"hidden_size": 40, "max_position_embeddings": LENGTH, "tie_word_embeddings": False}
    host = tiny.model(family, **width, **changes)
    attention, space = weights.attention(host, 0), FreeSpace.of(host)
    _silence(host)
    weights.norm(host, "attention", 0).gain.fill_(1)  # as that of hosts is
    count = attention.q.shape[1] - attention.shared  # a group of heads stays free
    space.take_group(0, attention.k.shape[1])
    heads = position_heads(table, weights.frequencies(host), count)
    positions = PlacedPositions(table, heads, first_group=1, shared=attention.shared, bos=tiny.BOS)
    frame = frame_of(host, space, table.shape[1], length)
    own = tiny.noise(host.vocabulary, table.shape[1]).double()
    assert frame.constant is not None and frame.first is not None
    host.embedding.weight.copy_(positions.added_to(own) @ frame.write + frame.length * frame.constant)
    host.embedding.weight[tiny.BOS] += frame.first.float()
    ids = tiny.ids(8, LENGTH)
    ids[ids == tiny.BOS] = tiny.BOS + 1
    ids[:, 0] = tiny.BOS
    write_positions(host, positions, frame, ids)
    stream = norm_inputs(host, [("attention", 1)], ids)["attention", 1] @ frame.read
    wanted = own[ids] + heads.written
    scale = heads.written.norm() * len(ids) ** 0.5
    assert (stream - wanted).norm() < most * scale
    assert (stream - wanted)[:, 0].norm() < 1e-5 * wanted[:, 0].norm()  # that of BOS is exact
    assert (stream - own[ids] - heads.written.mean(0)).norm() > 0.3 * scale  # not just their mean


def frame_of(host: Model, space: FreeSpace, width: int, length: float) -> Frame:
    lanes = space.take_channels(width + 2)
    write, read = whole(lanes[:width], centred=False)
    return Frame(
        lanes,
        write,
        read,
        constant=lanes[width],
        codes=None,
        first=0.5 * length * lanes[width + 1],
        length=length,
        kept=1.0,
    )


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@torch.no_grad()
def test_a_head_writes_a_constant_for_every_token(family: str):
    host = tiny.model(family, hidden_size=40, max_position_embeddings=LENGTH, tie_word_embeddings=False)
    space = FreeSpace.of(host)
    _silence(host)
    weights.norm(host, "attention", 0).gain.fill_(1)
    frame, vector = frame_of(host, space, 6, length=1.0), torch.arange(1.0, 7.0, dtype=torch.float64)
    assert frame.constant is not None and frame.first is not None
    own = tiny.noise(host.vocabulary, 6).double()
    host.embedding.weight.copy_(own @ frame.write + frame.length * frame.constant)
    host.embedding.weight[tiny.BOS] += frame.first.float()
    ids = tiny.ids(4, LENGTH)
    heads = FirstTokenHeads.of(host, 0, frame, ids)
    heads.write_constant(1, vector, weights.frequencies(host))
    stream = norm_inputs(host, [("attention", 1)], ids)["attention", 1] @ frame.read
    assert torch.allclose(stream, own[ids] + vector, atol=1e-4)


def test_neurons_add_up_to_one_where_norms_vary():
    lengths = torch.linspace(0.6, 1.6, 200, dtype=torch.float64)
    errors = []
    for count in (1, 4):
        neurons = lengths[:, None] * torch.nn.functional.silu(lengths[:, None] * constant_neurons.slopes(count))
        errors.append(float((neurons @ constant_neurons.sum_to_one(lengths, count) - 1).abs().max()))
    assert errors[1] < 0.05 and errors[0] > 0.4


def test_constants_take_neurons_as_far_as_some_are_free():
    space = FreeSpace(width=8, centred=False, host="host")
    assert constant_neurons.take(space, 0, 6) == range(4) and constant_neurons.take(space, 0, 6) == range(4, 6)
    with pytest.raises(UsageError, match="needs 7 neurons in block 0"):
        constant_neurons.take(space, 0, 6)
