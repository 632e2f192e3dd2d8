"""A model runs from the nearest stream that an earlier run has kept, with the same bits as from its first block."""

import pytest
import torch

import composites
import tiny
from stitch.activations import harvest as harvesting
from stitch.activations.harvest import harvest
from stitch.activations.kept import kept
from stitch.composite.compose import streams_from
from stitch.files.store import Store
from stitch.models.loading import load
from stitch.text.windows import Windows


@pytest.fixture
def short_files(monkeypatch):
    monkeypatch.setattr(harvesting, "TOKENS_PER_FILE", 36)  # three windows


def windows(rows=5, context=12):
    ids = torch.randint(5, 60, (rows, context), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    return Windows(ids, torch.zeros_like(ids))


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.usefixtures("short_files")
def test_a_later_site_costs_the_blocks_after_the_kept_one_and_has_the_same_bits(family, tmp_path):
    model, text, store = tiny.model(family), windows(), Store(tmp_path / "store")
    last = model.depth
    fresh = harvest(model, text, [last], tmp_path / "fresh", per_shard=3)
    harvest(model, text, [last - 1], tmp_path / "one", per_shard=3, store=store)
    found = kept(model, [text], [last], store, streams_from)
    assert (found.files, found.there, found.left) == (2, 0, pytest.approx(1 / last))
    assert kept(model, [text], [last], store).left == 1  # a harvest that is not told how starts at the first block

    assert model.flow  # found by running the model once

    def refuse(module, args):
        raise AssertionError("the first block ran")

    model.blocks[0].register_forward_pre_hook(refuse)
    later = harvest(model, text, [last], tmp_path / "two", per_shard=3, store=store, late=streams_from)
    assert later.shards == 2 and torch.equal(later.all(last), fresh.all(last))
    assert store.reused == {}  # what is only read to start from does not count


@pytest.mark.usefixtures("short_files")
def test_runs_over_the_same_text_find_each_others_files_whatever_sites_they_read(tmp_path):
    model, store = tiny.model("gpt2"), Store(tmp_path / "store")
    harvest(model, windows(8), range(model.depth + 1), tmp_path / "all", per_shard=1, store=store)
    text = windows(10)
    assert torch.equal(text.ids[:8], windows(8).ids)  # more tokens of a text are more windows in the same order
    used = Store(tmp_path / "store")
    found = harvest(model, text, [2, 4], tmp_path / "some", per_shard=7, store=used)
    assert used.reused == used.missed == {"activations": 4}  # of each site two whole files and two others
    fresh = harvest(model, text, [2, 4], tmp_path / "fresh", per_shard=10)
    assert [len(found.read(shard, 4)) for shard in range(found.shards)] == [7, 3]
    assert torch.equal(found.all(4), fresh.all(4))


def test_a_composite_runs_from_its_first_block_and_is_planned_so(tmp_path):
    model, text, store = load(composites.write(tmp_path, a="qwen3", b="llama")), windows(), Store(tmp_path / "store")
    harvest(model, text, [4], tmp_path / "one", store=store)
    found = kept(model, [text], [4, 5], store, streams_from)
    assert (found.files, found.there) == (2, 1)
    ran = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: ran.append(len(args[0])))
    harvest(model, text, [4, 5], tmp_path / "two", store=store, late=streams_from)
    assert sum(ran) == len(text.ids) and found.left == 1.0


def test_a_damaged_stream_is_not_started_from(tmp_path):
    model, text, store = tiny.model("gpt2"), windows(), Store(tmp_path / "store")
    harvest(model, text, [1], tmp_path / "one", store=store)
    (entry,) = store.entries()
    content = next((entry.folder / "content").parent.glob("content*"))
    data = bytearray(content.read_bytes())
    data[-1] ^= 1
    content.unlink()
    content.write_bytes(data)
    fresh = harvest(model, text, [2], tmp_path / "fresh").all(2)
    assert torch.equal(harvest(model, text, [2], tmp_path / "two", store=store, late=streams_from).all(2), fresh)
