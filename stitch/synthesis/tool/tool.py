"""An automaton inside a trained model: it reads the same tokens, in channels, heads and neurons of its own, and disturbs nothing.

As in `parallel`, every token holds what its window does to every state, and every block composes windows. Here norms multiply the
lanes by a factor that no one knows beforehand, different for every token. So scores are 0 for the token looked for and below for
all others, whatever the factors; conditions are that nothing speaks against them; and what neurons write is saturated by biases,
which norms do not touch. Lanes are so faint that the host's norms do not notice them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.errors import UsageError
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.hosts import widened
from stitch.internals import weights
from stitch.models.model import Model
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.blueprint import sharp, signs

FAINT = 0.1  # what bf16 needs
STEEP = 20.0  # times a saturated neuron's threshold: GELU(±20) is 20 and 0
ABSORBERS = 32  # channels that share minus the sum of all lanes
MOST_WINDOWS = 3  # composed in one block
SLACK = 1.5  # by which norms may differ from what was seen


@dataclass(frozen=True)
class Tool:
    """`read` are the lanes of the states, as vectors of the last hidden state; the largest product tells the state."""

    net: Model
    read: Float[Tensor, "states d"]
    windows: int  # composed in a block
    blocks: int  # that compose


def steps_of_tokens(automaton: Automaton, tokenizer, count: int) -> Int64[Tensor, "vocabulary states"]:
    """What every token's text does to every state, symbol by symbol; other characters do nothing, special tokens start afresh."""
    special = set(tokenizer.all_special_ids)
    number = {symbol: index for index, symbol in enumerate(automaton.symbols)}
    rows = []
    for token in range(count):
        if token in special:
            rows.append([automaton.start] * len(automaton.states))
            continue
        text = tokenizer.decode([token])
        rows.append([_after(automaton, number, state, text) for state in range(len(automaton.states))])
    return torch.tensor(rows)


def _after(automaton: Automaton, number: dict[str, int], state: int, text: str) -> int:
    for symbol in text:
        if symbol in number:
            state = automaton.steps[state][number[symbol]]
    return state


def states_along(
    steps: Int64[Tensor, "vocabulary states"], ids: Int64[Tensor, "rows length"], start: int
) -> Int64[Tensor, "rows length"]:
    """The state after every token, one after another."""
    state, found = torch.full((len(ids),), start), []
    for column in ids.T:
        state = steps[column, state]
        found.append(state)
    return torch.stack(found, 1)


@torch.no_grad()
def with_tool(host: Model, automaton: Automaton, text: Int64[Tensor, "rows length"], faint: float = FAINT) -> Tool:
    """The host with the automaton beside its stream; `text` shows how much its norms multiply by. Contexts must start with a
    special token. `faint` is the length of all lanes together, beside the stream where that is shortest: what it is costs the
    host something, and bf16 needs some of it.

    Raises: UsageError for a host without learned positions, for symbols that aren't characters, or too many states.
    """
    if host.config.model_type != "gpt2":
        raise UsageError(f"a tool needs a host with learned positions (gpt2); {host.name} is {host.config.model_type}.")
    if any(len(symbol) != 1 for symbol in automaton.symbols):
        raise UsageError(
            f"a tool reads characters; the automaton has symbols such as {max(automaton.symbols, key=len)!r}."
        )
    states, context = len(automaton.states), host.longest
    windows = next((n for n in range(2, MOST_WINDOWS + 1) if n**host.depth >= context), None)
    if windows is None:
        raise UsageError(
            f"the {host.depth} blocks of {host.name} can compose {MOST_WINDOWS**host.depth:,} tokens; its context has "
            f"{context:,}: choose a deeper host."
        )
    size = weights.attention(host, 0).q.shape[2]
    shape = _Shape(
        states, windows, next(n for n in range(1, host.depth + 1) if windows**n >= context), (context - 1).bit_length()
    )
    if states**2 > size or shape.bits + 1 > size:
        raise UsageError(
            f"the automaton may have {int(size**0.5)} states, as heads of {host.name} copy {size} numbers; it has {states}."
        )
    # Beside the lanes the ground, and absorbers, one of which LayerNorm's own room brings.
    wide, room = widened(
        host, channels=shape.lanes + ABSORBERS, groups=windows - 1, neurons=2 * states ** (windows + 1)
    )
    writer = _Writer(host, wide, room, automaton, shape, text, faint)
    writer.embedding()
    for block in range(shape.blocks):
        writer.heads(block)
        writer.neurons(block)
    return Tool(wide, writer.of[writer.windows[-1][automaton.start]], windows, shape.blocks)


@dataclass(frozen=True)
class _Shape:
    """How many states, windows composed in a block, blocks that compose, and bits of a position."""

    states: int
    windows: int
    blocks: int
    bits: int

    def earlier(self) -> list[tuple[int, int]]:
        """Blocks, and how many windows back their heads look."""
        return [(block, back) for block in range(self.blocks) for back in range(1, self.windows)]

    def sizes(self) -> list[int]:
        """Windows before and after every block, a constant, positions, those looked for, and what is fetched from there."""
        square, heads = self.states**2, len(self.earlier())
        return [*[square] * (self.blocks + 1), 1, self.bits, *[self.bits] * heads, *[square] * heads]

    @property
    def lanes(self) -> int:
        return sum(self.sizes())

    @property
    def held(self) -> int:
        """Lanes that hold something at once, at most."""
        heads = len(self.earlier())
        return self.states * (self.blocks + 1 + heads) + 1 + self.bits * (1 + heads)


class _Writer:
    """Lanes are channels. What is written to one is taken from the absorbers, so that the mean stays what it was; what is read
    from one is read against the ground, a channel that nobody writes, so that the mean does not matter at all."""

    def __init__(
        self,
        host: Model,
        wide: Model,
        room: FreeSpace,
        automaton: Automaton,
        shape: "_Shape",
        text: Int64[Tensor, "rows length"],
        faint: float,
    ) -> None:
        self.wide, self.automaton, self.shape = wide, automaton, shape
        self.group, self.neuron, first = room.groups[0], room.neurons[0], room.channels
        states = shape.states
        lanes = torch.arange(first, first + shape.lanes).split(shape.sizes())
        self.windows = [one.view(states, states) for one in lanes[: shape.blocks + 1]]
        self.constant, self.place = lanes[shape.blocks + 1], lanes[shape.blocks + 2]
        rest = lanes[shape.blocks + 3 :]
        self.targets = dict(zip(shape.earlier(), rest, strict=False))
        banks = rest[len(self.targets) :]
        self.banks = {key: one.view(states, states) for key, one in zip(shape.earlier(), banks, strict=True)}
        self.to = torch.eye(wide.width, dtype=torch.float64)
        self.of = self.to.clone()
        ground = first + shape.lanes
        self.of[:, ground] -= 1
        self.to[:, ground + 1 : ground + 1 + ABSORBERS] -= 1 / ABSORBERS
        stages = [(stage, block) for block in range(shape.blocks) for stage in ("attention", "mlp")]
        self.factors = {stage: _factors(host, *stage, text) for stage in stages}
        held = shape.held + shape.held**2 / ABSORBERS
        self.size = faint * (host.width / held) ** 0.5 / max(high for _, high in self.factors.values())

    def embedding(self) -> None:
        steps = steps_of_tokens(self.automaton, self.wide.tokenizer, self.wide.config.vocab_size)
        every = torch.arange(self.shape.states)
        table = weights.positions(self.wide)
        assert table is not None
        self.wide.embedding.weight += self.size * self.to[self.windows[0][every, steps]].sum(1).float()
        place = torch.arange(len(table))
        rows = self.to[self.constant] + signs(place, self.shape.bits) @ self.to[self.place]
        for (block, back), lanes in self.targets.items():
            rows = (
                rows + signs((place - back * self.shape.windows**block).clamp_min(0), self.shape.bits) @ self.to[lanes]
            )
        table += self.size * rows.float()

    def heads(self, block: int) -> None:
        """Scores are agreements less all bits: 0 at the place looked for, −2 and less, times the factors, elsewhere."""
        ours, bits = weights.attention(self.wide, block), self.shape.bits
        low, high = self.factors["attention", block]
        amount = (sharp(2.0, self.wide.longest) / ours.scale) ** 0.5 / (self.size * low)
        window = self.windows[block].flatten()
        for back in range(1, self.shape.windows):
            head, bank = self.group + back - 1, self.banks[block, back].flatten()
            ours.q[:, head, :bits] = amount * self.of[self.targets[block, back]].T.float()
            ours.k[:, head, :bits] = amount * self.of[self.place].T.float()
            ours.q[:, head, bits] = amount * self.of[self.constant][0].float()
            ours.k[:, head, bits] = -bits * amount * self.of[self.constant][0].float()
            ours.v[:, head, : len(window)] = self.of[window].T.float() / (low * high) ** 0.5
            ours.o[head, : len(window)] = self.to[bank].float()

    def neurons(self, block: int) -> None:
        """A window q → u for every way there, unless one of the windows before it goes another way."""
        ways = torch.cartesian_prod(*[torch.arange(self.shape.states)] * (self.shape.windows + 1))
        against = torch.zeros(len(ways), self.wide.width, dtype=torch.float64)
        earlier = self.shape.windows - 1
        for number in range(earlier):  # the earliest window is the farthest back
            bank = self.of[self.banks[block, earlier - number]]
            start, end = ways[:, number], ways[:, number + 1]
            against += bank[start].sum(1) - bank[start, end]
        own, new = self.windows[block][ways[:, -2], ways[:, -1]], self.windows[block + 1][ways[:, 0], ways[:, -1]]
        low, high = self.factors["attention", block]
        silenced = 2 * (high / low) ** 0.5  # a bank's lane may be as faint as this makes up for
        pre = self.of[own] - self.of[self.constant] / 2 - silenced * against
        pre = 4 * pre / (self.size * self.factors["mlp", block][0])  # 2 or more where it holds
        ours, count = weights.mlp(self.wide, block), len(ways)
        assert ours.up_bias is not None
        for first, threshold, sign in ((self.neuron, 0.0, 1), (self.neuron + count, 1.0, -1)):
            ours.up[:, first : first + count] = STEEP * pre.T.float()
            ours.up_bias[first : first + count] = -STEEP * threshold
            ours.down[first : first + count] = sign * self.size / STEEP * self.to[new].float()


@torch.no_grad()
def _factors(model: Model, stage: str, block: int, text: Int64[Tensor, "rows length"]) -> tuple[float, float]:
    """The least and the most that this norm multiplies by, gains left out, and `SLACK` beyond."""
    caught: list[Tensor] = []
    hook = weights.norm_module(model, stage, block).register_forward_pre_hook(
        lambda _, inputs: caught.append(inputs[0].double())
    )
    model.body(text.to(model.device))
    hook.remove()
    x = caught[0]
    x = x - x.mean(-1, keepdim=True)
    factors = (x.square().mean(-1) + weights.norm(model, stage, block).eps).rsqrt()
    return float(factors.min()) / SLACK, float(factors.max()) * SLACK
