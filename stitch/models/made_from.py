"""The models that another was made from, as the report beside it names them."""

from dataclasses import dataclass
from pathlib import Path

from stitch.files.left import read_json
from stitch.models.sources import HUB_NAME


@dataclass(frozen=True)
class Recorded:
    """A model as a report has it. `role` is a, b or part 1; `revision` is the Hub's commit, or a GGUF file's SHA-256.

    `weights` is the hash of a folder's files; None for other models, and in reports that were written before it was recorded.
    """

    role: str
    name: str
    kind: str
    revision: str | None
    weights: str | None

    @property
    def address(self) -> str:
        """What leads to it again: for a model of the Hub, the commit that was read."""
        known = HUB_NAME.fullmatch(self.name) if self.kind == "hub" else None
        return f"{known['repo']}@{self.revision}" if known and self.revision else self.name


def made_from(folder: Path) -> list[Recorded]:
    """Whatever `folder`/report.json says of them; nothing where there is no report, or where it says nothing.

    Not the model whose tokenizer alone was taken, nor the one that `convert undo` undid.
    """
    report = read_json(folder / "report.json") or {}
    provenance = report.get("provenance")
    models = provenance.get("models") if isinstance(provenance, dict) else None
    if not isinstance(models, dict):
        return []
    return [
        Recorded(role, one["name"], str(one.get("kind")), one.get("revision"), one.get("weights_sha256"))
        for role, one in models.items()
        if role not in ("tokenizer", "undone")
        and isinstance(one, dict)
        and isinstance(one.get("name"), str)
        and isinstance(one.get("revision"), str | None)
        and isinstance(one.get("weights_sha256"), str | None)
    ]
