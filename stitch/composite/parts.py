"""The parts of a chain: which blocks of which models, in the order they run. They may come from a YAML file:

parts:
  - {model: demo:gpt2, to: 3}              # embedding and blocks 0..2
  - {model: demo:llama, from: 4, to: 6}    # blocks 4 and 5
  - {model: demo:gpt2, from: 5}            # blocks 5.., final norm and head

The last part may run no block: from: 6 is the final norm and the head of demo:gpt2 alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stitch.files.specification import faulty, read_yaml, shown


@dataclass(frozen=True)
class Part:
    """Blocks start..stop−1 of a model, or all from `start` on where `stop` is None, and then its final norm and head.

    `model` is its name; `stitch.chain` also takes a loaded model or a result.

    >>> import stitch
    >>> print(stitch.Part("demo:gpt2", stop=3), "then", stitch.Part("demo:llama", 4))
    demo:gpt2[:3] then demo:llama[4:]
    """

    model: Any
    start: int = 0
    stop: int | None = None

    def __str__(self) -> str:
        return f"{self.model}[{self.start or ''}:{'' if self.stop is None else self.stop}]"


def joined(parts: Sequence[Part]) -> str:
    """The name of a composite of these parts. The last part is named as running to its model's end."""
    last = parts[-1]
    return " + ".join(map(str, (*parts[:-1], Part(last.model, last.start))))


def read_parts(file: Path) -> list[Part]:
    """The parts that a YAML file names, checked as far as is possible without the models.

    Raises: UsageError for a file that cannot be read, and for all that is wrong in it: unknown keys, fewer than two parts, and
    block numbers that are missing or leave a part empty.
    """
    return _checked(read_yaml(file, "the file that names the parts of a chain"), str(file))


def parts_of(entries: list, where: str) -> list[Part]:
    """The parts that a list of {model, from, to} names, checked in the same way. `where` it stands begins a message."""
    return _checked({"parts": entries}, where)


def given_parts(given: Sequence[Part | Mapping[str, Any]]) -> list[Part]:
    """The parts of a list of `Part`s and of {model, from, to} as in the file, checked in the same way. Models may be loaded."""
    entries = [
        {"model": one.model, "from": one.start, "to": one.stop} if isinstance(one, Part) else one for one in given
    ]
    models = [entry.get("model") if isinstance(entry, Mapping) else None for entry in entries]
    named: list[Any] = []
    for entry, model in zip(entries, models, strict=True):
        name = str(model) if isinstance(model, (str, Path)) else type(model).__name__
        named.append(entry if model is None else {**entry, "model": name})
    checked = parts_of(named, "the list of parts")
    return [replace(part, model=model) for part, model in zip(checked, models, strict=True)]


def _checked(found: Any, where: str) -> list[Part]:
    from stitch.composite.parts_schema import ChainFile
    from stitch.files.schema import checked

    entries = checked(ChainFile, found, where).parts
    faults = []
    for number, entry in enumerate(entries):
        start, last, name = entry.start, number == len(entries) - 1, f"parts[{number}] ({shown(entry.model)})"
        if number == 0 and start:
            faults.append(f"{name} reads the text, so it begins at block 0, got {start}: leave 'from' out")
        if number and start is None:
            faults.append(f"{name} needs 'from', the first of its blocks to run")
        if entry.stop is None and not last:
            faults.append(f"{name} needs 'to', the block at which the next part takes over")
        if entry.stop is not None and entry.stop <= (start or 0):
            faults.append(
                f"{name} runs the blocks 'from' to 'to' − 1, so 'to' must be above {start or 0}, got {entry.stop}"
            )
    if faults:
        raise faulty(where, faults)
    return [Part(entry.model, entry.start or 0, entry.stop) for entry in entries]
