"""A circuit on one prompt as an attribution graph, in the JSON that circuit-tracer and Neuronpedia read.

The format is that of circuit-tracer's `frontend/graph_models.py` (schema version 1) and of Neuronpedia's `graph-schema.json`.
"""

import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.circuits.attribution import STEPS
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import Component, Components, Place, watched
from stitch.circuits.edges import METHOD, name_of
from stitch.circuits.prompt_graph import LINK_SHARE, NODE_SHARE, PromptGraph, prompt_graph
from stitch.circuits.score import log_probabilities
from stitch.files.workspace import short_name
from stitch.models.model import Model
from stitch.progress import Progress

# The format has no types for these. Viewers draw a type that they do not know as a plain node, without a page of its feature.
TYPES = {"heads": "attention head", "neurons": "mlp neuron"}


def write_graph(
    path: Path,
    model: Model,
    prompts: Prompts,
    kept: Components,
    *,
    name: str,
    behaviour: str,
    labels: Mapping[Component, str] | None = None,
    progress: Progress | None = None,
) -> dict:
    """Writes the graph of a circuit's components on one of some prompts (`prompt_graph`), and returns it.

    `name` is what the model is called. Components are called by `labels`, or else by kind, block and number.
    """
    graph = prompt_graph(model, prompts, kept, progress)
    made = as_json(model, graph, name=name, behaviour=behaviour, labels=labels or {})
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return made


def graph_place(out: Path) -> Path:
    """Where the graph of a circuit lies whose report is in the file `out`: circuit.json has circuit.graph.json."""
    return out.with_suffix(".graph.json")


def as_json(model: Model, graph: PromptGraph, *, name: str, behaviour: str, labels: Mapping[Component, str]) -> dict:
    """The graph as an object of the format. Weights of links, and `nats` of components, are in nats per answer."""
    ids = graph.prompt.clean[0].tolist()
    tokens = [model.tokenizer.decode([token]) for token in ids]
    made = [_token_node(token, text, position) for position, (token, text) in enumerate(zip(ids, tokens, strict=True))]
    outputs, probabilities = _clean_run(model, graph.prompt)
    for number, (component, position) in enumerate(graph.nodes):
        place, index = component
        node = _component_node(component, position, model.heads(place[1]))
        node["clerp"] = labels.get(component, name_of(component))
        node["influence"], node["nats"] = _rounded(graph.influence[number]), _rounded(graph.nats[number])
        if place[0] == "neurons":
            node["activation"] = _rounded(outputs[place][position, index])
        made.append(node)
    answers = [
        _answer_node(model, graph.prompt, position, float(probability))
        for position, probability in zip(graph.asked, probabilities, strict=True)
    ]
    sources = [node["node_id"] for node in made]
    targets = [node["node_id"] for node in [*made[len(tokens) :], *answers]]
    return {
        "metadata": _metadata(model, graph, tokens, name, behaviour),
        "qParams": {
            "pinnedIds": [],
            "supernodes": [],
            "linkType": "both",
            "clickedId": answers[0]["node_id"],
            "sg_pos": "",
        },
        "nodes": [*made, *answers],
        "links": [
            {"source": sources[column], "target": targets[row], "weight": _rounded(graph.weights[row, column])}
            for row, column in graph.drawn.nonzero().tolist()
        ],
    }


def _metadata(model: Model, graph: PromptGraph, tokens: list[str], name: str, behaviour: str) -> dict:
    most = float(graph.influence.max()) if graph.nodes else 1.0
    return {
        "slug": _slug(name, behaviour),
        "scan": name,
        "transcoder_list": [],
        "prompt_tokens": tokens,
        "prompt": model.tokenizer.decode(graph.prompt.clean[0]),
        # Viewers hide nodes whose influence is above this. It is rounded up, so that they show all at first.
        "node_threshold": min(1.0, math.ceil(100 * most) / 100),
        "schema_version": 1,
        "info": {
            "description": f"Circuit for {behaviour}. Weights are nats per answer, relative to the corrupt prompt.",
            "generator": {"name": "stitch-lm", "version": version("stitch-lm")},
        },
        "generation_settings": {
            "method": METHOD,
            "steps": STEPS,
            "unit": "nats per answer",
            "tokens": _rounded(graph.tokens),
            "difference": _rounded(graph.difference),
            "answers": len(graph.asked),
            "answers_compete_with": len(graph.prompt.among) or model.vocabulary,
            "corrupt_prompt": model.tokenizer.decode(graph.prompt.corrupt[0]),
        },
        "pruning_settings": {"node_threshold": NODE_SHARE, "edge_threshold": LINK_SHARE, **graph.left_out},
    }


@torch.no_grad()
def _clean_run(
    model: Model, prompt: Prompts
) -> tuple[dict[Place, Float[Tensor, "length columns"]], Float[Tensor, " answers"]]:
    """The outputs of all components on the clean prompt, and the answers' probabilities among the tokens that compete."""
    with watched(model) as seen:
        logits = model.net(input_ids=prompt.clean.to(model.device), use_cache=False).logits.cpu()
    options, answers = log_probabilities(logits[prompt.asked], prompt.answers[prompt.asked], prompt.among)
    return {place: output[0] for place, output in seen.items()}, options.gather(1, answers[:, None])[:, 0].exp()


def _node(node_id: str, js_id: str, feature: int, layer: str, position: int, feature_type: str) -> dict:
    """A node with all fields of the format, most at their defaults."""
    return {
        "node_id": node_id,
        "feature": feature,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": feature_type,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": js_id,
        "clerp": "",
        "influence": None,
        "activation": None,
    }


def _token_node(token: int, text: str, position: int) -> dict:
    made = _node(f"E_{token}_{position}", f"E_{token}-{position}", position, "E", position, "embedding")
    return {**made, "clerp": f'Emb: "{text}"'}


def _component_node(component: Component, position: int, heads: int) -> dict:
    """Neurons are numbered after the `heads` of their block, because nodes are told apart by layer, number and position."""
    (kind, block), number = component
    index = number if kind == "heads" else heads + number
    pair = (block + index) * (block + index + 1) // 2 + index  # Cantor's pairing, which viewers undo
    return _node(f"{block}_{index}_{position}", f"{block}_{index}-0", pair, str(block), position, TYPES[kind])


def _answer_node(model: Model, prompt: Prompts, position: int, probability: float) -> dict:
    answer, layer = int(prompt.answers[0, position]), str(model.depth + 1)
    made = _node(f"{layer}_{answer}_{position}", f"L_{answer}-{position}", answer, layer, position, "logit")
    # Viewers read the token between the quotation marks, and the probability after `(p=`.
    clerp = f'Output "{model.tokenizer.decode([answer])}" (p={probability:.3f})'
    return {**made, "token_prob": _rounded(probability), "is_target_logit": True, "clerp": clerp}


def _slug(*names: str) -> str:
    """Names joined for files and addresses: lower case, with hyphens."""
    text = "-".join(short_name(Path(name).stem if name.endswith(".jsonl") else name) for name in names).lower()
    return "-".join("".join(one if one.isalnum() else " " for one in text).split())


def _rounded(value: Tensor | float) -> float:
    return round(float(value), 6)
