"""All alternatives to a composite, by the row that each has in the report."""

import shutil
from collections.abc import Callable, Mapping
from types import MappingProxyType

from stitch.composite.costs import whole
from stitch.evaluation.scores import whole_model
from stitch.files.heap import give_back
from stitch.frontier.alternative import Alternative, Means
from stitch.frontier.own_tables import own_tables
from stitch.frontier.shortened import shortened
from stitch.frontier.skips import a_exit, b_skip
from stitch.frontier.untrained import untrained_a
from stitch.models.model import Model


def alternatives(
    a: Model, b: Model, sites: tuple[int, int], chosen: str, means: Means, wants: Callable[[str], bool],
    reading: Mapping[str, Model] = MappingProxyType({}),
) -> dict[str, Alternative]:  # fmt: skip
    """The alternatives that `wants` accepts, to a composite of A up to the first of `sites` and B from the second on, which has
    the translation `chosen`. Those that cannot keep within its cost are left out.

    Where both models are the same, the composite itself skips blocks of B: `reference:b-skip` is left out, as is the second
    `own-tables`. Where they read different tokens, `reading` has B retokenised, by row name: the first of them is what blocks
    are taken out of. B's own tables are fitted as the composite is, on its streams in its own tokens.
    """
    whole_b = next(iter(reading.values()), b)
    made: dict[str, Callable[[], Alternative | None]] = {
        "reference:own-tables": lambda: own_tables(b, means),
        "reference:a-own-tables": lambda: None if a is b else own_tables(a, means),
        "reference:b-shortened": lambda: shortened(whole_b, means),
        "reference:a-exit": lambda: a_exit(a, means),
        "reference:b-skip": lambda: None if a is b else b_skip(whole_b, sites[1], chosen, means),
        "null:untrained-a": lambda: untrained_a(a, b, sites, chosen, means),
        **{name: lambda model=model: retokenized(model, means) for name, model in reading.items()},
    }
    found: dict[str, Alternative] = {}
    for name, make in made.items():
        if wants(name) and (one := make()) is not None:
            found[name] = one
        give_back()  # what one was fitted with, before the next is
    shutil.rmtree(means.scratch, ignore_errors=True)  # activations; what was made of them is in memory
    return found


def retokenized(model: Model, means: Means) -> Alternative:
    """All of B, reading A's tokens."""
    return Alternative(f"{model.name} retokenised", whole(model, means.context), whole_model(model.net))
