"""A parameter's spelling on the command line, and a library's messages in such spellings."""

import re
from collections.abc import Sequence
from typing import Any

# A parameter's name, or several of them, as the subject that begins a message. Followed by other words a name may be an
# ordinary noun: "features to be grafted must be …". With an underscore it is none.
SUBJECT = re.compile(r"\w+(?:(?:, and |, | and | or )\w+)*(?= (?:must|cannot|may|should)\b)|[a-z0-9]+_\w+")
QUOTED = re.compile(r"`(\w+)(?:=([^`\s]+))?`")


def is_argument(param: Any) -> bool:
    return param.param_type_name == "argument"


def spelling(param: Any) -> str:
    """`--layer-b` of an option, `MODEL_A` of an argument."""
    if is_argument(param):
        return (param.metavar or param.name.upper()).strip("[]")
    return max(param.opts, key=len)


def spelt(message: str, params: Sequence[Any]) -> str:
    """A library's message in the command line's words: `layer_b must be …` becomes `--layer-b must be …`.

    The library speaks of its parameters: at the beginning of a message, or in backticks, there perhaps with a value. Those
    that the command has are replaced by the option's spelling or the argument's name; other words stay as they are.
    """
    spellings = {param.name: spelling(param) for param in params}

    def quoted(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in spellings:
            return found[0]
        return spellings[name] + ("" if value in (None, "True") else f" {value}")

    def word(found: re.Match[str]) -> str:
        return spellings.get(found[0], found[0])

    subject = SUBJECT.match(message)
    names = re.findall(r"\w+", subject[0]) if subject else []
    if subject and all(name in spellings for name in names if name not in ("and", "or")):
        message = re.sub(r"\w+", word, subject[0]) + message[subject.end() :]
    return QUOTED.sub(quoted, message)
