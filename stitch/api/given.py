"""What callers may give besides names: loaded models, earlier results, texts in memory, folders for output."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from stitch.errors import UsageError
from stitch.files.front_matter import CARD, front_matter
from stitch.files.workspace import short_name

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stitch.api.result import ModelResult
    from stitch.files.store import Store
    from stitch.models.sources import Source

    ModelLike: TypeAlias = str | Path | ModelResult | tuple[PreTrainedModel, PreTrainedTokenizerBase]
    TextLike: TypeAlias = str | Path | Sequence[str] | Dataset
else:
    ModelLike = TextLike = Any


@runtime_checkable
class Kept(Protocol):
    """A result with files."""

    folder: Path
    is_temporary: bool


PathLike: TypeAlias = str | Path
NAMED = "auto"  # as `out`: a folder in the current one, named after what is in it
LONGEST_NAME = 1024  # characters of a text's name
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def byte_count(size: int | str, name: str = "memory") -> int:
    """The number of bytes that 4G or 512M means; a number stays as it is. Raises: UsageError."""
    text = str(size)
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        count = int(float(number) * (UNITS[unit] if unit else 1))
        if count >= 0:
            return count
    except (ValueError, KeyError, OverflowError):
        pass
    raise UsageError(f"{name} must be a size such as 512M or 4G; got {text!r}.")


def store_of(cache_size: int | str) -> "Store | None":
    """The store of what earlier runs made, of at most so many bytes; None for 0."""
    from stitch.files.store import Store

    limit = byte_count(cache_size, "cache_size")
    return Store(limit=limit) if limit else None


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
            elif isinstance(model, Kept) and not model.is_temporary:
                names.append(str(model.folder))
            else:
                key = id(model[0]) if isinstance(model, tuple) and model else id(model)
                if key not in known:
                    source = _source(model, set(sources), stack)
                    known[key], sources[source.name] = source.name, source
                names.append(known[key])
        stack.enter_context(LENT.known(sources))
        yield names


def _source(model: Any, taken: set[str], stack: ExitStack) -> "Source":
    """A loaded model, or a result in a temporary folder, under a name that is not taken."""
    from stitch.models.sources import Source

    if isinstance(model, Kept):
        return Source(_free("result", taken), model.folder, None, "memory")
    net, tokenizer = _loaded(model)
    return _saved(net, tokenizer, taken, stack)


def _loaded(model: Any) -> tuple[Any, Any]:
    from transformers import PreTrainedModel

    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], PreTrainedModel):
        return model
    kind = type(model).__name__
    raise UsageError(f"a model is a name, a folder, or a pair (PreTrainedModel, tokenizer); got {kind}.")


def _saved(net: Any, tokenizer: Any, taken: set[str], stack: ExitStack) -> "Source":
    """The model in a temporary folder that lives as long as `stack`."""
    from stitch.models.sources import Source

    origin = getattr(net, "name_or_path", "") or type(net).__name__
    name = origin if origin.count("/") == 1 and not origin.startswith((".", "/")) else short_name(origin)
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="stitch-")))
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if "/" in name and not Path(name).exists():  # it was loaded from the Hub
        (folder / CARD).write_text("\n".join(front_matter({"base_model": [name]})), encoding="utf-8")
    return Source(_free(name, taken), folder, None, "memory")


def _free(name: str, taken: set[str]) -> str:
    return next(
        one for number in itertools.count(1) if (one := name if number == 1 else f"{name}-{number}") not in taken
    )


@contextmanager
def text_named(text: TextLike) -> Iterator[str]:
    """The name of a text inside the block: itself, or for strings their number and a part of their SHA-256.

    Raises: UsageError for a dataset without the column `text`, for several splits at once, and for what is no text.
    """
    from stitch.text.documents import LENT

    if isinstance(text, (str, Path)):
        if "\n" in (name := str(text)) or len(name) > LONGEST_NAME:
            raise UsageError(
                "text must be a name, or a list of strings; got a string that is a text itself: put it into a list."
            )
        yield name
        return
    strings = _strings(text)
    digest = hashlib.sha256("\0".join(strings).encode()).hexdigest()[:12]
    name = f"{len(strings):,} given documents (sha256 {digest})"
    with LENT.known({name: [(f"{digest}#{number}", string) for number, string in enumerate(strings)]}):
        yield name


def _strings(text: Any) -> list[str]:
    if isinstance(text, Mapping):  # a DatasetDict
        splits = list(map(str, text))
        example = f": choose one, such as text[{splits[0]!r}]" if splits else ""
        raise UsageError(
            f"text must be one split, not a {type(text).__name__} of {', '.join(splits) or 'none'}{example}."
        )
    columns = getattr(text, "column_names", None)
    if columns is not None and "text" not in columns:
        raise UsageError(f"a dataset needs a `text` column; it has {', '.join(map(str, columns))}: rename one.")
    found = text["text"] if columns is not None else text
    strings = list(found) if isinstance(found, Iterable) else [found]
    if wrong := [one for one in strings if not isinstance(one, str)]:
        raise UsageError(f"text must be a name, a list of strings or a dataset; got {type(wrong[0]).__name__} in it.")
    return strings


class Output:
    """Where a job writes: the caller's folder, or one in a temporary folder that lives as long as this object."""

    def __init__(self, out: PathLike | None):
        self._temporary = TemporaryDirectory(prefix="stitch-") if out is None else None
        self.is_temporary = self._temporary is not None
        given = Path(self._temporary.name) / "result" if self._temporary else Path(str(out))
        self.folder = None if out == NAMED else given  # None: the job names it

    @property
    def path(self) -> Path:
        """The folder, for jobs that do not name one. Raises: UsageError where they were asked to."""
        if self.folder is None:
            raise UsageError(f"out must be a folder here; got {NAMED!r}, which only some functions can name: give one.")
        return self.folder

    def written(self, *places: Any) -> list[str]:
        """Which of `places` to tell the caller: none of those in a temporary folder."""
        return [str(place) for place in places if place and not (self.is_temporary and isinstance(place, Path))]


def folder_name(*names: str) -> Path:
    """A folder in the current one, called after models or files."""
    return Path("-".join("-".join(Path(name).stem.replace(":", "-").split()) for name in names))


def refuse_unread(function: Callable[..., Any], when: str, **given: Any) -> None:
    """Refuses arguments of `function` that would be ignored, unless they have their defaults. `when` says when they are read.

    Raises: UsageError that names the first of them.
    """
    parameters = signature(function).parameters
    for name, value in given.items():
        default = parameters[name].default
        if value != default or isinstance(value, bool) != isinstance(default, bool):
            raise UsageError(f"`{name}` is read only {when}; leave it out.")
