"""A tied model that is joined to itself: its embedding, which is its head too, is stored, counted and trained once."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import composites
import tiny
from jobs import gpt2_and_qwen3, settings
from stitch.composite.checkpoint import write_checkpoint
from stitch.composite.compose import compose, shares_matrix
from stitch.composite.costs import Costs, cost_of
from stitch.conversions.ngrams.assemble import keeps_embedding
from stitch.jobs.join import stitch
from stitch.modeling.modeling_composite import StitchForCausalLM
from stitch.models.loading import load
from stitch.translation.types import Fallback, Ngram, Residual, Term, Token, Translation

V = tiny.VOCABULARY


def translation(width: int, site: int) -> Translation:
    """Reads the stream, a table and the shared matrix, for tokens that the table has not."""
    known = torch.arange(10, 90)
    terms = (
        Term(Residual(site), torch.eye(width)),
        Term(Token(0, known), tiny.noise(80, width) / 9, Fallback("b", tiny.noise(width + 1, width, seed=6) / 9, 0.1)),
        Term(Ngram(2, composites.PAIRS), tiny.noise(2, width, seed=7)),
    )
    return Translation("stream and tables", terms, tiny.noise(width, seed=9))


def self_join(folder: Path, name: str = "llama") -> Path:
    """Blocks 0 and 1 of a pico model, then those from block 3, in `folder`/composite; the model lies beside it."""
    donor = tiny.save(folder / "donor", name)
    model = load(donor)
    made = translation(model.width, 2)
    write_checkpoint(folder / "composite", compose(model, model, 2, 3, made).config, donor, donor, made)
    return folder / "composite"


def names(folder: Path) -> set[str]:
    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= set(opened.keys())
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_the_matrix_is_stored_once_and_nothing_else_changes(tmp_path, name):
    folder = self_join(tmp_path, name)
    model = load(tmp_path / "donor")
    in_memory = compose(model, model, 2, 3, translation(model.width, 2))
    loaded = load(folder).net
    assert loaded.config.shares_embedding
    head = f"b.{loaded.config.b_flow['head']}.weight"
    assert head in in_memory.state_dict() and head not in names(folder)
    ids = tiny.ids(2, 9)
    assert torch.equal(loaded(ids).logits, in_memory(ids).logits)
    apart = load(tmp_path / "donor")  # the same tensors in another place: nothing is shared
    assert not shares_matrix(model, apart)
    assert torch.equal(compose(model, apart, 2, 3, translation(model.width, 2))(ids).logits, in_memory(ids).logits)


def test_a_tied_model_before_another_shares_nothing():
    gpt2, llama = tiny.model("gpt2"), tiny.model("llama")
    untied = tiny.model("llama", tie_word_embeddings=False)
    assert shares_matrix(llama, llama)
    assert not shares_matrix(gpt2, llama) and not shares_matrix(untied, untied)


def test_costs_are_those_of_the_composite():
    model = tiny.model("llama")
    made = translation(model.width, 2)
    cost = Costs(model, model, 16).composite(2, 3, made)
    counted = cost_of(compose(model, model, 2, 3, made), cost.flops)
    assert cost == counted
    without_blocks = Costs(model, model, 16).composite(2, 3, Translation("tables", made.terms[1:], made.bias))
    assert without_blocks.parameters < cost.parameters - model.embedding.weight.numel()


def test_training_changes_one_matrix(tmp_path):
    net = load(self_join(tmp_path)).net
    net.train()
    ids = tiny.ids(2, 9)
    net(input_ids=ids, labels=ids).loss.backward()
    assert net.get_input_embeddings().weight is net.get_output_embeddings().weight
    net.get_input_embeddings().weight.data.add_(net.get_input_embeddings().weight.grad)
    net.save_pretrained(tmp_path / "again")
    again = StitchForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again.eval()(ids).logits, net.eval()(ids).logits)


@torch.no_grad()
def test_a_larger_vocabulary_keeps_it_shared(tmp_path):
    net, ids = load(self_join(tmp_path)).net, tiny.ids(2, 9)
    before = net(ids).logits
    net.resize_token_embeddings(V + 9)
    assert net.get_input_embeddings().weight is net.get_output_embeddings().weight
    assert torch.equal(net(ids).logits[..., :V], before)


@torch.no_grad()
def test_such_a_composite_can_come_first(tmp_path):
    """Its head is kept, as its translation reads it for tokens that a table has not."""
    folder = self_join(tmp_path)
    first, second = load(folder), tiny.save(tmp_path / "gpt2", "gpt2")
    b, ids = load(second), tiny.ids(2, 9)
    made = Translation(
        "stream", (Term(Residual(first.depth), tiny.noise(first.width, b.width) / 9),), tiny.noise(b.width)
    )
    net = compose(first, b, first.depth, 1, made)
    written = tmp_path / "second"
    write_checkpoint(written, net.config, folder, second, made)
    loaded = load(written)
    assert torch.equal(loaded.net(ids).logits, net(ids).logits)


@torch.no_grad()
def test_a_head_that_was_trained_apart_is_not_taken_for_the_embedding(tmp_path):
    """Its config still says that they are shared."""
    model = load(self_join(tmp_path))
    assert keeps_embedding(model)
    head = f"{model.net.config.b_flow['head']}.weight"
    model.net.b.get_submodule(head.rpartition(".")[0]).weight = torch.nn.Parameter(tiny.noise(V, model.width))
    assert not keeps_embedding(model)


@pytest.mark.slow
def test_an_untrained_a_has_the_bytes_of_the_composite(tmp_path):
    """It shares no matrix with B, and has as many bytes for tables as if it did."""
    paths = gpt2_and_qwen3(tmp_path)
    model = str(tiny.save(tmp_path / "donor", "llama"))
    asked = settings(
        model, model, paths["text"], layer_b=3, translation="affine+free+tables", seam_bytes=5.0, sae_passes=0.3
    )
    rows = {row["name"]: row for row in stitch(asked, tmp_path / "joined")[0]["results"]}
    assert 0.9 < rows["null:untrained-a"]["bytes"] / rows["composite"]["bytes"] <= 1
