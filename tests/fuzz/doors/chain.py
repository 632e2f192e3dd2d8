"""The file that names the parts of a chain (`stitch chain FILE`)."""

from typing import Any

import yaml

from fuzz.documents import LAUGHS, whole, yaml_files
from fuzz.door import Door
from stitch.composite.parts import read_parts

DOCUMENTS = (
    {"parts": [{"model": "demo:gpt2", "to": 3}, {"model": "demo:llama", "from": 4}]},
    {
        "parts": [
            {"model": "demo:gpt2", "from": 0, "to": 3},
            {"model": "demo:llama", "from": 4, "to": 6},
            {"model": "a/b", "from": 5, "to": None},
        ]
    },
)


def sound(content: bytes, parts: Any) -> bool:
    """Two parts or more; the first from block 0, the last to its model's end or as said, each with a block at least."""
    entries = yaml.safe_load(content)["parts"]
    if [(part.model, part.start, part.stop) for part in parts] != [
        (entry["model"], entry.get("from") or 0, entry.get("to")) for entry in entries
    ]:
        return False
    return (
        len(parts) > 1
        and parts[0].start == 0
        and all(part.stop is not None for part in parts[:-1])
        and all(isinstance(part.model, str) and part.model.isprintable() for part in parts)
        and all(whole(part.start, 0, 100_000) for part in parts)
        and all(part.stop is None or whole(part.stop, part.start + 1, 100_000) for part in parts)
    )


DOORS = [
    Door(
        name="chain.yaml",
        file="chain.yaml",
        cases=yaml_files(DOCUMENTS, names=("model", "from", "to", "parts")),
        call=read_parts,
        sound=sound,
        kept=(
            b"parts:\n  - {model: demo:gpt2, to: 3}\n  - {model: demo:llama, from: 4}\n",
            b"parts: " + b"[" * 5_000 + b"]" * 5_000,
            b"parts: " + b"9" * 5_000,
            b"parts: [{model: a, to: 150000}, {model: b, from: 1}]",
            b"parts: [{model: a, model: b, to: 1}, {model: b, from: 1}]",
            b"parts: &a [{model: *a, to: 1}, {model: b, from: 1}]",
            f"parts: {LAUGHS}".encode(),
            b'parts: [{model: "\x1b[31m", to: 1}, {model: b}]',
        ),
    )
]
