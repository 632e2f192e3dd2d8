"""A run that the disk has no room for is refused before it computes anything."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import gpt2_and_qwen3, settings
from stitch.errors import UsageError
from stitch.files.room import require_room
from stitch.jobs.depth import sweep_depth
from stitch.jobs.join import stitch
from stitch.jobs.sweep import sweep

LENGTH = dict(tokens=4096, context=32, device="cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return gpt2_and_qwen3(tmp_path_factory.mktemp("models"))


def run(job: str, models: dict[str, Path], out: Path, progress) -> object:
    a, b, text = str(models["gpt2"]), str(models["qwen3"]), str(models["text"])
    if job == "sweep":
        return sweep(a, b, out, text=text, **LENGTH, progress=progress)
    if job == "depth":
        return sweep_depth(a, out, text=text, **LENGTH, progress=progress)
    asked = settings(
        models["gpt2"],
        models["gpt2" if job == "native" else "qwen3"],
        models["text"],
        native=job == "native",
        layer_b=4,
    )
    return stitch(asked, out, progress=progress)


@pytest.mark.parametrize("job", ["join", "native", "sweep", "depth"])
def test_a_full_disk_is_noticed_before_any_work(job: str, models: dict[str, Path], tmp_path: Path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    stages: set[str] = set()
    with pytest.raises(
        UsageError, match=r"the disk of `out` needs room for about .* MiB, .* until the run ends; .* has .*free space"
    ):
        run(job, models, tmp_path / "out", lambda stage, done, total: stages.add(stage))
    begun = {stage for stage in stages if not stage.startswith("loading ")}
    assert begun <= {"text"} and not any(tmp_path.iterdir())


def test_what_is_there_already_counts_as_room(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=500))
    (tmp_path / "shard").write_bytes(b"x" * 500)
    require_room(tmp_path, scratch=900, output=100)
    with pytest.raises(UsageError, match=r"needs room for about 1.2 KiB, 900 B of them .* has 1,000 B"):
        require_room(tmp_path, scratch=900, output=300)
