"""What a run found of earlier ones, in words."""

NAMES = {"activations": "files of activations", "saes": "SAEs"}  # of what the cache keeps


def reused(report: dict) -> list[str]:
    """A sentence on what was found in the cache; none where nothing was."""
    cache = report.get("cache", {})
    found, made = cache.get("reused", {}), cache.get("made", {})
    counts = [f"{count} of {count + made.get(kind, 0)} {NAMES[kind]}" for kind, count in found.items()]
    return [f"From the cache: {' and '.join(counts)}."] if counts else []
