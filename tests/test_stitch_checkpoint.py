"""Composite folders: they load without this package, are reproducible byte for byte, and appear complete or not at
all.
"""

import errno
import json
import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from clean_process import run_clean
from sae.types import Dictionary
from stitch.composite.checkpoint import write_checkpoint
from stitch.composite.compose import compose
from stitch.errors import StitchError, UsageError
from stitch.files.shards import Held, Stored, stored_tensors, write_shards
from stitch.models.loading import load
from stitch.translation.types import Codes, Residual, Term, Token, Translation

PAIRS = [(family, tiny.FAMILIES[(k + 3) % len(tiny.FAMILIES)]) for k, family in enumerate(tiny.FAMILIES)]


def everything(width_a: int, width_b: int, site: int) -> Translation:
    dictionary = Dictionary(
        encoder=tiny.noise(width_a, 16, seed=5),
        encoder_bias=tiny.noise(16, seed=6),
        activation="jumprelu",
        threshold=tiny.noise(16, seed=7).abs(),
        k=None,
        decoder=tiny.noise(16, width_a),
        decoder_bias=torch.zeros(width_a),
    )
    terms = (
        Term(Residual(site), tiny.noise(width_a, width_b) / width_a**0.5),
        Term(Residual(1), None),
        Term(Token(), tiny.noise(tiny.VOCABULARY, width_b, seed=1)),
        Term(Codes(2, dictionary), tiny.noise(16, width_b, seed=2)),
    )
    return Translation("everything", terms, tiny.noise(width_b, seed=3), first=tiny.noise(width_b, seed=4))


def affine(width_a: int, width_b: int, site: int) -> Translation:
    return Translation(
        "affine", (Term(Residual(site), tiny.noise(width_a, width_b) / width_a**0.5),), torch.zeros(width_b)
    )


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("donors")
    return {family: tiny.save(root / family, family) for family in tiny.FAMILIES}


def stitched(donors: dict[str, Path], a: str, b: str, target: Path, *, site: int = 3, make=everything, **options):
    """The composite in memory, the translation, and its folder."""
    model_a, model_b = load(donors[a]), load(donors[b])
    translation = make(model_a.width, model_b.width, site)
    composite = compose(model_a, model_b, site, 2, translation)
    write_checkpoint(target, composite.config, donors[a], donors[b], translation, **options)
    return composite, translation


@torch.no_grad()
def test_a_checkpoint_is_the_composite_in_an_environment_without_this_package(donors, tmp_path):
    """Every family as A and as B, in one clean process: logits, cache, save and reload, batch, pipeline, bf16."""
    ids = tiny.ids()
    expected, narrow = {}, {}
    for index, (a, b) in enumerate(PAIRS):
        make, options = (everything, {}) if index % 2 else (affine, {"max_shard_bytes": 20_000})
        composite, translation = stitched(donors, a, b, tmp_path / "out" / a, make=make, **options)
        expected[a] = composite(ids).logits
        if a == "gpt_neox":
            halves = [load(donors[name], dtype=torch.bfloat16) for name in (a, b)]
            narrow[a] = compose(*halves, 3, 2, translation)(ids).logits
    run_clean(tmp_path / "out", ids, "gpt_neox", tmp_path)
    for a, logits in expected.items():
        result = load_file(tmp_path / "out" / a / "result")
        assert torch.equal(result["logits"], logits), a
        assert torch.equal(result["again"], logits), a
        assert torch.equal(result["cached"], result["uncached"]), a
        if a in narrow:
            assert torch.equal(result["narrow"], narrow[a])
            assert torch.equal(result["mapped"], logits)
            assert torch.equal(result["together"], result["alone"])
            assert torch.equal(result["piped"], result["said"])


def test_shards_hold_the_same_tensors_as_one_file(donors, tmp_path):
    stitched(donors, "llama", "gpt2", tmp_path / "one")
    stitched(donors, "llama", "gpt2", tmp_path / "many", max_shard_bytes=20_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 5
    whole = load_file(tmp_path / "one" / "model.safetensors")
    parts = {name: tensor for file in files for name, tensor in load_file(tmp_path / "many" / file).items()}
    assert index["weight_map"].keys() == whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    largest = max(tensor.nbytes for tensor in whole.values())
    assert all((tmp_path / "many" / file).stat().st_size < max(20_000, largest) + 5_000 for file in files)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_inputs_give_the_same_bytes_in_any_folder(donors, tmp_path):
    for name in ("first", "second"):
        elsewhere = {family: tiny.save(tmp_path / name / family, family) for family in ("gemma2", "gpt2")}
        stitched(elsewhere, "gemma2", "gpt2", tmp_path / name / "out", extra_files={"report.json": b"{}"})
    first = content(tmp_path / "first" / "out")
    assert first == content(tmp_path / "second" / "out")
    assert first["report.json"] == b"{}"
    assert str(tmp_path).encode() not in b"".join(first.values())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_tensor_names_of_hub_checkpoints_are_understood(family, donors, tmp_path):
    """GPT-2 without its prefix and with mask buffers and tied head; GPT-NeoX with `embed_out`."""
    tensors = load_file(donors[family] / "model.safetensors")
    if family == "gpt2":
        assert "lm_head.weight" not in tensors
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        tensors |= {f"h.{block}.attn.bias": torch.ones(1, 1, 8, 8) for block in range(tiny.DEPTH)}
    else:
        head = tensors.pop("embed_out.weight", None)
        tensors["embed_out.weight"] = tensors.pop("lm_head.weight") if head is None else head
    hub = tiny.save(tmp_path / "hub", family)
    save_file(tensors, hub / "model.safetensors", metadata={"format": "pt"})
    for place, folders in {"as saved": donors, "as on the hub": {family: hub}}.items():
        stitched(folders, family, family, tmp_path / place)
    assert content(tmp_path / "as saved") == content(tmp_path / "as on the hub")
    names = stored_tensors(tmp_path / "as on the hub").keys()
    assert not any("wpe" in name for name in names if name.startswith("b."))
    assert not any(name.endswith(".attn.bias") for name in names)


def test_a_dtype_converts_the_weights_but_not_the_translation(donors, tmp_path):
    stitched(donors, "llama", "gpt2", tmp_path / "wide")
    stitched(donors, "llama", "gpt2", tmp_path / "narrow", dtype=torch.bfloat16)
    wide, narrow = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "narrow"))
    for name, tensor in wide.items():
        kept = name.startswith("translation.") and not name.endswith(".table")
        assert torch.equal(narrow[name], tensor if kept else tensor.to(torch.bfloat16)), name
    assert json.loads((tmp_path / "narrow" / "config.json").read_text())["dtype"] == "bfloat16"


def test_weights_keep_the_dtype_in_which_they_are_stored(tmp_path):
    folders = {
        "gpt2": tiny.save(tmp_path / "gpt2", "gpt2", dtype=torch.bfloat16),
        "llama": tiny.save(tmp_path / "llama", "llama"),
    }
    stitched(folders, "gpt2", "llama", tmp_path / "out")
    dtypes = {name: stored.dtype for name, stored in stored_tensors(tmp_path / "out").items()}
    assert {dtype for name, dtype in dtypes.items() if name.startswith("a.")} == {torch.bfloat16}
    assert {dtype for name, dtype in dtypes.items() if name.startswith("b.")} == {torch.float32}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"  # represents both exactly
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(
        again["a.wte.weight"], load_file(tmp_path / "gpt2" / "model.safetensors")["transformer.wte.weight"]
    )


def test_copying_a_large_tensor_takes_little_memory(tmp_path):
    size = 96 * 2**20
    source = tmp_path / "model.safetensors"
    save_file({"large": torch.arange(size // 4, dtype=torch.int32).view(torch.float32)}, source)
    tracemalloc.start()
    target = tmp_path / "copy"
    target.mkdir()
    write_shards(target, dict(stored_tensors(tmp_path).items()), 2**40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 2
    assert (target / "model.safetensors").read_bytes()[-size:] == source.read_bytes()[-size:]


def test_a_file_of_mixed_dtypes_is_read_by_safetensors(tmp_path):
    tensors = {
        "a": torch.ones(3, dtype=torch.bfloat16),
        "b": torch.arange(4.0),
        "c": torch.tensor(7, dtype=torch.int64),
    }
    tensors |= {"d": torch.tensor([True, False, True]), "e": torch.zeros(0, 5)}
    write_shards(tmp_path, {name: Held(tensor) for name, tensor in tensors.items()}, 2**40)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in tensors.items()
    )


def damage_truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damage_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:8] + b"{" * 50 + path.read_bytes()[58:])


def damage_garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>")


def damage_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damage_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def damage_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../../etc/passwd"}}')


def damage_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.4.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def damage_shape(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncated, "its tensors need .* bytes, it has"),
        (damage_header, "its header cannot be read; download or write it again"),
        (damage_garbage, "its 22 bytes do not hold the header"),
        (damage_pickle, r"only pickles \(pytorch_model.bin\)"),
        (damage_missing, "b has none, and pickles are never read"),
        (damage_shard, "lacks 1 of the shards its index names, model-00001"),
        (damage_index, "must name files beside it; got '../../etc/passwd'"),
        (damage_tensor, r"needs the tensor model\.layers\.4\.mlp\.up_proj\.weight"),
        (damage_shape, r"model\.norm\.weight must have shape \(48,\)"),
    ],
)
def test_damaged_donors_are_named_in_one_line_and_nothing_is_left(damage, message, donors, tmp_path):
    a, b = load(donors["gpt2"]), load(donors["qwen2"])
    translation = affine(a.width, b.width, 3)
    config = compose(a, b, 3, 2, translation).config
    damage(tiny.save(tmp_path / "b", "qwen2"))
    with pytest.raises(StitchError, match=message) as caught:  # UsageError is a subclass
        write_checkpoint(tmp_path / "out", config, donors["gpt2"], tmp_path / "b", translation)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind_and_the_old_checkpoint_in_place(failure, donors, tmp_path, monkeypatch):
    target = tmp_path / "out"
    composite, translation = stitched(donors, "llama", "gpt2", target)
    before = content(target)

    def fail(folder, *rest):
        (folder / "model.safetensors").write_bytes(b"half")
        raise failure

    monkeypatch.setattr("stitch.composite.checkpoint.write_shards", fail)
    arguments = (composite.config, donors["llama"], donors["gpt2"], translation)
    with pytest.raises(UsageError, match="set `overwrite`"):
        write_checkpoint(target, *arguments)
    expected = StitchError if isinstance(failure, OSError) else KeyboardInterrupt
    for place in (target, tmp_path / "fresh"):
        with pytest.raises(expected):
            write_checkpoint(place, *arguments, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert content(target) == before


def test_the_old_checkpoint_returns_if_the_new_one_cannot_replace_it(donors, tmp_path, monkeypatch):
    target, replace = tmp_path / "out", os.replace
    composite, translation = stitched(donors, "llama", "gpt2", target)
    before = content(target)

    def refuse(source, destination):
        if Path(source).name == "new":
            raise OSError(errno.EACCES, "Permission denied")
        return replace(source, destination)

    monkeypatch.setattr("stitch.files.folders.os.replace", refuse)
    with pytest.raises(StitchError, match=r"Permission denied\. Make it writable or choose another `out`"):
        write_checkpoint(target, composite.config, donors["llama"], donors["gpt2"], translation, overwrite=True)
    assert content(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwriting_replaces_everything_and_remains_of_a_killed_run_are_removed(donors, tmp_path):
    target = tmp_path / "out"
    stitched(donors, "llama", "gpt2", target, extra_files={"old": b""})
    work = tmp_path / ".out.partial"
    (work / "new").mkdir(parents=True)
    target.rename(work / "replaced")  # killed between the two renames
    stitched(donors, "llama", "gpt2", target, overwrite=True)
    assert "old" not in content(target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_donors_setting_of_a_static_cache_is_not_passed_on(donors, tmp_path):
    b = tiny.save(tmp_path / "b", "gemma2")
    settings = {"eos_token_id": [0, 5], "cache_implementation": "hybrid", "top_k": 64}
    (b / "generation_config.json").write_text(json.dumps(settings))
    a, model = load(donors["llama"]), load(donors["gemma2"])
    translation = affine(a.width, model.width, 3)
    write_checkpoint(tmp_path / "out", compose(a, model, 3, 2, translation).config, donors["llama"], b, translation)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {
        "eos_token_id": [0, 5],
        "top_k": 64,
    }


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_stored_tensor_that_shrinks_while_it_is_copied_is_an_error(dtype, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    with (
        pytest.raises(StitchError, match=r"must not change.*ended 4 bytes early"),
        (tmp_path / "copy").open("wb") as file,
    ):
        Stored(path, 0, 8, torch.float32, (2,), dtype).write_to(file)


def half_way(source: int, target: int, count: int, start: int, place: int) -> int:
    """A kernel that copies ten bytes of a tensor, ten more, and then fails."""
    if start % 100 == 20:
        raise OSError(18, "cross-device link")
    return os.pwrite(target, os.pread(source, min(10, count), start), place)


@pytest.mark.parametrize("kernel", [None, half_way])
def test_tensors_are_copied_completely_if_the_kernel_copies_only_a_part(kernel, tmp_path, monkeypatch):
    path, parts = tmp_path / "file", [(0, 100), (300, 700), (200, 200), (100, 300)]
    path.write_bytes(bytes(range(256)) * 3)
    if kernel is None:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", kernel)
    with (tmp_path / "copy").open("wb") as file:
        file.write(b"header")
        for start, stop in parts:
            Stored(path, start, stop, torch.uint8, (stop - start,)).write_to(file)
        file.write(b"end")
    whole = path.read_bytes()
    assert (tmp_path / "copy").read_bytes() == b"header" + b"".join(whole[start:stop] for start, stop in parts) + b"end"


@torch.no_grad()
def test_a_chain_written_by_an_earlier_version_loads_and_can_be_cut_again(donors, tmp_path):
    """Its halves are described by cut configs, whose blocks are counted from 0: GPT-2's first two, one of Gemma 3, one Llama."""
    folder, ids = Path(__file__).parent / "data" / "composite-0.1", tiny.ids(2, 9)
    old, expected = load(folder), load_file(folder / "expected.safetensors")
    assert torch.allclose(old.net(ids).logits, expected["logits"], rtol=1e-5, atol=1e-4)  # written on another processor
    assert torch.equal(old.net.generate(ids, max_new_tokens=6, do_sample=False), expected["greedy"])
    assert [part.depth for part in old.parts] == [2, 1, 1]
    last = load(donors["gpt2"])
    translation = affine(old.width, last.width, old.depth)
    joined = compose(old, last, old.depth, 4, translation)
    write_checkpoint(tmp_path / "longer", joined.config, folder, donors["gpt2"], translation)
    assert torch.equal(load(tmp_path / "longer").net(ids).logits, joined(ids).logits)
