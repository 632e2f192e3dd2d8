"""Notes that reports of several commands share."""


def sae_notes(report: dict) -> list[str]:
    """What could not be told of the SAEs that were given, as sentences."""
    return [f"Given SAE: {note}." for note in report.get("sae_notes", [])]


def text_notes(report: dict) -> list[str]:
    """Where the text that was read is not what it should be, as sentences."""
    note = report.get("provenance", {}).get("text", {}).get("note")
    return [] if note is None else [note]
