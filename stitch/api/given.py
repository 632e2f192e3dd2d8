"""What callers may give besides names: loaded models, earlier results, texts in memory, folders for output."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

from stitch.errors import UsageError
from stitch.files.workspace import short_name

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stitch.api.result import ModelResult
    from stitch.models.sources import Source

    ModelLike: TypeAlias = str | Path | ModelResult | tuple[PreTrainedModel, PreTrainedTokenizerBase]
    TextLike: TypeAlias = str | Path | Sequence[str] | Dataset
else:
    ModelLike = TextLike = Any

PathLike: TypeAlias = str | Path
NAMED = "auto"  # as `out`: a folder in the current one, named after what is in it
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def byte_count(size: int | str) -> int:
    """The number of bytes that 4G or 512M means; a number stays as it is. Raises: UsageError."""
    text = str(size)
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        return int(float(number) * (UNITS[unit] if unit else 1))
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"memory must be a size such as 512M or 4G; got {text!r}.") from None


@contextmanager
def named(*models: ModelLike | None) -> Iterator[list[Any]]:
    """A name for each of `models`, under which it is found inside the block; None stays None.

    A loaded model is saved to a temporary folder, since a composite's weights are copied from files.
    Raises: UsageError for what is no model.
    """
    from stitch.models.sources import LENT

    with ExitStack() as stack:
        sources: dict[str, Source] = {}
        known: dict[int, str] = {}  # one model given twice is one model
        names: list[str | None] = []
        for model in models:
            if model is None or isinstance(model, (str, Path)):
                names.append(None if model is None else str(model))
            elif (place := getattr(model, "folder", None)) is not None:
                names.append(str(place))
            else:
                net, tokenizer = _loaded(model)
                if id(net) not in known:
                    source = _saved(net, tokenizer, set(sources), stack)
                    known[id(net)], sources[source.name] = source.name, source
                names.append(known[id(net)])
        stack.enter_context(LENT.known(sources))
        yield names


def _loaded(model: Any) -> tuple[Any, Any]:
    from transformers import PreTrainedModel

    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], PreTrainedModel):
        return model
    kind = type(model).__name__
    raise UsageError(f"a model is a name, a folder, or a pair (PreTrainedModel, tokenizer); got {kind}.")


def _saved(net: Any, tokenizer: Any, taken: set[str], stack: ExitStack) -> "Source":
    """The model in a temporary folder that lives as long as `stack`, under a name that is not taken."""
    from stitch.models.sources import Source

    origin = getattr(net, "name_or_path", "") or type(net).__name__
    name = origin if origin.count("/") == 1 and not origin.startswith((".", "/")) else short_name(origin)
    while name in taken:
        name += "-2"
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="stitch-")))
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Source(name, folder, None, "memory")


@contextmanager
def text_named(text: TextLike) -> Iterator[str]:
    """The name of a text inside the block: itself, or for strings their number and a part of their SHA-256.

    Raises: UsageError for a dataset without the column `text`, and for what is no text.
    """
    from stitch.text.documents import LENT

    if isinstance(text, (str, Path)):
        yield str(text)
        return
    strings = _strings(text)
    digest = hashlib.sha256("\0".join(strings).encode()).hexdigest()[:12]
    name = f"{len(strings):,} given documents (sha256 {digest})"
    with LENT.known({name: [(f"{digest}#{number}", string) for number, string in enumerate(strings)]}):
        yield name


def _strings(text: Any) -> list[str]:
    columns = getattr(text, "column_names", None)
    if columns is not None and "text" not in columns:
        raise UsageError(f"a dataset needs a `text` column; it has {', '.join(map(str, columns))}: rename one.")
    found = text["text"] if columns is not None else text
    strings = list(found) if isinstance(found, Iterable) else [found]
    if wrong := [one for one in strings if not isinstance(one, str)]:
        raise UsageError(f"text must be a name, a list of strings or a dataset; got {type(wrong[0]).__name__} in it.")
    return strings


class Output:
    """Where a job writes: `path` is the caller's folder, or one in a temporary folder that lives as long as this object."""

    def __init__(self, out: PathLike | None):
        self._temporary = TemporaryDirectory(prefix="stitch-") if out is None else None
        self.path = Path(self._temporary.name) / "result" if self._temporary else Path(str(out))
        self.folder = None if out == NAMED else self.path  # None: the job names it

    def written(self, *places: Any) -> list[str]:
        """Which of `places` to tell the caller: none of those in a temporary folder."""
        return [str(place) for place in places if place and not (self._temporary and isinstance(place, Path))]


def folder_name(*names: str) -> Path:
    """A folder in the current one, called after models or files."""
    return Path("-".join("-".join(Path(name).stem.replace(":", "-").split()) for name in names))
