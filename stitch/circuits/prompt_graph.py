"""What a circuit does on one prompt: its components at the prompt's positions, and the direct effects between them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import Component, Components
from stitch.circuits.edges import Target, contributions, difference, direct_effects
from stitch.circuits.score import log_probabilities
from stitch.models.model import Model
from stitch.progress import Progress

NODES, LINKS = 200, 4_000  # a graph has at most so many; each node takes a backward pass
NODE_SHARE, LINK_SHARE = 0.95, 0.98  # and the fewest that have these shares of all absolute contributions
LEAST = 1e-6  # nats; what is below is no node and no link

Node = tuple[Component, int]
"""A component at a position of the prompt."""


@dataclass(frozen=True)
class PromptGraph:
    """A graph on a prompt, all in nats per answer.

    `nats` are the contributions of the `nodes`. `influence` is the share of all absolute contributions that a node and those
    that contribute more have together. `weights` are the direct effects of the prompt's tokens and then the nodes (columns)
    through the nodes and then the answers (rows). Those that are `drawn` are links. `tokens` is what all tokens contribute, and
    `difference` what they would with infinitely many steps.
    """

    prompt: Prompts
    nodes: list[Node]
    nats: Float[Tensor, " nodes"]
    influence: Float[Tensor, " nodes"]
    weights: Float[Tensor, "nodes_and_answers tokens_and_nodes"]
    drawn: Bool[Tensor, "nodes_and_answers tokens_and_nodes"]
    left_out: dict[str, int | float]
    tokens: float
    difference: float

    @property
    def asked(self) -> list[int]:
        """The positions of the answers."""
        return self.prompt.asked[0].nonzero()[:, 0].tolist()


def prompt_graph(model: Model, prompts: Prompts, kept: Components, progress: Progress | None = None) -> PromptGraph:
    """The graph of a circuit's components on the first of some prompts that the model answers right, or else on the first of all;
    up to the last token that is asked for.

    Weak nodes and links are left out; `left_out` says how many, and which share of absolute nats the others have.
    """
    prompt, every = _first_right(model, prompts), kept.listed()
    of_all = contributions(model, prompt, every)
    total = of_all[:, :-1]
    chosen = _strongest(total, NODE_SHARE, NODES)
    nodes: list[Node] = [(every[number], position) for position, number in chosen.nonzero().tolist()]
    sources = list(dict.fromkeys(component for component, _ in nodes))
    answers: list[Target] = [(None, position) for position in prompt.asked[0].nonzero()[:, 0].tolist()]
    effects = direct_effects(model, prompt, sources, [*nodes, *answers], progress=progress)
    tokens = [(position, len(sources)) for position in range(len(total))]
    positions, columns = torch.tensor(
        [*tokens, *((position, sources.index(component)) for component, position in nodes)]
    ).T
    weights = effects[:, positions, columns]
    drawn = _strongest(weights, LINK_SHARE, LINKS)
    return PromptGraph(
        prompt=prompt,
        nodes=nodes,
        nats=total[chosen],
        influence=_cumulative_shares(total)[chosen],
        weights=weights,
        drawn=drawn,
        left_out={
            "nodes_left_out": int(chosen.numel() - chosen.sum()),
            "nodes_share": _share(total, chosen),
            "links_left_out": int((weights != 0).sum() - drawn.sum()),
            "links_share": _share(weights, drawn),
        },
        tokens=float(of_all[:, -1].sum()),
        difference=difference(model, prompt),
    )


@torch.no_grad()
def _first_right(model: Model, prompts: Prompts) -> Prompts:
    """The first prompt with right answers alone, or else the first, up to the last token that is asked for: what comes after that
    changes nothing."""
    chosen = 0
    for number in range(len(prompts.clean)):
        one = prompts.part(slice(number, number + 1))
        logits = model.net(input_ids=one.clean.to(model.device), use_cache=False).logits.cpu()
        options, answers = log_probabilities(logits[one.asked], one.answers[one.asked], one.among)
        if bool((options.argmax(1) == answers).all()):
            chosen = number
            break
    end = int(prompts.asked[chosen].nonzero().max()) + 1
    clean, corrupt, asked, answers = (
        each[chosen : chosen + 1, :end] for each in (prompts.clean, prompts.corrupt, prompts.asked, prompts.answers)
    )
    return Prompts(clean, corrupt, asked, answers, prompts.among)


def _strongest(values: Float[Tensor, "rows columns"], share: float, most: int) -> Bool[Tensor, "rows columns"]:
    """The fewest values that have this share of the sum of absolute values, at most so many."""
    order = values.abs().flatten().sort(descending=True, stable=True)
    before = order.values.cumsum(0) - order.values
    chosen = (before < share * order.values.sum()) & (order.values >= LEAST)
    chosen[most:] = False
    return torch.zeros_like(chosen).scatter(0, order.indices, chosen).view_as(values)


def _cumulative_shares(values: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """The share of the sum of absolute values that a value and all larger ones have."""
    order = values.abs().flatten().sort(descending=True, stable=True)
    shares = order.values.cumsum(0) / order.values.sum()
    return torch.empty_like(shares).scatter(0, order.indices, shares).view_as(values)


def _share(values: Float[Tensor, "rows columns"], chosen: Bool[Tensor, "rows columns"]) -> float:
    """The share of the sum of absolute values that the chosen ones have; 1 where all are 0."""
    whole = float(values.abs().sum())
    return round(float(values.abs()[chosen].sum()) / whole, 6) if whole else 1.0
