"""A universal Turing machine in two blocks. The prompt holds the rules of any machine and its tape; each line gives the next.

Tokens are A0 … P7 (a state on a symbol), 0 … 7 (cells), moves, the bar that ends a tape, ! (halts) and # (leaves the window).
A rule is three tokens, `A0 B1 >`. Block 0 fetches, for every token, the two tokens before it, and the three cells of the
previous tape that determine the next cell. Block 1 looks up the rule for the state and symbol among these. Its neurons select
the next cell.
"""

import torch
from torch import Tensor

from stitch.errors import UsageError
from stitch.synthesis.blueprint import (
    Block,
    Blueprint,
    LookUp,
    Neurons,
    Select,
    all_of,
    allot,
    back,
    sharp,
    signs,
    together,
)
from stitch.synthesis.machines.turing import BAR, EDGE, HALT, MOVES, STATES, SYMBOLS

BOS = "<s>"
TOKENS = (BOS, *SYMBOLS, *(state + symbol for state in STATES for symbol in SYMBOLS), *MOVES.values(), BAR, HALT, EDGE)
ID = {token: number for number, token in enumerate(TOKENS)}
MARKS = (*MOVES.values(), BAR, BOS, "")  # "": all other tokens
# Features of a token: the symbol of a plain cell, a state, the symbol under the head, a mark. The last value of each is "none".
SIZES = dict(cell=len(SYMBOLS) + 1, state=len(STATES) + 1, under=len(SYMBOLS) + 1, mark=len(MARKS))
FEWEST_CELLS = 4


def turing_machine(window: int, context: int, specimens: list[str]) -> Blueprint:
    """The blueprint for tapes of `window` cells. `specimens` are texts as the machine should write them.

    Raises: UsageError when `window` or `context` is too small.
    """
    check_sizes(window, context)
    banks = {f"{bank}_{part}": size for bank in ("own", "left", "centre", "right") for part, size in SIZES.items()}
    before = {f"{bank}_{part}": SIZES[part] for bank in ("before", "twice") for part in ("state", "under")}
    rule = {f"rule_{part}": SIZES[part] for part in ("state", "under", "mark")}
    at = allot(**banks, **before, **rule, say=len(TOKENS))
    width = sum(map(len, at.values()))

    def channels(bank: str, *parts: str) -> Tensor:
        return torch.cat([at[f"{bank}_{part}"] for part in parts or SIZES])

    fetch = [
        Select(back(offset, context), channels("own"), channels(bank))
        for bank, offset in (("left", window + 1), ("centre", window), ("right", window - 1))
    ]
    fetch += [
        Select(back(offset, context), channels("own", "state", "under"), channels(bank, "state", "under"))
        for bank, offset in (("before", 1), ("twice", 2))
    ]
    found = LookUp(
        **_rule_look_up(at, width, context),
        source=torch.cat([channels("before", "state", "under"), at["own_mark"]]),
        into=channels("rule", "state", "under", "mark"),
    )
    unembedding = torch.zeros(width, len(TOKENS), dtype=torch.float64)
    unembedding[at["say"], torch.arange(len(TOKENS))] = 1.0
    ids, asked = specimen_ids(specimens, window)
    return Blueprint(
        tokens=TOKENS,
        embedding=_embedding(at, width),
        blocks=(Block(tuple(fetch)), Block((found,), _decide(at, width))),
        unembedding=unembedding,
        length=context,
        specimens=ids,
        asked=asked,
    )


def check_sizes(window: int, context: int) -> None:
    """Raises: UsageError when `window` or `context` is too small."""
    if window < FEWEST_CELLS:
        raise UsageError(f"window must be at least {FEWEST_CELLS} cells; got {window}.")
    if context < 3 * (window + 1):
        raise UsageError(f"context must hold a program and two tapes of {window} cells; got {context}.")


def _embedding(at: dict[str, Tensor], width: int) -> Tensor:
    rows = torch.zeros(len(TOKENS), width, dtype=torch.float64)
    for number, token in enumerate(TOKENS):
        for part, index in _features(token).items():
            rows[number, at[f"own_{part}"][index]] = 1.0
    return rows


def _features(token: str) -> dict[str, int]:
    none = {part: size - 1 for part, size in SIZES.items()}
    if token in SYMBOLS:
        return {**none, "cell": SYMBOLS.index(token)}
    if token in MARKS:
        return {**none, "mark": MARKS.index(token)}
    if len(token) == 2:
        return {**none, "state": STATES.index(token[0]), "under": SYMBOLS.index(token[1])}
    return none


def _rule_look_up(at: dict[str, Tensor], width: int, context: int) -> dict:
    """Query and key of the head that finds the rule of the state and symbol under the head, as 4 and 3 bits of ±1.

    Products are 7 if all bits agree, otherwise at most 5. The last token of a rule has 2 more. The first token has 8 in total,
    so it is found where no rule applies, or where the head is not near.
    """
    states, symbols = signs(torch.arange(len(STATES)), 4), signs(torch.arange(len(SYMBOLS)), 3)
    rank = states.shape[1] + symbols.shape[1] + 1

    def reading(banks: tuple[str, ...]) -> Tensor:
        read = torch.zeros(width, rank, dtype=torch.float64)
        for bank in banks:
            read[at[f"{bank}_state"][:-1], : states.shape[1]] = states
            read[at[f"{bank}_under"][:-1], states.shape[1] : -1] = symbols
        return read

    query, key, bias = reading(("left", "centre", "right")), reading(("twice",)), torch.zeros(rank, dtype=torch.float64)
    bias[-1] = 1.0
    key[at["own_mark"][: len(MOVES)], -1] = 2.0
    key[at["own_mark"][MARKS.index(BOS)], -1] = 8.0
    return dict(query=query, query_bias=bias, key=sharp(1.0, context) * key)


def _decide(at: dict[str, Tensor], width: int) -> Neurons:
    """Neurons that select the next token, from the three cells that determine it and the rule that was found."""
    unit = torch.eye(width, dtype=torch.float64)

    def total(name: str, indices: slice | list[int]) -> Tensor:
        return unit[at[name][indices]].sum(0)

    def heads(bank: str) -> Tensor:
        return total(f"{bank}_state", slice(0, -1))

    def says(*tokens: str) -> Tensor:
        return unit[at["say"]][[ID[token] for token in tokens]]

    one = total("own_mark", slice(None))  # every token has one mark
    moves = {name: total("rule_mark", [MARKS.index(mark)]) for name, mark in MOVES.items()}
    stays_left, stays_right = moves["L"] + moves["S"], moves["R"] + moves["S"]
    no_rule = total("rule_mark", [MARKS.index(BOS)])
    cells, written, states = unit[at["centre_cell"][:-1]], unit[at["rule_under"][:-1]], unit[at["rule_state"][:-1]]
    bar, edge_left = (total(f"{bank}_mark", [MARKS.index(BAR)]) for bank in ("centre", "left"))
    left, centre, right = heads("left"), heads("centre"), heads("right")
    plain, rows = says(*SYMBOLS), len(SYMBOLS)
    composite = says(*(state + symbol for state in STATES for symbol in SYMBOLS))
    state_of, symbol_of = states.repeat_interleave(rows, 0), torch.arange(len(composite)) % rows

    def when(*conditions: Tensor, say: Tensor) -> Neurons:
        return all_of(torch.stack([condition.expand(len(say), width) for condition in conditions]), say)

    return together(
        when(cells, one - left - right, say=plain),
        when(cells, left, stays_left, say=plain),
        when(cells, right, stays_right, say=plain),
        when(cells[symbol_of], left, moves["R"], state_of, say=composite),
        when(cells[symbol_of], right, moves["L"], state_of, say=composite),
        when(written, centre, moves["R"], say=plain),
        when(written, centre, moves["L"], one - edge_left, say=plain),
        when(written[symbol_of], centre, moves["S"], state_of, say=composite),
        when(bar, one - left, say=says(BAR)),
        when(bar, left, stays_left, say=says(BAR)),
        when(bar, left, moves["R"], say=says(EDGE)),
        when(centre, moves["L"], edge_left, say=says(EDGE)),
        when(left + centre + right, no_rule, one - bar, say=says(HALT)),
    )


def ids_of(text: str) -> list[int]:
    """Token ids of a text, after the first token, which begins every prompt."""
    ids, place = [0], 0
    while place < len(text):
        size = 2 if text[place] in STATES else 1
        ids.append(ID[text[place : place + size]])
        place += size
    return ids


def specimen_ids(texts: list[str], window: int) -> tuple[Tensor, Tensor]:
    """Ids, cut to the shortest text, and the positions with an answer: from the end of the first tape on."""
    rows = [ids_of(text) for text in texts]
    length = min(map(len, rows))
    ids = torch.tensor([row[:length] for row in rows])
    asked = torch.zeros_like(ids, dtype=torch.bool)
    for row, line in enumerate(ids.tolist()):
        asked[row, line.index(ID[BAR]) + window + 1 :] = True
    return ids, asked
