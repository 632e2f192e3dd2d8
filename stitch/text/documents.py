"""Documents read from files or datasets, and their splits: fit, sweep and report have no document in common."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from stitch.errors import StitchError, UsageError
from stitch.files.lent import Lent
from stitch.hub.access import access_token
from stitch.hub.errors import explanation
from stitch.hub.patience import bounded, patiently
from stitch.progress import Progress
from stitch.text.document import Document
from stitch.text.passages import name_of, passages

Split = Literal["fit", "sweep", "report"]
SPLITS: tuple[Split, ...] = ("fit", "sweep", "report")
SELF = "self"  # names text that a model writes (`stitch.text.sources`); a folder of that name is ./self
LEAST_TOKENS = 4096  # of the fit split: two SAE batches. Fewer cannot fit anything.


LENT: Lent[Sequence[Document]] = Lent("lent texts")


def read(source: str, characters: int | None = None, progress: Progress | None = None) -> Iterator[Document]:
    """Documents of `source`: "docs" (the installed docstrings), a file, a folder of files, or a Hugging Face dataset.

    A `.jsonl` file holds one document per line, in its `text` field; any other file is plain UTF-8 text, cut into passages.
    The name of a document decides its split. That of a passage is made from its text alone; a line or a row is named after its
    file or dataset and its number.
    A dataset is given as `name` or `name:config`; the column `text` of its train split is streamed until `characters` have
    been read (None: to the end).

    A text that stands several times is given once, as it would otherwise be in several splits.

    Raises: UsageError for a path that does not exist, and for SELF, as there is no model here; StitchError, while reading, for
    a source that cannot be read.
    """
    if (lent := LENT.get(source)) is not None:
        return _once(lent)
    if source == "docs":
        from stitch.text.corpus import cached_documents

        return iter(cached_documents(progress))
    if source == SELF:
        raise UsageError(
            "text self is written by a model, and there is none here: give a text, or ./self for a folder."
        )
    path = Path(source)
    if path.is_dir():
        return _once(document for file in sorted(path.rglob("*")) if file.is_file() for document in _file(file, path))
    if path.is_file():
        return _once(_file(path, path.parent))
    if path.suffix in {".txt", ".md", ".jsonl"} or source.startswith((".", "/", "~")):
        raise UsageError(f"text must be docs, a file, a folder or a dataset name; there is no file {source}.")
    return _dataset(source, characters, progress)


def _once(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents without those whose text has stood before."""
    is_new = _firsts()
    return ((name, text) for name, text in documents if is_new(text))


def _firsts() -> Callable[[str], bool]:
    """A function that says of each text whether it is asked about it for the first time."""
    seen: set[bytes] = set()

    def is_first(text: str) -> bool:
        before = len(seen)
        seen.add(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
        return len(seen) > before

    return is_first


def _file(path: Path, root: Path) -> Iterator[Document]:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StitchError(f"text must be readable UTF-8; {path}: {error}. Convert it or leave it out.") from error
    if path.suffix != ".jsonl":
        yield from ((name_of(passage), passage) for passage in passages(content))
        return
    name = path.relative_to(root).as_posix()
    for number, line in enumerate(content.splitlines()):
        try:
            text = json.loads(line)["text"] if line.strip() else ""
        except ValueError as error:
            raise StitchError(f"{path}, line {number + 1}, is not valid JSON: {line[:40]!r}.") from error
        except (KeyError, TypeError) as error:
            message = f'{path}, line {number + 1}, needs a JSON object with a field "text"; got {line[:40]!r}.'
            raise StitchError(message) from error
        if not isinstance(text, str):
            raise StitchError(f'{path}, line {number + 1}: the field "text" must be a string; got {str(text)[:40]}.')
        if text:
            yield f"{name}#{number}", text


def _dataset(source: str, characters: int | None, progress: Progress | None) -> Iterator[Document]:
    from datasets import load_dataset

    name, _, config = source.partition(":")
    seen, is_new = 0, _firsts()
    try:
        rows = patiently(lambda: load_dataset(name, config or None, split="train", streaming=True))
        with bounded():
            for number, row in enumerate(rows):
                if not isinstance(text := row["text"], str):
                    raise UsageError(
                        f"a dataset's column `text` must have strings; row {number} of {source} is {text!r:.40}."
                    )
                if not is_new(text):
                    continue
                yield f"{name}#{number}", text
                seen += len(text)
                if progress and characters is not None:
                    progress(f"reading {name} (characters)", min(seen, characters), characters)
                if characters is not None and seen >= characters:
                    return
        if progress and characters is not None:
            progress(f"reading {name} (characters)", seen, seen)  # there are no more
    except UsageError:
        raise
    except KeyError as error:
        raise UsageError(
            f"a dataset needs a `text` column; {source} has none. Export the column to a .jsonl file."
        ) from error
    except Exception as error:  # datasets raises many unrelated types when offline or when the name is wrong
        if told := explanation(error, name, f"no network and no such local text: {source}", access_token()):
            raise told from None
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise StitchError(
            f"text must be a local file or a dataset; {source} is no file and cannot be loaded as a dataset: {reason}"
        ) from error


def split_of(name: str) -> Split:
    """Split of the document called `name`: 90 % fit, 5 % sweep, 5 % report, by a hash of the name.

    Since only the name matters, the split does not change with the size of the corpus, its order or the seed.
    """
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return "report" if share < 0.05 else "sweep" if share < 0.10 else "fit"


def select(documents: Iterable[Document], split: Split | None) -> list[Document]:
    """The documents of one split, or with None all, ordered by a hash of their names, so that every prefix is a random sample."""
    chosen = [document for document in documents if split is None or split_of(document[0]) == split]
    return sorted(chosen, key=lambda document: hashlib.sha256(b"order " + document[0].encode()).digest())
