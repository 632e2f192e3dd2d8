"""Donors deeper than the host: their circuit is rearranged into fewer blocks at the least loss, then written in that
arrangement.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import planted
import tiny
from stitch.circuits.behaviours.named import make_prompts
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import Components
from stitch.circuits.find import choose_circuit
from stitch.circuits.score import answered
from stitch.circuits.shallow import Arrangement, ShallowModel, token_tables, with_reads
from stitch.circuits.squeeze import squeeze, within_capacity
from stitch.errors import StitchError, UsageError
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.compared import PlannedGraft
from stitch.grafts.fresh_host import read_host
from stitch.grafts.graft import graft
from stitch.grafts.plan import make_plan
from stitch.grafts.rearranged import rearranged_circuit
from stitch.grafts.request import GraftRequest
from stitch.grafts.write import write
from stitch.internals import weights
from stitch.internals.weights import FAMILIES
from stitch.models.loading import load
from stitch.models.model import Model

DEEP = ((2, 1), (4, 2))  # heads of a circuit in a model of six blocks
BIASED = {"attention_bias": True, "mlp_bias": True}
WORDS = torch.arange(3, tiny.VOCABULARY)
LONGEST = 48  # tokens of a prompt, of the 80 that the deep model takes: what a search takes grows with them


def pico(family: str) -> Model:
    return tiny.model(family, **({"sliding_window": None} if family == "mistral" else {}))


def right(shallow: ShallowModel, of: Prompts) -> float:
    return answered(shallow.logits, of.clean, of)["right"]


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Model:
    """Blocks 0, 1, 3 and 5 write nothing."""
    return load(planted.induction(tmp_path_factory.mktemp("deep") / "gpt2", noise=0.0, at=DEEP, n_layer=6))


@pytest.fixture(scope="module")
def of(deep: Model) -> Prompts:
    return make_prompts("induction", deep.tokenizer, count=12, longest=LONGEST)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_model_in_its_own_blocks_computes_the_same(family: str):
    model, ids = pico(family), tiny.ids(3, 20)
    shallow = ShallowModel(model, Arrangement.whole(model), token_tables(model, WORDS, {0}))
    assert (shallow.logits(ids) - model.net(ids).logits).abs().max() < 1e-4


@torch.no_grad()
def test_tables_hold_the_mean_stream_of_a_token(deep: Model):
    """Before block 0 this is the embedding. BOS has the same stream in every prompt."""
    model = pico("llama")
    found = token_tables(model, WORDS, {0, 2})
    assert torch.allclose(found.before[0][found.rows[WORDS]], model.embedding.weight[WORDS], atol=1e-5)
    seen = {}
    handle = model.blocks[2].register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    model.net(tiny.ids(2, 9))
    handle.remove()
    assert torch.allclose(found.before[2][found.rows[tiny.BOS]], seen["x"][0, 0], atol=1e-4)


@torch.no_grad()
def test_blocks_that_do_not_compose_merge_without_loss_and_others_do_not(deep: Model, of: Prompts):
    known = token_tables(deep, WORDS, {0})
    idle = ShallowModel(deep, Arrangement(0, (), ((0, 1, 2), (3, 4, 5))), known)
    assert (idle.logits(of.clean) - deep.net(of.clean).logits).abs().max() < 1e-2  # of logits near 100
    assert right(ShallowModel(deep, Arrangement(0, (), ((0, 1), (2, 3, 4), (5,))), known), of) < 0.1


@torch.no_grad()
def test_a_planted_circuit_is_found_in_as_many_blocks_as_it_needs(deep: Model, of: Prompts):
    whole = answered(lambda ids: deep.net(ids).logits, of.clean, of)["right"]
    others = make_prompts("induction", deep.tokenizer, count=32, seed=1, longest=LONGEST)
    two = squeeze(deep, of, 2)
    layers = two.layers
    assert len(two.groups) == 2 and layers[2] < layers[4]
    assert right(with_reads(deep, two, token_tables(deep, WORDS, {two.first}), others), of) > 0.95 * whole > 0.9
    one = squeeze(deep, of, 1)
    # one block is too few, because one head reads the other
    assert right(with_reads(deep, one, token_tables(deep, WORDS, {one.first}), others), of) < 0.1


@torch.no_grad()
def test_no_block_gets_more_components_than_it_has_space_for(deep: Model, of: Prompts):
    shallow = ShallowModel(deep, Arrangement(0, (), ((0, 1, 2), (3, 4, 5))), token_tables(deep, WORDS, {0}))
    tight = within_capacity(shallow, of, {"heads": 1, "neurons": 0}, keep=1.0)
    assert tight.kept is not None and tight.kept.to_dict() == {"heads": {"2": [1], "4": [2]}, "neurons": {}}
    assert right(tight, of) > 0.95


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_a_host_computes_what_the_arrangement_does(family: str, tmp_path: Path):
    """Uses everything of a pico model, with a table, heads beside the first group and merged blocks, in a host of
    the same family.
    """
    model = dataclasses.replace(pico(family), folder=tmp_path)
    model.net.double()
    size = weights.attention(model, 0).q.shape[2]
    host = {"model_type": family, "num_hidden_layers": 3, "max_position_embeddings": 128, "intermediate_size": 400}
    host |= {"hidden_size": 20 * size, "num_attention_heads": 20, "num_key_value_heads": 20, "head_dim": size}
    host |= BIASED
    if family == "gpt2":
        host = {
            "model_type": family,
            "n_layer": 3,
            "n_embd": 20 * size,
            "n_head": 20,
            "n_positions": 128,
            "n_inner": 400,
        }
    path = tmp_path / "host.json"
    path.write_text(json.dumps(host))
    target = read_host(path, model, 0)
    target.net.double()
    ids = tiny.ids(8, 24)
    of = Prompts(ids, tiny.ids(8, 24, seed=1), torch.ones_like(ids, dtype=torch.bool), ids)
    arrangement = Arrangement(2, (0, 1), ((2,), (3, 4), (5,)))
    shallow = with_reads(model, arrangement, token_tables(model, torch.arange(tiny.VOCABULARY), {2}), of)
    everything = Components({place: ~mask for place, mask in Components.none(model).masks.items()})
    if family == "llama":  # the host's final norm has no bias for the shift
        shallow.reads.pop(("final", 0))
    shallow = dataclasses.replace(shallow, means=shallow.mean_outputs(of), kept=everything)
    assert shallow.kept is not None
    plan = make_plan(model, "all", shallow.kept, shallow.means, of, target, FreeSpace.of(target), shallow=shallow)
    write(target, [plan])
    other = tiny.ids(4, 20, seed=2)
    found, wanted = target.net(other).logits, shallow.logits(other)
    gap = (found - found.mean(-1, keepdim=True)) - (wanted - wanted.mean(-1, keepdim=True))
    assert gap.abs().max() < 1e-3 * wanted.abs().max()
    assert (wanted - model.net(other).logits).abs().max() > 0.1  # with fewer blocks the result differs


@pytest.mark.slow
def test_a_shallow_host_has_the_behaviour_of_a_deep_donor_and_no_control_has(
    deep: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From learned positions to RoPE and from six blocks to two. The circuit is searched for in the rearranged
    donor.
    """
    monkeypatch.setattr("stitch.grafts.rearranged.READ_ON", 32)
    path = tmp_path / "host.json"
    shape = dict(
        hidden_size=320, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=5, intermediate_size=64
    )
    path.write_text(
        json.dumps({"model_type": "llama", "max_position_embeddings": 128, **BIASED, **shape, "head_dim": 64})
    )
    host = read_host(path, deep, 0)
    chosen = rearranged_circuit(deep, "induction", choose_circuit(deep, "induction", count=12), host, keep=0.98)
    assert chosen.shallow is not None and len(chosen.shallow.arrangement.groups) == 2
    plan = make_plan(
        deep, "induction", chosen.kept, chosen.means, chosen.first, host, FreeSpace.of(host), shallow=chosen.shallow
    )
    write(host, [plan])
    whole = PlannedGraft(deep, chosen, plan)
    rows = whole.compared(host, whole.controls(lambda: read_host(path, deep, 0), 0), None)
    scores = {row["name"]: row["right"] for row in rows}
    assert scores["all of it in 2 blocks"] > 0.95 * scores["donor"]
    assert scores["host, grafted"] > 0.9 * scores["donor"] > 0.85
    names = ("host without the graft", "noise of the same norm", "blocks in opposite order", "without block 0")
    assert max(scores[name] for name in names) < 0.05
    # graft.json can be given back, also edited; then no circuit is searched for.
    entry = {"circuit": chosen.kept.to_dict(), "features": {}, "plan": plan.described()}
    given = tmp_path / "graft.json"
    given.write_text(json.dumps({"grafts": [entry]}))
    monkeypatch.setattr("stitch.grafts.rearranged.squeeze", None)
    again = graft([GraftRequest(str(deep.folder), "induction", given)], str(path), tmp_path / "out", count=12)[
        "grafts"
    ][0]
    assert (again["circuit"], again["plan"]["arrangement"]) == (entry["circuit"], entry["plan"]["arrangement"])
    assert {row["name"]: row["right"] for row in again["results"]}["host, grafted"] == scores["host, grafted"]


@pytest.mark.parametrize(
    ("arrangement", "message"),
    [
        ({"table": 1, "beside": [], "blocks": [[1, 2], [4, 5]]}, "blocks must come in order from 1 on"),
        ({"table": 1, "beside": [3], "blocks": [[1, 2, 3, 4, 5]]}, "those beside them before"),
        ({"table": 1, "blocks": [[1, 2, 3, 4, 5]]}, "plan.arrangement needs 'beside'"),
        ({"table": 0, "beside": [], "blocks": [[0, 1], [2]]}, r"has 2 groups, the last of \(2,\); .* has 6 blocks"),
        ({"table": 0, "beside": [], "blocks": [[0], [1], [2], [3, 4, 5]]}, "has 4 groups, .* host 2: leave it out"),
    ],
)
def test_impossible_arrangements_are_refused(deep: Model, tmp_path: Path, arrangement: dict, message: str):
    given, host = tmp_path / "graft.json", tmp_path / "host.json"
    given.write_text(json.dumps({"circuit": {"heads": {"4": [2]}}, "plan": {"arrangement": arrangement}}))
    host.write_text(json.dumps({"model_type": "gpt2", "n_embd": 400, "n_layer": 2, "n_head": 5, "n_positions": 80}))
    with pytest.raises(UsageError, match=message):
        graft([GraftRequest(str(deep.folder), "induction", given)], str(host), None, count=8)
    given.write_text(json.dumps({"grafts": [{}, {}]}))
    with pytest.raises(UsageError, match="it has 2 grafts; leave one"):
        graft([GraftRequest(str(deep.folder), "induction", given)], str(host), None, count=8)


@pytest.mark.slow
def test_a_host_with_fewer_blocks_than_the_heads_need_is_refused(
    deep: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stitch.grafts.rearranged.READ_ON", 32)
    path = tmp_path / "host.json"
    shape = dict(
        hidden_size=320, num_hidden_layers=1, num_attention_heads=5, num_key_value_heads=5, intermediate_size=64
    )
    path.write_text(json.dumps({"model_type": "llama", "max_position_embeddings": LONGEST, **shape}))
    with pytest.raises(StitchError, match=r"is in 2 blocks, .* rearranged into the 1 of host .* choose a deeper host"):
        graft([GraftRequest(str(deep.folder), "induction")], str(path), tmp_path / "out", count=12)
    assert not (tmp_path / "out").exists()
