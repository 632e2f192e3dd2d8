"""Notes that reports of several commands share."""


def sae_notes(report: dict) -> list[str]:
    """What could not be told of the SAEs that were given, as sentences."""
    return [f"Given SAE: {note}." for note in report.get("sae_notes", [])]
