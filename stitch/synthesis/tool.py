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

from stitch.circuits import weights
from stitch.errors import UsageError
from stitch.grafts.room import Room
from stitch.grafts.widen import widened
from stitch.models import Model
from stitch.synthesis.automaton import Automaton
from stitch.synthesis.blueprint import sharp

FAINT = 1e-3  # of the stream's length where that is shortest, for all lanes together
STEEP = 20.0  # times a saturated neuron's threshold: GELU(±20) is 20 and 0
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
def with_tool(host: Model, automaton: Automaton, text: Int64[Tensor, "rows length"]) -> Tool:
    """The host with the automaton beside its stream; `text` shows how much its norms multiply by. Contexts must start with a
    special token.

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
    bits = (context - 1).bit_length()
    if states**2 > size or bits + 1 > size:
        raise UsageError(
            f"the automaton may have {int(size**0.5)} states, as heads of {host.name} copy {size} numbers; it has {states}."
        )
    blocks = next(n for n in range(1, host.depth + 1) if windows**n >= context)
    earlier, neurons = windows - 1, 2 * (states ** (windows + 1) + states**2)
    lanes = states**2 * (1 + blocks * earlier) + 1 + bits * (1 + blocks * earlier)
    wide, room = widened(host, channels=lanes, groups=earlier, neurons=neurons)
    writer = _Writer(host, wide, room, automaton, blocks, windows, bits, text)
    writer.embedding()
    for block in range(blocks):
        writer.heads(block)
        writer.neurons(block)
    return Tool(wide, writer.window[automaton.start], windows, blocks)


class _Writer:
    def __init__(
        self,
        host: Model,
        wide: Model,
        room: Room,
        automaton: Automaton,
        blocks: int,
        windows: int,
        bits: int,
        text: Tensor,
    ) -> None:
        self.wide, self.automaton, self.windows, self.bits, self.blocks = wide, automaton, windows, bits, blocks
        self.group, self.neuron = room.groups[0], room.neurons[0]
        states = len(automaton.states)
        later = [(block, back) for block in range(blocks) for back in range(1, windows)]
        sizes = [states**2, 1, bits, *[bits] * len(later), *[states**2] * len(later)]
        window, constant, self.place, *rest = room.take_channels(sum(sizes)).split(sizes)
        self.window, self.constant = window.view(states, states, -1), constant[0]
        self.targets = dict(zip(later, rest, strict=False))
        self.banks = {key: bank.view(states, states, -1) for key, bank in zip(later, rest[len(later) :], strict=True)}
        found = [_factors(host, stage, block, text) for block in range(blocks) for stage in ("attention", "mlp")]
        self.low, self.high = min(low for low, _ in found) / SLACK, max(high for _, high in found) * SLACK
        lanes = states * (1 + blocks * (windows - 1)) + 1 + bits * len(self.targets) + bits
        self.size = FAINT * host.width**0.5 / self.high / lanes**0.5

    def embedding(self) -> None:
        steps = steps_of_tokens(self.automaton, self.wide.tokenizer, self.wide.config.vocab_size)
        every = torch.arange(steps.shape[1])
        table = weights.positions(self.wide)
        assert table is not None
        self.wide.embedding.weight += self.size * self.window[every, steps].sum(1).float()
        place = torch.arange(len(table))
        rows = self.constant + self._code(place) @ self.place
        for (block, back), lanes in self.targets.items():
            rows = rows + self._code((place - back * self.windows**block).clamp_min(0)) @ lanes
        table += self.size * rows.float()

    def _code(self, place: Int64[Tensor, " n"]) -> Float[Tensor, "n bits"]:
        return 1.0 - 2.0 * ((place[:, None] >> torch.arange(self.bits)) & 1).double()

    def heads(self, block: int) -> None:
        """Scores are agreements less all bits: 0 at the place looked for, −2 and less, times the factors, elsewhere."""
        ours, states = weights.attention(self.wide, block), len(self.automaton.states)
        amount = (sharp(2.0, self.wide.longest) / ours.scale) ** 0.5 / (self.size * self.low)
        typical = (self.low * self.high) ** 0.5
        for back in range(1, self.windows):
            head = self.group + back - 1
            target, bank = self.targets[block, back], self.banks[block, back].flatten(0, 1)
            ours.q[:, head, : self.bits] = amount * target.T.float()
            ours.k[:, head, : self.bits] = amount * self.place.T.float()
            ours.q[:, head, self.bits] = amount * self.constant.float()
            ours.k[:, head, self.bits] = -self.bits * amount * self.constant.float()
            ours.v[:, head, : states**2] = self.window.flatten(0, 1).T.float() / typical
            ours.o[head, : states**2] = bank.float()

    def neurons(self, block: int) -> None:
        """A window q → u for every way there, unless one of the windows before it goes another way. The old one goes."""
        states, earlier = len(self.automaton.states), self.windows - 1
        ways = torch.cartesian_prod(*[torch.arange(states)] * (self.windows + 1))
        against = torch.zeros(len(ways), self.wide.width, dtype=torch.float64)
        for number in range(earlier):  # the earliest window is the farthest back
            bank = self.banks[block, earlier - number]
            start, end = ways[:, number], ways[:, number + 1]
            against += bank[start].sum(1) - bank[start, end]
        own, new = self.window[ways[:, -2], ways[:, -1]], self.window[ways[:, 0], ways[:, -1]]
        typical = (self.low * self.high) ** 0.5
        silenced = 2 * typical / self.low  # a bank's lane is as faint as this makes up for
        old = self.window.flatten(0, 1)
        pre = torch.cat([own - self.constant / 2 - silenced * against, old - self.constant / 2])
        write = torch.cat([new, -old])
        pre = 4 * pre / (self.size * self.low)  # 2 or more where it holds
        ours, count = weights.mlp(self.wide, block), len(pre)
        assert ours.up_bias is not None
        for first, threshold, sign in ((self.neuron, 0.0, 1), (self.neuron + count, 1.0, -1)):
            ours.up[:, first : first + count] = STEEP * pre.T.float()
            ours.up_bias[first : first + count] = -STEEP * threshold
            ours.down[first : first + count] = sign * self.size / STEEP * write.float()


@torch.no_grad()
def _factors(model: Model, stage: str, block: int, text: Int64[Tensor, "rows length"]) -> tuple[float, float]:
    """The least and the most that this norm multiplies by, gains left out."""
    caught: list[Tensor] = []
    hook = weights.norm_module(model, stage, block).register_forward_pre_hook(
        lambda _, inputs: caught.append(inputs[0].double())
    )
    model.body(text.to(model.device))
    hook.remove()
    x = caught[0]
    x = x - x.mean(-1, keepdim=True)
    factors = (x.square().mean(-1) + weights.norm(model, stage, block).eps).rsqrt()
    return float(factors.min()), float(factors.max())
