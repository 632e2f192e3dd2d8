"""Edges between components: compared with patching one path at a time, with attributions, and with a circuit set by hand."""

from pathlib import Path

import pytest
import torch

import composites
import planted
import tiny
from stitch.circuits.attribution import attribute
from stitch.circuits.behaviours.named import make_prompts
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import Component, Components, separated, watched
from stitch.circuits.edges import ANSWERS, MOST, TOKENS, circuit_edges, contributions, direct_effects, name_of
from stitch.circuits.find import find_circuit
from stitch.models.model import Model

# Where the brute force finds the norms before attention, MLP and head, and the projections that read heads and neurons.
MODULES = {
    "gpt2": ("transformer.h.{}.ln_1", "transformer.h.{}.ln_2", "transformer.ln_f", "transformer.h.{}.attn.c_proj",
             "transformer.h.{}.mlp.c_proj"),
    "llama": ("model.layers.{}.input_layernorm", "model.layers.{}.post_attention_layernorm", "model.norm",
              "model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"),
}  # fmt: skip


def prompts(model: Model, count: int = 3) -> Prompts:
    return make_prompts("previous-token", model.tokenizer, count=count)


def every_component(model: Model) -> list[Component]:
    return [(place, number) for place, mask in Components.none(model).masks.items() for number in range(len(mask))]


class Patched:
    """A model between the corrupt and the clean prompts, in which one path is patched by hooks on its modules."""

    def __init__(self, family: str):
        self.model = tiny.model(family)
        self.net = self.model.net.double()
        self.of = prompts(self.model)
        attention_norm, mlp_norm, self.final_norm, heads, neurons = MODULES[family]
        self.norms, self.readers = {"heads": attention_norm, "neurons": mlp_norm}, {"heads": heads, "neurons": neurons}
        clean, corrupt = (self.model.embedding(ids).detach() for ids in (self.of.clean, self.of.corrupt))
        self.tokens, self.middle = clean - corrupt, (clean + corrupt) / 2

    def reader(self, component: Component):
        (kind, block), _ = component
        return self.net.get_submodule(self.readers[kind].format(block))

    def columns(self, component: Component) -> slice:
        (kind, block), number = component
        width = self.model.config.hidden_size // self.model.heads(block) if kind == "heads" else 1
        return slice(number * width, (number + 1) * width)

    def outputs(self, component: Component, **inputs) -> torch.Tensor:
        """What the projection after a component reads of it."""
        found = []
        handle = self.reader(component).register_forward_pre_hook(lambda _, args: found.append(args[0]))
        self.net(**inputs)
        handle.remove()
        return found[0][..., self.columns(component)]

    def written(self, source: Component | None) -> torch.Tensor:
        """The change of what the source writes to the stream, from the corrupt to the clean prompts."""
        if source is None:
            return self.tokens
        clean, corrupt = (self.outputs(source, input_ids=ids) for ids in (self.of.clean, self.of.corrupt))
        weight = self.reader(source).weight
        weight = weight.T if isinstance(self.reader(source), torch.nn.Linear) else weight
        return (clean - corrupt) @ weight[self.columns(source)]

    def nats(self) -> float:
        logits = self.net(inputs_embeds=self.middle).logits.log_softmax(-1)
        answers = logits.gather(2, self.of.answers[..., None])[..., 0]
        return float(answers[self.of.asked].mean())

    @torch.no_grad()
    def effect(self, source: Component | None, target: Component | None, by: float) -> float:
        """The answers' nats if only what the target reads of the source has changed, by this share."""
        change = by * self.written(source)
        norm = self.final_norm if target is None else self.norms[target[0][0]].format(target[0][1])
        shifted = self.net.get_submodule(norm).register_forward_pre_hook(lambda _, args: (args[0] + change, *args[1:]))
        if target is None:
            found = self.nats()
            shifted.remove()
            return found
        output = self.outputs(target, inputs_embeds=self.middle)
        shifted.remove()

        def put(_, args):
            patched = args[0].clone()
            patched[..., self.columns(target)] = output
            return (patched, *args[1:])

        handle = self.reader(target).register_forward_pre_hook(put)
        found = self.nats()
        handle.remove()
        return found


@pytest.mark.numeric
@pytest.mark.parametrize("family", MODULES)
def test_an_edge_is_the_effect_of_patching_its_path_alone(family: str):
    """To first order: the difference quotient for a small share of the change."""
    patched = Patched(family)
    sources: list[Component] = [(("heads", 1), 2), (("neurons", 1), 7), (("heads", 3), 1)]
    targets: list[Component | None] = [
        (("heads", 3), 0),
        (("neurons", 3), 5),
        (("neurons", 1), 3),
        (("heads", 0), 1),
        None,
    ]
    found = direct_effects(patched.model, patched.of, sources, [(target, None) for target in targets], steps=1).sum(1)
    order = list(Components.none(patched.model).masks)
    step, nonzero = 0.01, 0  # not smaller, because Llama's norms compute in float32
    for row, target in zip(found, targets, strict=True):
        for value, source in zip(row.tolist(), [*sources, None], strict=True):
            if source and target and order.index(source[0]) >= order.index(target[0]):
                assert value == 0  # the source is computed with the target or after it
                continue
            quotient = (patched.effect(source, target, step) - patched.effect(source, target, -step)) / (2 * step)
            assert value == pytest.approx(quotient, rel=2e-3, abs=5e-5), (source, target)
            nonzero += abs(value) > 1e-3
    assert nonzero >= 10


@pytest.mark.numeric
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_edges_out_of_a_component_add_up_to_its_attribution(family: str):
    """Through all components and the answers. Families differ in norms after the MLP and in blocks that run in parallel.

    Of two blocks: each component is the target of all before it, so what this takes grows with the square of their number.
    """
    layers = {"layer_types": ["sliding_attention", "full_attention"]} if family == "gemma3_text" else {}
    model = tiny.model(family, num_hidden_layers=2, **layers)
    of, every = prompts(model), every_component(model)
    attributed = torch.cat([values.double() for values in attribute(model, of, steps=2).values()])
    each = contributions(model, of, every, steps=2).sum(0)
    torch.testing.assert_close(each[:-1], attributed, atol=1e-6, rtol=1e-5)
    targets = [*((one, None) for one in every), (None, None)]
    through = direct_effects(model, of, every, targets, steps=2).sum((0, 1))
    torch.testing.assert_close(through, each, atol=1e-5, rtol=1e-4)
    assert attributed.abs().max() > 0.01


def test_heads_and_neurons_of_a_parallel_block_have_no_edge():
    """In GPT-NeoX the MLP of a block reads the stream that its attention reads."""
    of = {family: prompts(tiny.shared(family)) for family in ("gpt_neox", "llama")}
    found = {
        family: direct_effects(tiny.shared(family), one, [(("heads", 2), 1)], [((("neurons", 2), 3), None)])[0, :, 0]
        for family, one in of.items()
    }
    assert not found["gpt_neox"].any() and found["llama"].any()


@pytest.mark.numeric
def test_targets_at_single_positions_add_up_to_all_positions():
    model = tiny.shared("qwen2")
    of = prompts(model, 2)
    sources: list[Component] = [(("heads", 0), 1), (("neurons", 2), 4)]
    for target in ((("heads", 4), 2), None):
        whole = direct_effects(model, of, sources, [(target, None)])[0]
        apart = direct_effects(model, of, sources, [(target, position) for position in range(of.clean.shape[1])])
        torch.testing.assert_close(apart.sum(0), whole, atol=1e-7, rtol=1e-5)
        # A target at one position reads that position or, through attention, earlier ones.
        assert not any(apart[position, position + 1 :].any() for position in range(of.clean.shape[1]))


def test_separating_components_changes_no_logits():
    model, ids = tiny.shared("gemma2"), tiny.ids()
    with torch.no_grad(), watched(model) as outputs:
        whole = model.net(ids).logits
    with separated(model) as (computed, read):
        logits = model.net(ids).logits
    assert torch.equal(logits, whole)
    assert all(
        torch.equal(computed[place], outputs[place]) and torch.equal(read[place], outputs[place]) for place in outputs
    )
    assert torch.equal(model.net(ids).logits, whole)  # and nothing is left behind


@pytest.fixture(scope="module")
def induction(tmp_path_factory) -> Path:
    return planted.induction(tmp_path_factory.mktemp("donor") / "gpt2")


def test_the_planted_path_has_the_strongest_edges(induction: Path):
    """Tokens, the head that copies the previous one, the head that looks for it, answers; and tokens to that one's values."""
    report = find_circuit(str(induction), "induction", count=16)
    edges = report["edges"]
    assert edges["prompts"] == 16 and edges["left_out"] == 0
    assert edges["components"].keys() == {"head 0.1", "head 1.2", TOKENS}
    assert edges["components"]["head 1.2"] == max(edges["components"][name] for name in ("head 0.1", "head 1.2"))
    into = edges["into"]
    assert into.keys() == {"head 0.1", "head 1.2", ANSWERS}
    assert into["head 0.1"].keys() == {TOKENS}
    through_path, past_it = into["head 1.2"]["head 0.1"], abs(into[ANSWERS].get("head 0.1", 0))
    assert through_path > 1 and past_it < 0.05 * through_path
    assert into[ANSWERS]["head 1.2"] == pytest.approx(edges["components"]["head 1.2"], rel=0.05)
    assert through_path == pytest.approx(edges["components"]["head 0.1"], rel=0.1)


def test_a_composite_that_looks_up_ids_has_no_edges_and_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A circuit of a file is scored in it all the same."""
    monkeypatch.setattr("stitch.circuits.find.LEAST", -1.0)  # its weights are noise, so it has no behaviour
    (tmp_path / "circuit.json").write_text('{"heads": {"1": [0]}}')
    graph = tmp_path / "graph.json"
    folder = composites.write(tmp_path)
    report = find_circuit(str(folder), "previous-token", circuit=tmp_path / "circuit.json", count=4, graph=graph)
    assert report["edges"] is None and not graph.exists()
    assert report["results"][1]["name"] == "circuit alone"


def test_of_a_large_circuit_the_strongest_components_have_edges():
    model = tiny.shared("llama")
    of = prompts(model)
    kept = Components({place: torch.ones_like(mask) for place, mask in Components.none(model).masks.items()})
    edges = circuit_edges(model, of, kept)
    every = every_component(model)
    assert len(edges["components"]) == MOST + 1 and edges["left_out"] == len(every) - MOST
    strength = contributions(model, of, every).sum(0)[:-1].abs()
    assert edges["components"].keys() == {TOKENS, *(name_of(every[number]) for number in strength.topk(MOST).indices)}
    assert all(value for into in edges["into"].values() for value in into.values())
    empty = circuit_edges(model, of, Components.none(model))
    assert empty["components"].keys() == {TOKENS} and empty["into"].keys() == {ANSWERS}
