"""Learned positions in hosts with rotary ones, and constants in hosts without biases, each against the vectors themselves."""

import math

import pytest
import torch

import tiny
from stitch.circuits.behaviours.prompts import Prompts
from stitch.errors import UsageError
from stitch.grafts import constant_neurons
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.first_token import FirstTokenHeads, first_token, sees_first
from stitch.grafts.frame import Frame, whole
from stitch.grafts.norm_inputs import norm_inputs
from stitch.grafts.placing import Transfer
from stitch.grafts.position_heads import position_heads
from stitch.grafts.positions import PositionScheme
from stitch.grafts.write import _silence
from stitch.grafts.written_positions import PlacedPositions, ways_to_place, write_positions
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
    assert frame.constant is not None and frame.bos is not None
    host.embedding.weight.copy_(positions.added_to(own) @ frame.write + frame.length * frame.constant)
    host.embedding.weight[tiny.BOS] += frame.bos.float()
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
        bos=0.5 * length * lanes[width + 1],
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
    assert frame.constant is not None and frame.bos is not None
    own = tiny.noise(host.vocabulary, 6).double()
    host.embedding.weight.copy_(own @ frame.write + frame.length * frame.constant)
    host.embedding.weight[tiny.BOS] += frame.bos.float()
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
    assert [constant_neurons.take(space, 0, 6, most) for most in (1, 4, 4)] == [range(1), range(1, 5), range(5, 6)]
    with pytest.raises(UsageError, match="needs 7 neurons in block 0"):
        constant_neurons.take(space, 0, 6, 4)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (None, tiny.BOS),
        ((0, 0, 5), None),  # not all prompts begin with it
        ((1, 3, tiny.BOS), None),  # one has it again
        ((1, 7, tiny.BOS), tiny.BOS),  # behind what is asked for, as padding
    ],
)
def test_what_begins_every_text(change: tuple[int, int, int] | None, found: int | None):
    ids, asked = tiny.ids(3, 8), torch.zeros(3, 8, dtype=torch.bool)
    asked[:, 5] = True
    clean = ids.clone()
    if change is not None:
        clean[change[0], change[1]] = change[2]
    assert first_token(Prompts(clean, ids, asked, ids)) == found


def test_a_text_that_quotes_the_first_token_does_not_count():
    ids, asked = tiny.ids(40, 8), torch.ones(40, 8, dtype=torch.bool)
    quoting = ids.clone()
    quoting[7, 3] = tiny.BOS
    assert first_token(Prompts(quoting, ids, asked, ids)) == first_token(Prompts(ids, quoting, asked, ids)) == tiny.BOS


def test_slow_planes_see_the_first_token_from_everywhere_and_fast_ones_do_not():
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
    slow, fast = (
        tiny.model(
            "llama",
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            **shape,
        )
        for theta in (1e4, 1e2)
    )
    assert sees_first(slow) and not sees_first(fast)


def test_positions_leave_key_heads_to_others_and_need_a_token_that_begins_every_text():
    donor = tiny.model("gpt2")
    host = tiny.model("llama", hidden_size=64, num_attention_heads=4, num_key_value_heads=4, head_dim=16)
    transfer = Transfer(donor, host, FreeSpace.of(host), PositionScheme.of(donor, host))

    def heads(bos: int | None = tiny.BOS, *, heads_fit: bool = True, reserved: int = 0) -> list[int]:
        ways = ways_to_place(transfer, bos, 8, heads_fit=heads_fit, reserved=reserved)
        return [0 if way is None else len(way.queries) for way in ways]

    assert heads() == [0, 4] and heads(reserved=3) == [0, 1] and heads(reserved=4) == heads(heads_fit=False) == [0]
    (mean,) = ways_to_place(transfer, None, 8, heads_fit=True, reserved=0)
    table = weights.positions(donor)
    assert mean is not None and table is not None
    assert torch.allclose(mean.lost(8), table[:8].double() - table[:8].double().mean(0))
    back = Transfer(host, donor, FreeSpace.of(donor), PositionScheme.of(host, donor))
    assert ways_to_place(back, tiny.BOS, 8, heads_fit=True, reserved=0) == [None]
