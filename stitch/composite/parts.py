"""The parts of a chain: which blocks of which models, in the order they run. They may come from a YAML file:

parts:
  - {model: demo:gpt2, to: 3}              # embedding and blocks 0..2
  - {model: demo:llama, from: 4, to: 6}    # blocks 4 and 5
  - {model: demo:gpt2, from: 5}            # blocks 5.., final norm and head
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stitch.errors import UsageError

KEYS = ("model", "from", "to")


@dataclass(frozen=True)
class Part:
    """Blocks start..stop−1 of a model, or all from `start` on where `stop` is None.

    `model` is its name; `stitch.chain` also takes a loaded model or a result.
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

    Raises: UsageError for a file that cannot be read, unknown keys, fewer than two parts, and block numbers that are missing,
    negative or leave a part empty.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file} must be a file that names the parts of a chain; got {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{file} must be YAML; it cannot be read: {reason}") from None
    if not isinstance(content, dict) or not isinstance(content.get("parts"), list):
        raise UsageError(f"{file} must hold `parts:` and a list below it, such as - {{model: demo:gpt2, to: 3}}.")
    _refuse_unknown(content, ("parts",), f"{file}")
    return parts_of(content["parts"], f"{file}")


def parts_of(entries: list, where: str) -> list[Part]:
    """The parts that a list of {model, from, to} names, checked in the same way. `where` it stands begins a message."""
    if len(entries) < 2:
        raise UsageError(f"a chain needs at least 2 parts; {where} has {len(entries)}: add one.")
    return [_part(entry, number, len(entries)) for number, entry in enumerate(entries, 1)]


def _part(entry: Any, number: int, count: int) -> Part:
    where = f"part {number}"
    if not isinstance(entry, dict):
        raise UsageError(f"{where} must be like {{model: demo:gpt2, from: 2, to: 3}}; got {entry!r}.")
    _refuse_unknown(entry, KEYS, where)
    model = entry.get("model")
    if not isinstance(model, str) or not model:
        raise UsageError(f"{where} needs `model`, a Hub id, a folder, a .gguf file or demo:gpt2; got {model!r}.")
    start, stop = (_block(entry, key, where) for key in ("from", "to"))
    if number == 1:
        if start:
            raise UsageError(f"{where} reads the text, so it begins at block 0; got from: {start}: leave `from` out.")
        start = 0
    if start is None:
        raise UsageError(f"{where} ({model}) needs `from`, the first of its blocks to run.")
    if stop is None and number < count:
        raise UsageError(f"{where} ({model}) needs `to`, the block at which the next part takes over.")
    if stop is not None and stop <= start:
        raise UsageError(
            f"{where} ({model}) must run at least one block, so `to` must be above {start}; got {stop}: blocks are those "
            "from `from` to `to` − 1."
        )
    return Part(model, start, stop)


def _block(entry: dict, key: str, where: str) -> int | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f"{where} needs a block's number, 0 or more, as `{key}`; got {value!r}.")
    return value


def _refuse_unknown(found: dict, known: Sequence[str], where: str) -> None:
    if unknown := [key for key in found if key not in known]:
        raise UsageError(f"{where} has the keys {', '.join(known)}; got {str(unknown[0])!r} as well.")
