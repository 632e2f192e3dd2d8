"""Whether config.json can describe the model in its folder, from itself and from the headers of the weights."""

from collections.abc import Iterator, Mapping
from typing import Any

from stitch.errors import StitchError
from stitch.files.headers import Header
from stitch.models.composite_file import composite_faults, is_composite
from stitch.models.config_file import config_faults

MOST_TOLD = 5  # faults in one message
# Of these, the weights have a dimension as large.
STORED = ("vocab_size", "hidden_size", "n_embd", "d_model")
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
PARTS = ("text_config", "a_config", "b_config")


def require_described(config: Mapping[str, Any], name: str) -> None:
    """Raises: StitchError with all that config.json of the model `name` cannot say."""
    found = config_faults(config)
    if is_composite(config):
        found += composite_faults(config)
    else:
        found += [f"{key}: must be 1 or more, got 0" for key in DEPTHS if config.get(key) == 0]
    if found:
        raise _refusal(name, found)


def require_stored(config: Mapping[str, Any], headers: Mapping[Any, Header], name: str) -> None:
    """Compares the sizes in config.json with the weights' headers, so that no model is built that they could not fill.

    Raises: StitchError where the weights have no dimension as large, or fewer tensors than there are blocks or experts.
    """
    shapes = [entry["shape"] for header in headers.values() for entry in header.tensors.values()]
    largest, count = max((size for shape in shapes for size in shape), default=0), len(shapes)
    found = []
    for where, part in _parts("", config):
        # Of a part of a composite a few blocks alone may be stored.
        blocks = () if where.startswith(("a_config", "b_config")) else DEPTHS
        experts = [key for key in part if key.endswith("experts")]
        for keys, most in ((STORED, largest), (blocks, count), (experts, max(largest, count))):
            for key in keys:
                if isinstance(value := part.get(key), int) and value > most:
                    found.append(
                        f"{where}{key}: the weights have {count} tensors and no dimension above {largest}, got {value}"
                    )
    if found:
        raise _refusal(name, found)


def _parts(where: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The config and those in it, each with the path to it."""
    yield where, config
    for side in PARTS:
        if isinstance(part := config.get(side), dict):
            yield from _parts(f"{where}{side}.", part)


def _refusal(name: str, found: list[str]) -> StitchError:
    more = [f"and {len(found) - MOST_TOLD} more"] if len(found) > MOST_TOLD else []
    told = "; ".join([*found[:MOST_TOLD], *more])
    return StitchError(f"config.json of {name} must describe the model in its folder; {told}. Download it again.")
