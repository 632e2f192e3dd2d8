"""Values and scripts inside a page: as JSON that no text can break out of, and with the hash that lets a script run."""

import base64
import hashlib
import json
from typing import Any

from stitch.files.finite import finite

# `<` cannot close the script element or open a comment; the two separators end a line in older JavaScript.
ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def script_json(value: Any) -> str:
    """JSON without spaces, safe inside <script>. Numbers that are not finite become null."""
    try:
        text = _compact(value)
    except ValueError:  # NaN or infinity; rare, and to look for them takes longer than all the rest
        text = _compact(finite(value))
    return text.translate(ESCAPES)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def policy(scripts: list[str]) -> str:
    """A Content-Security-Policy: nothing is loaded from anywhere, and no script runs but these."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
