"""A run that was killed after its last step, when its output was in place."""

from pathlib import Path

from stitch.files.left import PUBLISHING, left_in, read_json


def finished(out: Path, request: dict, scratch: Path) -> dict | None:
    """The report in `out` of a run of the same request, of which nothing else is left in `scratch` to be done; else None."""
    report = read_json(out / "report.json")
    provenance = (report or {}).get("provenance")
    if not isinstance(provenance, dict) or provenance.get("settings") != request:
        return None
    left = left_in(scratch)
    has_work = left is not None and left.stage not in ("", PUBLISHING)
    return None if has_work else report
