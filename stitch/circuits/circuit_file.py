"""A circuit read back from a report of `find_circuit`, from its `circuit` alone, or from the graft.json of a single graft."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, StringConstraints

from stitch.circuits.components import Components
from stitch.circuits.shallow import Arrangement
from stitch.errors import UsageError
from stitch.files.schema import Loose, Schema, checked
from stitch.files.specification import MOST_REPORT, read_json
from stitch.internals.transcoders import feature_blocks
from stitch.models.model import Model

Block = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,4})$")]  # the key of a block
Number = Annotated[int, Field(ge=0, lt=10**7)]  # of a component or block


class CircuitEntry(Schema):
    """Numbers of components by block."""

    heads: dict[Block, list[Number]] = Field({})
    neurons: dict[Block, list[Number]] = Field({})


class ArrangementEntry(Schema):
    table: Number
    beside: list[Number]
    blocks: list[Annotated[list[Number], Field(min_length=1)]] = Field(min_length=1)


class PlanEntry(Loose):
    arrangement: ArrangementEntry | None = None


class ReportEntry(Loose):
    circuit: CircuitEntry
    features: dict[Block, str] = Field({})
    plan: PlanEntry = PlanEntry()


def read_circuit(path: Path, model: Model) -> Components:
    """The circuit of a file.

    Raises: UsageError when the file is no such JSON, names components that the model does not have, or was made with features in
    other blocks.
    """
    found = _read(path)
    if isinstance(found, ReportEntry):
        theirs, ours = {int(block) for block in found.features}, set(feature_blocks(model))
        if theirs != ours:
            raise UsageError(
                f"{path} has features in {_blocks(theirs)}; {model.name} in {_blocks(ours)}: give the same `features`."
            )
    circuit = found.circuit if isinstance(found, ReportEntry) else found
    kept = Components.none(model)
    for kind, by_block in (("heads", circuit.heads), ("neurons", circuit.neurons)):
        for block, numbers in by_block.items():
            if int(block) >= model.depth:
                raise UsageError(
                    f"{path} names block {block}, which {model.name} does not have; it has {model.depth}: edit it."
                )
            mask = kept.masks.get((kind, int(block)), torch.zeros(0, dtype=torch.bool))  # with features, some have none
            if missing := [number for number in numbers if number >= len(mask)]:
                raise UsageError(
                    f"{path} names {kind} {missing[:5]} of block {block}, which {model.name} does not have: edit it."
                )
            mask[numbers] = True
    return kept


def read_arrangement(path: Path) -> Arrangement | None:
    """The arrangement of the donor's blocks in a graft.json, if it has one. Raises UsageError when it is not valid."""
    found = _read(path)
    if not isinstance(found, ReportEntry) or found.plan.arrangement is None:
        return None
    try:
        return Arrangement.from_dict(found.plan.arrangement.model_dump())
    except ValueError as error:
        raise UsageError(f"{path} must have an arrangement that can be made; {error}.") from None


def _blocks(numbers: set[int]) -> str:
    return f"blocks {', '.join(map(str, sorted(numbers)))}" if numbers else "none"


def _read(path: Path) -> ReportEntry | CircuitEntry:
    found: Any = read_json(path, "the file of a circuit", MOST_REPORT)
    if isinstance(found, dict) and "grafts" in found:
        grafts = checked(list[Any], found["grafts"], f"grafts of {path}")
        if len(grafts) != 1:
            raise UsageError(f"{path} must have one graft; it has {len(grafts)} grafts; leave one.")
        (found,) = grafts
    whole = isinstance(found, dict) and "circuit" in found
    entry = checked(ReportEntry if whole else CircuitEntry, found, str(path))
    circuit = entry.circuit if isinstance(entry, ReportEntry) else entry
    if not circuit.model_fields_set:
        raise UsageError(
            f'{path} must name components such as {{"heads": {{"1": [0, 2]}}, "neurons": {{}}}}; it has none.'
        )
    return entry
