"""A circuit as an attribution graph: it has the fields that circuit-tracer and Neuronpedia read, and the weights of edges."""

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import cli
import planted
import tiny
from graph_format import check_format
from stitch.circuits import prompt_graph as graphs
from stitch.circuits.behaviours.named import make_prompts
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import Components
from stitch.circuits.edges import contributions, direct_effects
from stitch.circuits.graph_json import graph_place, write_graph
from stitch.circuits.prompt_graph import prompt_graph
from stitch.models.loading import load
from stitch.models.model import Model


@pytest.fixture(scope="module")
def induction(tmp_path_factory) -> Path:
    return planted.induction(tmp_path_factory.mktemp("donor") / "gpt2")


@pytest.fixture(scope="module")
def written(induction: Path, tmp_path_factory) -> Path:
    """A folder with what the command writes."""
    folder = tmp_path_factory.mktemp("written")
    done = CliRunner().invoke(
        cli.app,
        [
            "circuit",
            str(induction),
            "--behaviour",
            "induction",
            "--prompts",
            "8",
            "-q",
            "--out",
            str(folder / "found.json"),
        ],
    )
    assert done.exit_code == 0, done.stderr
    return folder


def test_the_command_writes_a_graph_in_the_format_beside_its_report(written: Path, induction: Path):
    assert sorted(path.name for path in written.iterdir()) == ["found.graph.json", "found.html", "found.json"]
    text = (written / "found.graph.json").read_text(encoding="utf-8")
    graph = json.loads(text)
    check_format(graph)
    assert graph["metadata"]["slug"] == "gpt2-induction" and graph["metadata"]["scan"] == str(induction)
    assert graph["metadata"]["generation_settings"]["unit"] == "nats per answer"
    assert "EAP-IG" in graph["metadata"]["generation_settings"]["method"]
    assert str(induction.parent) not in graph["metadata"]["slug"]


@pytest.mark.parametrize("name", ["c.json", "c", "c.html", "c.graph.json"])
def test_the_graph_never_lies_in_the_place_of_the_report_or_its_page(name: str):
    place = graph_place(Path(name))
    assert place.name.endswith(".graph.json") and place != Path(name)


def test_the_graph_shows_the_planted_path(induction: Path, tmp_path: Path):
    model = load(induction)
    with torch.no_grad():  # softer attention: between two prompts that give it one token each, gradients vanish
        model.net.get_submodule("transformer.h.1.attn").c_attn.weight.view(model.width, 3, 4, -1)[:, 0, 2] *= 0.05
    prompts = make_prompts("induction", model.tokenizer, count=4, longest=model.longest)
    kept = Components.none(model)
    kept.masks["heads", 0][1] = kept.masks["heads", 1][2] = True
    graph = write_graph(tmp_path / "graph.json", model, prompts, kept, name="planted", behaviour="induction")
    nodes = {node["node_id"]: node for node in graph["nodes"]}
    links = [(nodes[link["source"]], nodes[link["target"]], link["weight"]) for link in graph["links"]]
    ids = [int(node["node_id"].split("_")[1]) for node in graph["nodes"] if node["feature_type"] == "embedding"]
    answers = [node for node in graph["nodes"] if node["feature_type"] == "logit"]
    assert all(node["token_prob"] > 0.9 and node["is_target_logit"] for node in answers)
    assert [node["feature"] for node in answers[:-1]] == [ids[node["ctx_idx"] + 1] for node in answers[:-1]]
    followed = []
    for answer in answers:
        # The head that finds an earlier occurrence leads into the answer at its own position ...
        [finder] = [tail for tail, head, _ in links if head is answer and tail["clerp"] == "head 1.2"]
        assert finder["ctx_idx"] == answer["ctx_idx"]
        # ... and reads most of what the other head has copied to the token after that occurrence. Weak links are not drawn.
        into = [
            (abs(weight), tail["ctx_idx"])
            for tail, head, weight in links
            if head is finder and tail["clerp"] == "head 0.1"
        ]
        if into:
            followed.append(ids[max(into)[1]] == answer["feature"])
    assert len(followed) >= 10 and sum(followed) >= 0.6 * len(followed)  # at random it would be one of twenty
    settings = graph["metadata"]["generation_settings"]
    assert settings["difference"] == pytest.approx(answered_nats(model, prompts), rel=1e-4)


@torch.no_grad()
def answered_nats(model: Model, prompts: Prompts) -> float:
    """By how much the answers of the first prompt are likelier on its clean than on its corrupt version."""
    clean, corrupt = (model.net(ids[:1]).logits[0].log_softmax(-1) for ids in (prompts.clean, prompts.corrupt))
    found = (clean - corrupt).gather(1, prompts.answers[0][:, None])[:, 0]
    return float(found[prompts.asked[0]].mean())


def everything(model: Model) -> Components:
    return Components({place: torch.ones_like(mask) for place, mask in Components.none(model).masks.items()})


@pytest.mark.numeric
def test_weights_are_direct_effects_and_what_is_left_out_is_counted(tmp_path: Path):
    model, kept = tiny.shared("llama"), everything(tiny.shared("llama"))
    prompts = make_prompts("duplicate-token", model.tokenizer, count=2)
    graph = write_graph(tmp_path / "g.json", model, prompts, kept, name="tiny:llama", behaviour="duplicate-token")
    check_format(graph)
    assert graph["metadata"]["info"]["generator"] == {"name": "stitch-lm", "version": version("stitch-lm")}
    assert json.loads((tmp_path / "g.json").read_text(encoding="utf-8")) == graph
    end = int(prompts.asked[0].nonzero().max()) + 1
    one = Prompts(*(each[:1, :end] for each in (prompts.clean, prompts.corrupt, prompts.asked, prompts.answers)))
    every = kept.listed()
    names = [f"{kind[:-1]} {block}.{number}" for (kind, block), number in every]
    nats = contributions(model, one, every)[:, :-1]
    shown = [node for node in graph["nodes"] if node["influence"] is not None]
    assert len(shown) == graphs.NODES  # as many as there may be, and those are the strongest
    assert min(abs(node["nats"]) for node in shown) >= float(nats.abs().flatten().sort().values[-graphs.NODES]) - 1e-6
    for node in shown:
        value = nats[node["ctx_idx"], names.index(node["clerp"])]
        assert node["nats"] == pytest.approx(float(value), abs=1e-6)
        together = nats.abs()[nats.abs() >= value.abs()].sum() / nats.abs().sum()
        assert node["influence"] == pytest.approx(float(together), abs=1e-6)
        assert (node["activation"] is None) == node["clerp"].startswith("head")
    settings = graph["metadata"]["pruning_settings"]
    assert settings["nodes_left_out"] == nats.numel() - graphs.NODES
    assert settings["nodes_share"] == pytest.approx(
        sum(abs(node["nats"]) for node in shown) / float(nats.abs().sum()), abs=1e-4
    )
    assert 0.98 <= settings["links_share"] < 1 or len(graph["links"]) == graphs.LINKS
    by_id = {node["node_id"]: node for node in graph["nodes"]}
    link = max(graph["links"], key=lambda link: abs(link["weight"]))
    source, target = by_id[link["source"]], by_id[link["target"]]
    into = None if target["feature_type"] == "logit" else every[names.index(target["clerp"])]
    effect = direct_effects(model, one, every, [(into, target["ctx_idx"])])[0, source["ctx_idx"]]
    column = -1 if source["feature_type"] == "embedding" else names.index(source["clerp"])
    assert link["weight"] == pytest.approx(float(effect[column]), abs=1e-6)


@torch.no_grad()
def test_the_prompt_is_the_first_that_is_answered_right():
    model = tiny.shared("llama")
    of = make_prompts("previous-token", model.tokenizer, count=3)
    answers = model.net(of.clean).logits.argmax(-1)
    answers[:2, 4] = answers[:2, 4].roll(1)  # in the first two prompts one answer is not the model's
    kept = Components.none(model)

    def chosen(count: int) -> torch.Tensor:
        of_some = Prompts(of.clean[:count], of.corrupt[:count], of.asked[:count], answers[:count])
        return prompt_graph(model, of_some, kept).prompt.clean[0]

    assert torch.equal(chosen(3), of.clean[2, :-1])  # the last token is not asked for, so it is left out
    assert torch.equal(chosen(2), of.clean[0, :-1])


def test_the_same_run_gives_the_same_bytes(induction: Path, tmp_path: Path):
    model = load(induction)
    prompts = make_prompts("induction", model.tokenizer, count=1, longest=model.longest)
    kept = Components.none(model)
    kept.masks["heads", 1][2] = kept.masks["neurons", 0][3] = True
    texts = []
    for name in ("one.json", "two.json"):
        graph = write_graph(
            tmp_path / name, model, prompts, kept, name="m", behaviour="b", labels={(("heads", 1), 2): "the head"}
        )
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1] and b'"the head"' in texts[0]
    assert re.fullmatch("[a-z0-9-]+", graph["metadata"]["slug"])
