"""What `stitch.transfer` takes besides files: SAEs, tensors and labels in memory, as files while a function runs."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stitch.errors import UsageError
from stitch.files.lent import FILES


@contextmanager
def filed(given: Any, kind: str, write: Callable[[Any, Path], None]) -> Iterator[Any]:
    """The name of a file or folder inside the block: itself, or its kind and a part of its SHA-256 where `write` has to make it.

    None stays None.
    """
    if given is None or isinstance(given, (str, Path)):
        yield None if given is None else str(given)
        return
    with TemporaryDirectory(prefix="stitch-") as folder:
        place = Path(folder) / kind
        write(given, place)
        digest = hashlib.sha256()
        for file in sorted(place.iterdir()) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
        name = f"given {kind} (sha256 {digest.hexdigest()[:12]})"
        with FILES.known({name: place}):
            yield name


def write_sae(given: Any, folder: Path) -> None:
    """Raises: SAEError for what is no SAE of SAELens."""
    from sae.storage import save

    save(given, folder)


def write_tensors(given: Any, file: Path) -> None:
    """A mapping of tensors or arrays by name, or one of them, which is named `vector`.

    Raises: UsageError for anything else.
    """
    from safetensors.torch import save_file

    named = given if isinstance(given, Mapping) else {"vector": given}
    try:
        tensors = {str(name): _real(one) for name, one in named.items()}
    except (TypeError, ValueError, RuntimeError):
        tensors = {}
    if not tensors:
        kinds = ", ".join(f"{name}: {type(one).__name__}" for name, one in named.items()) or "nothing"
        raise UsageError(f"a safetensors file, a tensor or a mapping of tensors is needed; got {kinds}.")
    if unreal := [name for name, one in tensors.items() if not one.isfinite().all()]:
        raise UsageError(f"tensors to carry must be finite; {', '.join(unreal)} is not.")
    save_file(tensors, file)


def _real(given: Any) -> Any:
    """A tensor of its own in float32. Raises: TypeError for complex numbers, whose imaginary part would be dropped."""
    import numpy as np
    import torch

    found = torch.as_tensor(np.ascontiguousarray(given) if isinstance(given, np.ndarray) else given).detach()
    if found.is_complex():
        raise TypeError("complex")
    return found.float().cpu().contiguous().clone()


def write_labels(given: Any, file: Path) -> None:
    """A list of {"text": …, "labels": [[start, end, class], …]}. Raises: UsageError for what JSON cannot say."""
    try:
        entries = [dict(entry) for entry in given]
        file.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), encoding="utf-8")
    except (TypeError, ValueError):
        raise UsageError(
            'labels are a .jsonl file, or a list of {"text": …, "labels": [[start, end, class], …]} of text and whole '
            f"numbers; got {type(given).__name__}."
        ) from None
