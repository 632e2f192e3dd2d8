import json
import random
import re
from pathlib import Path

import numpy
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ggufs import pico_gguf
from hub_double import hub  # noqa: F401 (a fixture)
from stitch.errors import StitchError, UsageError
from stitch.files.headers import safetensors_header, verify_weights
from stitch.models import gguf, packaged, sources
from stitch.models.sources import Source, resolve, resolve_all

# ruff: noqa: F811 (an imported fixture is also the name of an argument)

TOKENIZER = b'{"version": "1.0"}'
CONFIG = b'{"model_type": "gpt2"}'


def weights(*names: str) -> bytes:
    return save(
        {name: numpy.arange(12, dtype=numpy.float32).reshape(3, 4) for name in names}, metadata={"format": "pt"}
    )


def index(**shards: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": shards}).encode()


SINGLE = {"config.json": CONFIG, "model.safetensors": weights("a", "b"), "tokenizer.json": TOKENIZER}
SHARDED = {
    "config.json": CONFIG,
    "tokenizer.json": TOKENIZER,
    "model-00001-of-00002.safetensors": weights("a"),
    "model-00002-of-00002.safetensors": weights("b"),
    "model.safetensors.index.json": index(a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors"),
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def refused(source: str | Path, kind: type[StitchError]) -> str:
    """The message with which `source` is refused. Checks the exact class and that it is one line."""
    with pytest.raises(StitchError) as caught:
        resolve(str(source))
    assert type(caught.value) is kind, caught.value
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


# Folders, demos, names


@pytest.mark.parametrize("files", [SINGLE, SHARDED, {**SINGLE, "pytorch_model.bin": b"p"}])
def test_a_local_folder_is_used_where_it_lies(tmp_path, files, monkeypatch):
    folder = write(tmp_path / "model", files)
    assert resolve(str(folder)) == Source(str(folder), folder, None, "folder")
    monkeypatch.chdir(tmp_path)
    assert resolve("model").folder.samefile(folder)


def test_a_stale_index_beside_a_single_weights_file_is_ignored(tmp_path):
    verify_weights(write(tmp_path, {**SINGLE, "model.safetensors.index.json": index(a="gone.safetensors")}))


def test_a_demo_is_a_folder_of_the_package(tmp_path, monkeypatch):
    import stitch.demo

    assert sources.DEMO.samefile(stitch.demo.__path__[0])
    monkeypatch.setattr(sources, "DEMO", tmp_path)
    folder = write(tmp_path / "llama", SINGLE)
    assert resolve("demo:llama") == Source("demo:llama", folder, None, "demo")


def test_for_an_unknown_demo_the_error_lists_the_available_ones():
    assert refused("demo:bert", UsageError) == (
        "the demo models are demo:gpt2, demo:llama, demo:neox, demo:induction, demo:induction-llama; got demo:bert."
    )


@pytest.mark.parametrize(
    "typed", ["./gone", "/gone/model", "~/gone", "gone.gguf", "folder/gone.gguf", "a/b/c", "a b", "", "user/"]
)
def test_a_missing_path_is_not_looked_for_on_the_hub(typed, hub):
    assert "no such file or folder" in refused(typed, UsageError)
    assert hub.requests == []


def test_a_file_that_is_not_gguf_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"p")
    assert "give the folder" in refused(tmp_path / "pytorch_model.bin", UsageError)


def test_a_hub_name_is_downloaded_at_its_revision(hub):
    first = hub.add("user/model", SINGLE)
    second = hub.add("user/model", SHARDED)
    latest = resolve("user/model")
    assert (latest.revision, latest.kind, latest.name) == (second, "hub", "user/model")
    assert {path.name: path.read_bytes() for path in latest.folder.iterdir()} == SHARDED
    pinned = resolve(f"user/model@{first}")
    assert (
        pinned.revision == first and (pinned.folder / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]
    )


def test_a_name_that_is_neither_a_folder_nor_reachable_is_reported_as_both(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("gpt2", "user/model"):
        assert refused(name, StitchError) == f"no network and no such local model: {name}; check the connection."


def test_a_hub_model_with_pickles_only_is_refused(hub):
    hub.add("user/old", {"config.json": CONFIG, "tokenizer.json": TOKENIZER, "pytorch_model.bin": b"p"})
    assert "pickles are never read" in refused("user/old", UsageError)


# Damaged and unsuitable folders


def without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if path != name}


SHARD = "model-00002-of-00002.safetensors"
PICKLED = {"config.json": CONFIG, "tokenizer.json": TOKENIZER}
BAD = {
    "no config": (without(SINGLE, "config.json"), UsageError, "must hold config.json"),
    "config is not JSON": ({**SINGLE, "config.json": b"{"}, StitchError, "config.json"),
    "config is no object": ({**SINGLE, "config.json": b"[1]"}, StitchError, "config.json"),
    "no tokenizer": (without(SINGLE, "tokenizer.json"), UsageError, "must hold its tokenizer"),
    "no weights": (without(SINGLE, "model.safetensors"), UsageError, "has none"),
    "pickle .bin": ({**PICKLED, "pytorch_model.bin": b"p"}, UsageError, "only pickles (pytorch_model.bin)"),
    "pickle .pt": ({**PICKLED, "model.pt": b"p"}, UsageError, "only pickles (model.pt)"),
    "pickle .ckpt": ({**PICKLED, "last.ckpt": b"p"}, UsageError, "only pickles (last.ckpt)"),
    "adapter": ({**PICKLED, "adapter_model.safetensors": weights("a")}, UsageError, "holds an adapter"),
    "pickle in disguise": ({**PICKLED, "model.safetensors": b"PK\x03\x04" + bytes(400)}, StitchError, "header"),
    "truncated": ({**SINGLE, "model.safetensors": weights("a", "b")[:-1]}, StitchError, "bytes, it has"),
    "cut in the header": ({**SINGLE, "model.safetensors": weights("a")[:40]}, StitchError, "do not hold the header"),
    "empty": ({**SINGLE, "model.safetensors": b""}, StitchError, "0 bytes do not hold the header"),
    "trailing bytes": ({**SINGLE, "model.safetensors": weights("a") + b"x"}, StitchError, "bytes, it has"),
    "header not JSON": (
        {**SINGLE, "model.safetensors": weights("a").replace(b'"a"', b'"a ')},
        StitchError,
        "cannot be read",
    ),
    "wrong shape": (
        {**SINGLE, "model.safetensors": weights("a").replace(b"[3,4]", b"[3,5]")},
        StitchError,
        "the bytes of a",
    ),
    "unknown type": (
        {**SINGLE, "model.safetensors": weights("a").replace(b"F32", b"X32")},
        StitchError,
        "cannot be read",
    ),
    "LFS pointer": (
        {**SINGLE, "model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"},
        StitchError,
        "git lfs pull",
    ),
    "missing shard": (without(SHARDED, SHARD), StitchError, f"lacks 1 of the shards its index names, {SHARD}"),
    "truncated shard": ({**SHARDED, SHARD: weights("b")[:-4]}, StitchError, SHARD),
    "missing tensor": ({**SHARDED, SHARD: weights("c")}, StitchError, "holds b; it does not"),
    "index not JSON": ({**SHARDED, "model.safetensors.index.json": b"{"}, StitchError, "is damaged"),
    "index without a map": ({**SHARDED, "model.safetensors.index.json": b"{}"}, StitchError, "is damaged"),
    "gptq": (
        {**SINGLE, "config.json": b'{"quantization_config": {"quant_method": "gptq"}}'},
        UsageError,
        "quantised (gptq)",
    ),
    "a method without a name": (
        {**SINGLE, "config.json": b'{"quantization_config": {"bits": 4}}'},
        UsageError,
        "quantised (unknown)",
    ),
    "odd name without an index": (
        {**PICKLED, "weights.safetensors": weights("a")},
        UsageError,
        "has weights.safetensors and no index: rename it to model.safetensors",
    ),
    "a tensor in two shards": (
        {**SHARDED, SHARD: weights("a", "b")},
        StitchError,
        f"a is in model-00001-of-00002.safetensors and {SHARD}",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_refused_in_one_line(tmp_path, case):
    files, kind, told = BAD[case]
    assert told in refused(write(tmp_path / "model", files), kind)
    assert {path.name for path in (tmp_path / "model").iterdir()} == set(files)


@pytest.mark.parametrize(
    "spans, size", [([(0, 4), (4, 8)], 8), ([(0, 4), (0, 4)], 4), ([(0, 4), (8, 12)], 12), ([(4, 8)], 8)]
)
def test_tensors_must_be_contiguous_in_the_file(tmp_path, spans, size):
    """Against the reference implementation, with overlapping tensors and with gaps."""
    entries = {f"t{i}": {"dtype": "F32", "shape": [1], "data_offsets": span} for i, span in enumerate(spans)}
    header = json.dumps(entries).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(size)
    file = write(tmp_path, {"f": content}) / "f"
    if spans == [(0, 4), (4, 8)]:
        assert set(load(content)) == set(safetensors_header(file).tensors) == {"t0", "t1"}
        return
    with pytest.raises(SafetensorError):
        load(content)
    with pytest.raises(StitchError, match="are not where its shape says"):
        safetensors_header(file)


def test_a_dangling_link_is_reported_as_unreadable(tmp_path):
    folder = write(tmp_path / "model", without(SINGLE, "model.safetensors"))
    (folder / "model.safetensors").symlink_to(tmp_path / "gone")
    assert "cannot be read: No such file" in refused(folder, StitchError)


def test_the_header_check_agrees_with_safetensors_on_damaged_files(tmp_path):
    """Against the reference implementation, on files with random bytes changed, cut off or appended."""
    whole = save(
        {"a": numpy.ones((2, 3), numpy.float32), "none": numpy.ones((0, 3), numpy.int8), "scalar": numpy.array(1.0)},
        metadata={"format": "pt"},
    )
    assert set(safetensors_header(write(tmp_path, {"f": whole}) / "f").tensors) == {"a", "none", "scalar"}
    header = int.from_bytes(whole[:8], "little")
    chance = random.Random(0)
    accepted = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 2])):
            damaged[chance.randrange(8 + header)] = chance.choice(b'0123456789[]{},:"-. aFIUB\x00\xff')
        damaged = bytes(chance.choice([damaged, damaged, whole[: chance.randrange(len(whole))], whole + b"\0"]))
        (tmp_path / "f").write_bytes(damaged)
        try:
            load(damaged)
            expected = True
        except (SafetensorError, KeyError, ValueError):  # ValueError or KeyError: dtypes that numpy lacks
            expected = False
        try:
            safetensors_header(tmp_path / "f")
            found = True
        except StitchError:
            found = False
        assert found == expected, damaged[8 : 8 + header]
        accepted += expected
    assert accepted > 10


# GGUF


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_gguf_file_becomes_the_model_it_was_written_from(tmp_path, cache, capfd):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    original = pico_gguf(tmp_path / "pico.gguf")
    found = resolve(str(tmp_path / "pico.gguf"))
    assert found.kind == "gguf" and found.folder.is_relative_to(cache) and found.folder.name == found.revision
    assert "de-quantizing" not in "".join(capfd.readouterr())
    model = AutoModelForCausalLM.from_pretrained(found.folder).eval()
    ids = torch.arange(2, 30)[None]
    assert model.dtype == torch.float32 and torch.equal(model(ids).logits, original(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(found.folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 0)
    # Numbers are split off, so the spaces before one stay together; GPT-2's own pattern would give Ġ, Ġ, 1, 2.
    assert tokenizer.tokenize("the  12 the") == ["the", "ĠĠ", "1", "2", "Ġthe"]
    text = "<|im_start|>the  12\n naïve 日本 🙂<|endoftext|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0"])
@torch.no_grad()
def test_quantised_blocks_of_a_gguf_file_have_the_values_that_they_stand_for(tmp_path, cache, kind):
    from gguf import GGMLQuantizationType
    from transformers import AutoModelForCausalLM

    original = pico_gguf(tmp_path / "pico.gguf", packed=GGMLQuantizationType[kind])
    model = AutoModelForCausalLM.from_pretrained(resolve(str(tmp_path / "pico.gguf")).folder)
    assert model.dtype == torch.float32 and "quantization_config" not in model.config.to_dict()
    for name, weight in original.state_dict().items():
        assert weight.isfinite().all() and weight.std() > 0
        assert (model.state_dict()[name] - weight).abs().max() <= 1e-6 * weight.abs().max(), name


def test_a_gguf_file_is_converted_once_under_any_name_and_repaired(tmp_path, cache, monkeypatch):
    pico_gguf(tmp_path / "pico.gguf")
    first = resolve(str(tmp_path / "pico.gguf"))
    (tmp_path / "pico.gguf").rename(tmp_path / "moved.gguf")
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "_convert", lambda *_: pytest.fail("converted again"))
        assert resolve(str(tmp_path / "moved.gguf")).folder == first.folder
    before = (first.folder / "model.safetensors").read_bytes()
    (first.folder / "model.safetensors").write_bytes(before[:-1])
    assert resolve(str(tmp_path / "moved.gguf")).folder == first.folder
    assert (first.folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("second", ["no/such/folder", "demo:gtp2", "bad.gguf", "gemma3"])
def test_all_models_are_looked_at_before_the_first_is_converted(tmp_path, cache, monkeypatch, second):
    pico_gguf(tmp_path / "pico.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(packaged.PACKAGES, "gemma3", ["not-installed-anywhere"])
    with pytest.raises(StitchError, match=re.escape(second)):
        resolve_all([str(tmp_path / "pico.gguf"), str(tmp_path / second) if second == "bad.gguf" else second])
    assert not cache.exists()


def test_an_interrupted_conversion_is_not_used(tmp_path, cache, monkeypatch):
    pico_gguf(tmp_path / "pico.gguf")
    convert = gguf._convert

    def interrupted(file, folder, *rest):
        convert(file, folder, *rest)
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resolve(str(tmp_path / "pico.gguf"))
    assert [path.suffix for path in (cache / "gguf" / gguf.FORMAT).iterdir()] == [".lock"]
    killed = cache / "gguf" / gguf.FORMAT / f"{gguf._sha256(tmp_path / 'pico.gguf', None)}.killed.part"
    write(killed, {"model.safetensors": b"half"})
    resolve(str(tmp_path / "pico.gguf"))
    assert not killed.exists()


def test_a_gguf_with_an_unknown_pretokenizer_is_refused(tmp_path, cache):
    pico_gguf(tmp_path / "pico.gguf", split="martian")
    assert "splits text in a way unknown here (martian)" in refused(tmp_path / "pico.gguf", UsageError)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04" + bytes(100), b"GGUF" + bytes(100), None])
def test_a_damaged_gguf_file_is_refused_and_leaves_nothing(tmp_path, cache, content):
    if content is None:  # cut in the middle
        pico_gguf(tmp_path / "whole.gguf")
        content = (tmp_path / "whole.gguf").read_bytes()[:-2000]
    (tmp_path / "bad.gguf").write_bytes(content)
    refused(tmp_path / "bad.gguf", StitchError)
    assert {path.suffix for path in cache.rglob("*") if path.is_file()} <= {".lock"}


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "file"))
    pico_gguf(tmp_path / "pico.gguf")
    assert "set STITCH_CACHE" in refused(tmp_path / "pico.gguf", StitchError)
