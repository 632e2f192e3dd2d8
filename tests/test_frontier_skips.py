"""Alternatives that join blocks in the place of the composite's: within its bytes and its FLOPs."""

from dataclasses import replace

import pytest
import torch

import tiny
from jobs import write_text
from stitch.activations.harvest import harvest
from stitch.composite.compose import early_half, late_half
from stitch.composite.costs import Cost, cost_of, early, late
from stitch.evaluation.scores import Batch
from stitch.files.store import Store
from stitch.frontier.alternative import Alternative, Means
from stitch.frontier.own_tables import own_tables
from stitch.frontier.skips import joined
from stitch.frontier.untrained import untrained
from stitch.models.model import Model
from stitch.text.documents import SPLITS, Split, read, select
from stitch.text.windows import Windows, sample


@torch.no_grad()
def test_own_tables_without_room_for_products_are_made_one_block_deeper(tmp_path):
    """On text that the model writes, tables without directions are worse than one block more as tables."""
    model = tiny.model("llama")
    windows: dict[Split, Windows] = {split: written_by(model, seed) for seed, split in enumerate(SPLITS)}

    def found(flops: float) -> Alternative:
        means = Means(
            limit=Cost(flops, 0, late(model, 2, 16).bytes + 20_000, 0), windows=windows, context=16, ngrams=0, routes=0,
            seed=0, memory=2**28, scratch=tmp_path / "scratch",
        )  # fmt: skip
        one = own_tables(model, means)
        assert one is not None and one.cost.flops <= flops and one.cost.bytes <= means.limit.bytes
        return one

    blocks = late(model, 2, 16).flops
    assert "first 3 of 6 blocks" in found(blocks).made
    assert "first 2 of 6 blocks" in found(blocks + 2 * model.width * 250).made


def written_by(model: Model, seed: int) -> Windows:
    """Windows of 16 tokens, drawn from what the model says."""
    generator, ids = torch.Generator().manual_seed(seed), torch.full((128, 1), tiny.BOS)
    for _ in range(15):
        ids = torch.cat([ids, torch.multinomial(model.net(ids).logits[:, -1].softmax(-1), 1, generator=generator)], 1)
    return Windows(ids.int(), torch.arange(128, dtype=torch.int32)[:, None].expand(-1, 16).contiguous())


def test_a_half_is_built_to_be_counted_once_and_counts_as_before(monkeypatch):
    model, built = tiny.model("llama"), []
    monkeypatch.setattr("stitch.composite.costs.cost_of", lambda net, flops: built.append(net) or cost_of(net, flops))
    halves = {site: (early_half(model, site), late_half(model, site).net) for site in (2, 4)}
    sizes = {site: [sum(weight.numel() for weight in net.parameters()) for net in halves[site]] for site in halves}
    for context in (16, 32, 16):
        for site, size in sizes.items():
            assert [part(model, site, context).parameters for part in (early, late)] == size
    assert len(built) == 4
    assert late(model, 2, 32).flops > late(model, 2, 16).flops > late(model, 4, 16).flops
    model.net.to(torch.bfloat16)
    assert late(model, 2, 16).bytes * 2 == late(tiny.model("llama"), 2, 16).bytes


def test_packed_tables_keep_within_the_bytes_and_the_flops(tmp_path):
    """A packed table multiplies with a small matrix, so that fewer bytes are what brings FLOPs down."""
    a, b = tiny.model("gpt2"), tiny.model("qwen3")
    documents = [*read(str(write_text(tmp_path)))]
    windows: dict[Split, Windows] = {split: sample(select(documents, split), b.tokenizer, 16, 1024) for split in SPLITS}
    size = early(a, 2, 16).bytes + late(b, 2, 16).bytes + 4 * 3 * a.width * b.width + 12_000

    def cost(flops: float) -> Cost:
        means = Means(
            limit=Cost(flops, 0, size, 0), windows=windows, context=16, ngrams=0, routes=0, seed=0, memory=2**28,
            scratch=tmp_path / "scratch",
        )  # fmt: skip
        found = joined(a, b, 2, 2, "translation:affine+free", "", means)
        assert found is not None and found.cost.bytes <= size
        assert not [*means.scratch.iterdir()]  # activations are gone
        return found.cost

    most, least = cost(1e9).flops, cost(0.0).flops
    assert least < most, "tables multiply"
    between = (least + most) / 2
    assert cost(between).flops <= between


@pytest.mark.parametrize("of_a_stranger", [False, True])
def test_streams_of_donors_are_taken_from_the_store_and_those_of_a_stranger_are_not(
    tmp_path, monkeypatch, of_a_stranger: bool
):
    """An untrained model has the folder of its donor; a mark of its own tells them apart in the store."""
    model, store = tiny.model("llama"), Store(tmp_path / "store")
    windows: dict[Split, Windows] = {split: written_by(model, seed) for seed, split in enumerate(SPLITS)}
    without = Means(
        limit=Cost(1e9, 0, 10**7, 0), windows=windows, context=16, ngrams=0, routes=0, seed=0, memory=2**28,
        scratch=tmp_path / "scratch",
    )  # fmt: skip
    for split in ("fit", "sweep"):
        harvest(model, windows[split], range(model.depth + 1), tmp_path / split, store=store)
    a = untrained(model, seed=0) if of_a_stranger else model

    def logits(means: Means) -> torch.Tensor:
        found = joined(a, model, 2, 4, "translation:affine", "", means, counted_as=model if of_a_stranger else None)
        assert found is not None
        return found.logits(Batch(windows["report"].ids.long(), slice(0, 128)))

    fresh = logits(without)
    kept, taken = [entry.key for entry in store.entries()], []
    take = store.take
    monkeypatch.setattr(store, "take", lambda *given: taken.append(take(*given)) or taken[-1])
    assert torch.equal(logits(replace(without, store=store)), fresh)
    assert any(taken) and store.counts() == {"reused": {}, "made": {"activations": 14}}
    assert sorted(entry.key for entry in store.entries()) == sorted(kept)  # nothing that others need is driven out
