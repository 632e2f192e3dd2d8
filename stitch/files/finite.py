"""Numbers that JSON does not have."""

import math
from typing import Any


def finite(value: Any) -> Any:
    """The same dicts, lists and values with None in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
