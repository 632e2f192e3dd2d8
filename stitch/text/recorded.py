"""The default corpus as it is with the versions in constraints.txt: on every machine that has them it has the same SHA-256.

`python -m stitch.text.recorded` records the corpus that is installed. Do so when a version in constraints.txt changes.
"""

import json
from pathlib import Path

RECORD = Path(__file__).with_name("recorded.json")


def difference(sha256: str) -> str | None:
    """How the default corpus with this SHA-256 differs from the recorded one, as a sentence; None where it is the same."""
    from stitch.text.corpus import versions

    record = json.loads(RECORD.read_text())
    if sha256 == record["sha256"]:
        return None
    here = versions()
    others = [
        f"{name} {here.get(name, 'not installed')} instead of {wanted}"
        for name, wanted in record["versions"].items()
        if here.get(name) != wanted
    ]
    reason = ", ".join(others) if others else "the versions are the same, so files of the packages were changed"
    return (
        "The text `docs` is not the recorded one, so numbers may differ from those of other machines "
        f"(SHA-256 {sha256[:12]} instead of {record['sha256'][:12]}): {reason}."
    )


def main() -> None:
    from stitch.text.corpus import cached_documents, versions
    from stitch.text.fingerprint import sha256_of

    found = {"sha256": sha256_of(cached_documents()), "versions": versions()}
    RECORD.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
