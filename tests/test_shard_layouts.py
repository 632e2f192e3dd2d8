"""A donor's safetensors files may be laid out in any way: the composite has the same bytes, and the model the same logits."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from hub_double import hub  # noqa: F401 (a fixture)
from stitch.composite.checkpoint import write_checkpoint
from stitch.composite.compose import compose
from stitch.composite.native import write_native
from stitch.models.loading import load
from stitch.models.sources import resolve
from translations import affine

# ruff: noqa: F811 (an imported fixture is also the name of an argument)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A Llama with tied embeddings in one file, which does not hold the head."""
    folder = tiny.save(tmp_path_factory.mktemp("whole") / "model", "llama", seed=1)
    assert HEAD not in load_file(folder / SINGLE)
    return folder


def sharded(folder: Path, shards: dict[str, dict[str, Tensor]], unnamed: tuple[str, ...] = ()) -> None:
    """Writes the tensors of every shard and an index, which leaves out the tensors `unnamed`."""
    (folder / SINGLE).unlink()
    for name, tensors in shards.items():
        save_file(tensors, folder / name, {"format": "pt"})
    named = {tensor: name for name, tensors in shards.items() for tensor in tensors if tensor not in unnamed}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": named}))


def halves(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every other tensor, so that blocks are spread over both."""
    names = sorted(tensors)
    return tuple({name: tensors[name] for name in names[start::2]} for start in (0, 1))  # pyright: ignore


def two_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    one, two = halves(tensors)
    sharded(folder, {"model-00001-of-00002.safetensors": one, "model-00002-of-00002.safetensors": two})


def odd_names(folder: Path, tensors: dict[str, Tensor]) -> None:
    one, two = halves(tensors)
    sharded(folder, {"zz top.safetensors": one, "consolidated.00.safetensors": two})


def one_odd_name(folder: Path, tensors: dict[str, Tensor]) -> None:
    sharded(folder, {"weights.safetensors": tensors})


def a_shard_for_each_tensor(folder: Path, tensors: dict[str, Tensor]) -> None:
    sharded(folder, {f"part-{name}.safetensors": {name: one} for name, one in tensors.items()})


def unrelated_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Of another model, and of a type that is not read; the index names none of them."""
    one, two = halves(tensors)
    other = {"vision.patches": torch.ones(3, 3), "vision.scales": torch.ones(8).to(torch.float8_e4m3fn)}
    sharded(folder, {"a.safetensors": one, "b.safetensors": {**two, **other}}, tuple(other))


def unrelated_files(folder: Path, tensors: dict[str, Tensor]) -> None:
    two_shards(folder, tensors)
    save_file({EMBEDDING: torch.zeros(2, 2)}, folder / "model-zz.safetensors", {"format": "pt"})
    save_file({EMBEDDING: torch.zeros(2, 2)}, folder / "adapter_model.safetensors", {"format": "pt"})


def pickles_too(folder: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({name: torch.zeros_like(one) for name, one in tensors.items()}, folder / "pytorch_model.bin")


def pickles_beside_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    two_shards(folder, tensors)
    pickles_too(folder, tensors)
    named = dict.fromkeys(tensors, "pytorch_model.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": named}))


def head_stored_twice(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file({**tensors, HEAD: tensors[EMBEDDING].clone()}, folder / SINGLE, {"format": "pt"})


def head_in_another_shard(folder: Path, tensors: dict[str, Tensor]) -> None:
    sharded(folder, {"a.safetensors": tensors, "b.safetensors": {HEAD: tensors[EMBEDDING].clone()}})


def only_the_head_stored(folder: Path, tensors: dict[str, Tensor]) -> None:
    stored = {HEAD if name == EMBEDDING else name: one for name, one in tensors.items()}
    save_file(stored, folder / SINGLE, {"format": "pt"})


LAYOUTS = [
    two_shards, odd_names, one_odd_name, a_shard_for_each_tensor, unrelated_tensors, unrelated_files, pickles_too,
    pickles_beside_shards, head_stored_twice, head_in_another_shard, only_the_head_stored,
]  # fmt: skip


def laid_out(layout, whole: Path, folder: Path) -> Path:
    shutil.copytree(whole, folder)
    layout(folder, load_file(whole / SINGLE))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def joined(first: Path, second: Path, target: Path) -> dict[str, bytes]:
    """The files of a composite of blocks 0 to 2 of one model and blocks 2 to 5 of another."""
    a, b = load(first), load(second)
    translation = affine(a, b, 3)
    config = compose(a, b, 3, 2, translation).config
    write_checkpoint(target, config, first, second, translation, loaded={"a": a.net, "b": b.net})
    return content(target)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_the_layout_of_a_donors_files_does_not_change_the_composite(layout, whole, tmp_path):
    folder = laid_out(layout, whole, tmp_path / "model")
    found = resolve(str(folder)).folder
    assert torch.equal(load(found).net(tiny.ids()).logits, load(whole).net(tiny.ids()).logits)
    assert joined(found, found, tmp_path / "made") == joined(whole, whole, tmp_path / "expected")


@pytest.mark.parametrize("layout", [two_shards, odd_names, unrelated_tensors, pickles_too])
def test_the_layout_does_not_change_a_model_of_fewer_blocks(layout, whole, tmp_path):
    for name, folder in (("made", laid_out(layout, whole, tmp_path / "model")), ("expected", whole)):
        write_native(tmp_path / name, load(folder), [0, 1, 4, 5], {})
    assert content(tmp_path / "made") == content(tmp_path / "expected")


@torch.no_grad()
def test_a_head_of_its_own_in_the_file_is_kept_as_transformers_keeps_it(whole, tmp_path):
    """The config says that the head is tied, but the file holds another one."""
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    tensors = load_file(whole / SINGLE)
    save_file({**tensors, HEAD: tensors[EMBEDDING] + 1}, folder / SINGLE, {"format": "pt"})
    joined(folder, folder, tmp_path / "made")
    made = load_file(tmp_path / "made" / SINGLE)
    assert torch.equal(made["b.lm_head.weight"], load(folder).head.weight)
    assert torch.equal(made["b.lm_head.weight"], made["a.embed_tokens.weight"] + 1)


@pytest.mark.parametrize("layout", [odd_names, one_odd_name, unrelated_files, pickles_beside_shards])
def test_the_shards_that_an_index_names_are_downloaded_and_no_others(layout, whole, tmp_path, hub):
    folder = laid_out(layout, whole, tmp_path / "model")
    hub.add("user/model", content(folder))
    found = resolve("user/model").folder
    shards = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    here = {file.name for file in found.iterdir()}
    assert shards <= here and not here & {"pytorch_model.bin", "adapter_model.safetensors"}
    assert load(found).depth == tiny.DEPTH
