"""What an interrupted run left and read is compared before it is gone on with: no result is made of two things."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from jobs import gpt2_and_qwen3, settings, write_text
from stitch.composite.parts import Part
from stitch.errors import UsageError
from stitch.files.inputs import require_unchanged
from stitch.files.left import left_in
from stitch.files.seals import is_sealed, seal
from stitch.jobs.chain import chain
from stitch.jobs.depth import sweep_depth
from stitch.jobs.join import stitch
from stitch.jobs.sweep import sweep
from stitch.progress import Progress

QUICK = dict(brief=True, reference_steps=None, features=64, k=8, sae_passes=0.5)
LENGTH = dict(tokens=4096, context=32, device="cpu")


def stop_at(stage: str, count: int = 1) -> Progress:
    """Interrupts where a stage whose name starts like this begins for the time `count`."""
    left, last = count, ""

    def progress(name: str, done: int, total: int) -> None:
        nonlocal left, last
        left -= name.startswith(stage) and not last.startswith(stage)
        last = name
        if left == 0:
            raise KeyboardInterrupt

    return progress


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    return gpt2_and_qwen3(tmp_path)


def flip(file: Path) -> None:
    """Flips the highest bit of the last number in a file of little-endian numbers."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x40
    file.write_bytes(content)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "report.json"  # has the time that the run took
    }


def join(models: dict[str, Path], out: Path, **options) -> dict[str, bytes]:
    wanted = settings(models["gpt2"], models["qwen3"], models["text"], **QUICK)
    return files_of(stitch(wanted, out, **options)[1])


JOBS: dict[str, Callable[..., object]] = {
    "join": lambda models, out, **more: join(models, out, **more),
    "native": lambda models, out, **more: stitch(
        settings(models["gpt2"], models["gpt2"], models["text"], native=True, layer_b=4), out, **more
    ),
    "chain": lambda models, out, **more: chain(
        [Part(str(models["gpt2"]), 0, 2), Part(str(models["qwen3"]), 3)], out, text=str(models["text"]),
        **LENGTH, **QUICK, **more,
    ),
    "sweep": lambda models, out, **more: sweep(
        str(models["gpt2"]), str(models["qwen3"]), out, text=str(models["text"]), **LENGTH, **more
    ),
    "depth": lambda models, out, **more: sweep_depth(str(models["gpt2"]), out, text=str(models["text"]), **LENGTH, **more),
}  # fmt: skip


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_models_and_text_that_changed_are_noticed(job: Callable[..., object], models: dict[str, Path], tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        job(models, out, progress=stop_at("activations"))
    before = left_in(tmp_path / ".out.partial")
    tiny.save(models["gpt2"], "gpt2", seed=7)
    with pytest.raises(UsageError, match=r"(`model_a`|model of part 1) changed since: set `restart` to begin again"):
        job(models, out, resume=True)
    tiny.save(models["gpt2"], "gpt2")
    text = models["text"].read_bytes()
    write_text(tmp_path, seed=3)
    with pytest.raises(UsageError, match="`text` changed since"):
        job(models, out, resume=True)
    models["text"].write_bytes(text)
    after = left_in(tmp_path / ".out.partial")
    assert before and after and (after.request, after.began) == (before.request, before.began)  # all is kept
    with pytest.raises(KeyboardInterrupt):
        job(models, out, resume=True, progress=stop_at("activations"))


@pytest.mark.slow
def test_damaged_files_of_a_workspace_are_made_again(models: dict[str, Path], tmp_path: Path):
    whole = join(models, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        join(models, tmp_path / "cut", progress=stop_at("choice"))
    scratch = tmp_path / ".cut.partial"
    damaged = [
        *sorted((scratch / "fit").rglob("*.safetensors"))[:1],
        *(scratch / "codes").glob("*.safetensors"),
        scratch / "sae-a" / "sae_weights.safetensors",
        *(scratch / "sae-snapshots").rglob("site-0/sae_weights.safetensors"),
    ]
    assert len(damaged) >= 4
    for file in damaged:
        flip(file)
    assert join(models, tmp_path / "cut", resume=True) == whole


@pytest.mark.slow
def test_a_damaged_seam_of_a_chain_is_made_again(models: dict[str, Path], tmp_path: Path):
    parts = [Part(str(models["gpt2"]), 0, 2), Part(str(models["qwen3"]), 3, 5), Part(str(models["gpt2"]), 4)]
    arguments = dict(text=str(models["text"]), **LENGTH, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        chain(parts, tmp_path / "out", progress=stop_at("choice", 2), **arguments)
    weights = tmp_path / ".out.partial" / "seam-1" / "model.safetensors"
    before = weights.read_bytes()
    flip(weights)
    with pytest.raises(KeyboardInterrupt):
        chain(parts, tmp_path / "out", resume=True, progress=stop_at("choice", 2), **arguments)
    assert weights.read_bytes() == before


def test_a_seal_holds_for_the_bytes_of_a_file_or_folder(tmp_path: Path):
    file, folder = tmp_path / "shard", tmp_path / "sae"
    folder.mkdir()
    for place in (file, folder / "weights"):
        place.write_bytes(b"12345")
    assert not is_sealed(file) and not is_sealed(folder)
    seal(file)
    seal(folder)
    assert is_sealed(file) and is_sealed(folder)
    for place in (file, folder / "weights"):
        place.write_bytes(b"12346")
    assert not is_sealed(file) and not is_sealed(folder)
    (folder / "weights").write_bytes(b"12345")
    (folder / "another").touch()
    assert not is_sealed(folder)
    shutil.rmtree(folder)
    assert not is_sealed(folder)


def test_inputs_are_compared_by_name(tmp_path: Path):
    require_unchanged({"`model_a`": "1", "`text`": "2"}, tmp_path)
    require_unchanged({"`model_a`": "1", "`sae_a`": "3"}, tmp_path)
    with pytest.raises(UsageError, match="`text` and `sae_a` changed since"):
        require_unchanged({"`model_a`": "1", "`text`": "5", "`sae_a`": "6"}, tmp_path)
    require_unchanged({"`text`": "5"})  # outside of a run
