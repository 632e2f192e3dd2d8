import os
import threading
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from safetensors.torch import load_file

import tiny
import tolerance
from stitch.activations import harvest as harvesting
from stitch.activations.harvest import Activations, harvest
from stitch.activations.observe import observe, residuals
from stitch.activations.one_behind import one_behind
from stitch.activations.paired import Paired, pair
from stitch.errors import StitchError
from stitch.text.windows import Windows

pytestmark = pytest.mark.numeric


@pytest.fixture(autouse=True)
def short_files(monkeypatch):
    monkeypatch.setattr(harvesting, "TOKENS_PER_FILE", 50)  # five windows of ten tokens


def windows(count: int = 12, context: int = 10, seed: int = 0) -> Windows:
    ids = tiny.ids(count, context, seed)
    return Windows(ids.int(), torch.zeros_like(ids).int())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_sites_are_the_hidden_states_of_the_whole_model(family: str):
    model, ids = tiny.model(family), tiny.ids()
    with torch.no_grad():
        whole = model.net(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    found = residuals(model, ids, [0, 2, 5])
    assert list(found) == [0, 2, 5]
    for site, stream in found.items():
        assert (stream - whole[site]).abs().max() == 0.0


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_neurons_are_the_inputs_of_the_down_projection(family: str):
    model, ids, outputs, ran = tiny.model(family), tiny.ids(), [], []
    mlp = model.blocks[2].get_submodule(model.anatomy.mlp)
    handle = mlp.register_forward_hook(lambda module, args, output: outputs.append(output))
    seen = observe(model, {"input_ids": ids}, streams=[0, 3], neurons=[2])
    handle.remove()
    (neurons,), width = seen.neurons.values(), model.width
    assert neurons.shape == (*ids.shape, getattr(model.config, "n_inner", None) or model.config.intermediate_size)
    assert outputs[0].shape[-1] == width and torch.equal(model.down(2)(neurons), outputs[0])
    # The MLP's output is written to the stream through the norm that the anatomy names, or directly.
    norm = model.anatomy.mlp_out_norm
    written = outputs[0] if norm is None else model.blocks[2].get_submodule(norm)(outputs[0])
    model.blocks[2].get_submodule(model.anatomy.mlp).register_forward_hook(lambda *call: torch.zeros_like(call[-1]))
    if norm is not None:  # a norm of zeros is zero, except for biases
        assert model.blocks[2].get_submodule(norm)(torch.zeros(1, width)).abs().max() == 0
    beside = residuals(model, ids, [3])[3]
    assert torch.allclose(beside + written, seen.streams[3], atol=1e-5)
    model.blocks[3].register_forward_hook(lambda *call: ran.append(3))
    observe(model, {"input_ids": ids}, neurons=[2])
    assert not ran and not model.down(2)._forward_pre_hooks


def test_blocks_after_the_last_site_are_not_computed_and_no_hook_remains():
    model = tiny.model("llama")
    ran: list[int] = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    residuals(model, tiny.ids(), [1, 3])
    assert ran == [0, 1, 2]
    assert not any(block._forward_pre_hooks for block in model.blocks)


def test_the_last_site_is_the_stream_entering_the_final_norm():
    model, ids = tiny.model("gpt2"), tiny.ids()
    stream = residuals(model, ids, [tiny.DEPTH])[tiny.DEPTH]
    with torch.no_grad():
        logits = model.head(model.final_norm(stream))
        assert (logits - model.net(input_ids=ids).logits).abs().max() == 0.0


def test_nan_is_refused_with_the_site():
    model = tiny.model("llama")
    with torch.no_grad():
        model.blocks[2].mlp.down_proj.weight[0, 0] = float("nan")
    residuals(model, tiny.ids(), [2])
    with pytest.raises(StitchError, match="site 3"):
        residuals(model, tiny.ids(), [3])


def test_an_interrupted_harvest_continues_with_the_missing_shards(tmp_path: Path):
    model, text = tiny.model("llama"), windows()
    done = harvest(model, text, [1, 3], tmp_path / "whole", per_shard=5)
    assert done.shards == 3
    cut = harvest(model, text, [1, 3], tmp_path / "cut", per_shard=5)
    before = [cut.path(0, 1).stat().st_mtime_ns, cut.path(1, 3).stat().st_mtime_ns]
    cut.path(1, 1).unlink()
    again = harvest(model, text, [1, 3], tmp_path / "cut", per_shard=5)
    assert [again.path(0, 1).stat().st_mtime_ns, again.path(1, 3).stat().st_mtime_ns] == before
    for shard in range(3):
        for site in (1, 3):
            assert done.path(shard, site).read_bytes() == again.path(shard, site).read_bytes()


def test_progress_says_of_which_split_activations_are(tmp_path: Path):
    told: list[str] = []
    harvest(
        tiny.model("llama"),
        replace(windows(), split="fit"),
        [1],
        tmp_path / "fit",
        progress=lambda *one: told.append(one[0]),
    )
    assert told and all(" on the fit split (tokens)" in stage for stage in told)


def test_a_batch_is_written_while_the_next_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = windows()
    wanted = harvest(tiny.model("llama"), text, [1, 3], tmp_path / "at once", per_shard=5)
    computed: list[threading.Event] = [threading.Event() for _ in text.ids]
    late, waited = iter(computed), []

    def observed(*arguments):
        found = residuals(*arguments)
        next(late).set()
        return found

    def behind(batches, put) -> None:
        last = len(waited) + len(text.ids[len(waited) :][:5]) - 1

        def waiting(streams: dict) -> None:
            waited.append(computed[min(len(waited) + 1, last)].wait(20))
            put(streams)

        one_behind(batches, waiting)

    monkeypatch.setitem(harvesting.TOKENS_AT_ONCE, "cpu", text.context)
    monkeypatch.setattr(harvesting, "residuals", observed)
    monkeypatch.setattr(harvesting, "one_behind", behind)
    found = harvest(tiny.model("llama"), text, [1, 3], tmp_path / "beside", per_shard=5)
    assert waited == [True] * len(text.ids)
    exact = tolerance.of_a_pass(tiny.model("llama"))
    for shard in range(3):
        assert tolerance.apart(found.read(shard, 3), wanted.read(shard, 3)) < exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shard_is_readable_by_safetensors(dtype: torch.dtype, tmp_path: Path):
    model, text = tiny.model("llama"), windows()
    model.net.to(dtype)
    found = harvest(model, text, [3, 1], tmp_path, per_shard=5)
    for shard in range(3):
        whole = residuals(model, text.ids[found.rows(shard)].long(), [1, 3])
        for site, x in whole.items():
            (stored,) = load_file(found.path(shard, site)).items()
            assert stored[0] == f"resid_pre.{site}" and stored[1].dtype == dtype and torch.equal(stored[1], x)


@pytest.mark.parametrize("shard", range(3))
def test_a_shard_that_cannot_be_written_fails_the_harvest(shard: int, tmp_path: Path):
    (tmp_path / f"{shard:05d}-1.safetensors.{os.getpid()}.tmp").mkdir()
    with pytest.raises(Exception, match=r"[Dd]irectory"):
        harvest(tiny.model("llama"), windows(), [1], tmp_path, per_shard=5)


def test_a_harvest_of_other_text_sites_or_models_is_not_reused(tmp_path: Path):
    model, text = tiny.model("llama"), windows()
    other = replace(text, ids=text.ids.flip(0))
    for given, sites, from_model in ((other, [1], model), (text, [1, 3], model), (text, [1], tiny.model("qwen2"))):
        harvest(model, text, [1], tmp_path / "used", per_shard=5)
        used = harvest(from_model, given, sites, tmp_path / "used", per_shard=5)
        fresh = harvest(from_model, given, sites, Path(mkdtemp(dir=tmp_path)), per_shard=5)
        for shard in range(3):
            assert torch.equal(used.read(shard, sites[-1]), fresh.read(shard, sites[-1]))


def paired(tmp_path: Path, count: int = 12) -> Paired:
    text = windows(count)
    a = harvest(tiny.model("gpt2"), text, [2], tmp_path / "a", per_shard=4)
    b = harvest(tiny.model("qwen2"), text, [3], tmp_path / "b", per_shard=4)
    return pair(a, b, 2, 3)


def test_chunks_are_the_same_tokens_in_both_models(tmp_path: Path):
    found = paired(tmp_path)
    x, y, ids = (torch.cat(parts) for parts in zip(*found.chunks(7), strict=True))
    text = found.a.windows.ids
    assert torch.equal(ids, text[found.keep].long())
    with torch.no_grad():
        expected = residuals(tiny.model("gpt2"), text.long(), [2])[2][found.keep]
        assert torch.allclose(x, expected, atol=1e-5)
        assert torch.allclose(y, residuals(tiny.model("qwen2"), text.long(), [3])[3][found.keep], atol=1e-5)


def test_bos_and_sinks_of_either_model_are_left_out(tmp_path: Path):
    text = windows(4)
    streams = {name: torch.ones(4, 10, 3) for name in "ab"}
    streams["a"][1, 4] = 100.0
    streams["b"][2, 7] = 100.0
    from safetensors.torch import save_file

    for name, stream in streams.items():
        (tmp_path / name).mkdir()
        save_file({"resid_pre.0": stream}, tmp_path / name / "00000-0.safetensors")
    found = pair(Activations(tmp_path / "a", (0,), text, 4), Activations(tmp_path / "b", (0,), text, 4), 0, 0)
    expected = torch.ones(4, 10, dtype=torch.bool)
    expected[:, 0] = expected[1, 4] = expected[2, 7] = False
    assert torch.equal(found.keep, expected)


def test_batches_from_a_later_start_are_the_rest_of_the_same_stream(tmp_path: Path):
    found = paired(tmp_path)
    stream = found.batches(8, seed=3, group=2)
    whole = [next(stream) for _ in range(40)]
    for start in (1, 6, 13, 27):
        rest = found.batches(8, seed=3, group=2, start=start)
        for expected in whole[start : start + 5]:
            x, y = next(rest)
            assert torch.equal(x, expected[0]) and torch.equal(y, expected[1])
    other = next(found.batches(8, seed=4, group=2))
    assert not torch.equal(other[0], whole[0][0])


def test_shards_that_fill_no_batch_are_taken_together(tmp_path: Path):
    """With little memory a shard may hold one window."""
    text = windows(12)
    a = harvest(tiny.model("gpt2"), text, [2], tmp_path / "a", per_shard=1)
    b = harvest(tiny.model("qwen2"), text, [3], tmp_path / "b", per_shard=1)
    found = pair(a, b, 2, 3)
    size = 3 * int(found.keep[0].sum())
    stream = found.batches(size, seed=0, group=2)
    rows = torch.cat([next(stream)[0] for _ in range(found.tokens // size)])
    assert len(rows.unique(dim=0)) == len(rows)
    assert torch.equal(found.first(25), torch.cat([x for x, _, _ in found.chunks()])[:25])


def test_an_epoch_of_batches_visits_every_row_at_most_once(tmp_path: Path):
    found = paired(tmp_path)
    stream = found.batches(8, seed=0, group=3)
    rows = torch.cat([next(stream)[0] for _ in range(found.tokens // 8)])
    assert len(rows.unique(dim=0)) == len(torch.cat([x for x, _, _ in found.chunks()]).unique(dim=0)) - found.tokens % 8


def test_a_batch_larger_than_the_text_is_refused(tmp_path: Path):
    with pytest.raises(StitchError, match="must fill a batch of 1000"):
        next(paired(tmp_path).batches(1000, seed=0, group=2))


def test_a_sample_consists_of_whole_windows_and_depends_only_on_the_seed(tmp_path):
    model = tiny.model("llama")
    windows = Windows(tiny.ids(40, 10).int(), torch.zeros(40, 10, dtype=torch.int32))
    whole = pair(*(harvest(model, windows, [2], tmp_path / side, per_shard=16) for side in "ab"), 2, 2)
    part = whole.sample(90, seed=3)
    kept = part.keep.any(1)
    assert kept.sum() == 10 and torch.equal(part.keep[kept], whole.keep[kept])
    assert torch.equal(part.keep, whole.sample(90, seed=3).keep) and not torch.equal(
        part.keep, whole.sample(90, 4).keep
    )
    assert whole.sample(whole.tokens, seed=0) is whole
