"""What every row of a report costs: FLOPs, parameters, bytes on disk and bytes read per token."""

from collections.abc import Mapping, Sequence

from stitch.composite.costs import Cost, Costs, of_dictionary, of_translation, whole
from stitch.composite.splice import Splice
from stitch.composite.surgery import Bridge, bridged
from stitch.features.saes import SAEs
from stitch.translation.fit import Fitted
from stitch.translation.types import Translation


def row_costs(
    costs: Costs,
    sites: tuple[int, int],
    fitted: Fitted,
    written: Translation,
    saes: SAEs,
    *,
    references: Mapping[str, Translation],
    bridges: Mapping[str, Bridge],
) -> dict[str, Cost]:
    """Costs by row name, of all rows that a join can have but its alternatives. `written` is the composite's translation."""
    site, onto = sites
    translations = {**fitted.translations, **fitted.nulls, **references, "composite": written}
    if fitted.shuffles:
        translations["null:shuffled-matching"] = fitted.shuffles[0]
    late = costs.late(onto)
    return {
        "a": costs.whole_source,
        "b": costs.whole_target,
        **{name: costs.composite(site, onto, translation) for name, translation in translations.items()},
        **{name: of_bridge(costs, Splice(costs.source.depth, site, onto), bridge) for name, bridge in bridges.items()},
        "floor:mean": late,
        "floor:zero": late,
        "floor:wrong-text": costs.whole_target,
        "ceiling:sae-b": costs.whole_target + of_dictionary(saes.b),
    }


def surgery_costs(
    costs: Costs,
    splice: Splice,
    bridges: Mapping[str, Bridge],
    adapters: Mapping[str, Translation],
    others: Mapping[Splice, Bridge],
) -> dict[str, Cost]:
    """Costs by row name of a model with blocks removed or repeated: all rows but the composite, which is one of the bridges, and
    the alternatives."""
    drawn = [of_bridge(costs, other, bridge) for other, bridge in others.items()]
    return {
        "a": costs.whole_source,
        "b": costs.whole_target,
        **{name: of_bridge(costs, splice, bridge) for name, bridge in bridges.items()},
        **{name: costs.composite(splice.early, splice.late, adapter) for name, adapter in adapters.items()},
        **({"null:random-range": mean_of(drawn)} if drawn else {}),
    }


def mean_of(drawn: Sequence[Cost]) -> Cost:
    """The mean cost of the draws of a null, whose blocks may differ in size."""
    total = sum(drawn, Cost())
    return Cost(*(type(value)(value / len(drawn)) for value in total.to_dict().values()))


def of_bridge(costs: Costs, splice: Splice, bridge: Bridge) -> Cost:
    """The cost of a model with blocks removed or repeated, and of the matrices that do not fold into its weights."""
    total = whole(bridged(costs.source, splice, bridge), costs.context)
    for matrix in (*bridge.maps.values(), *([] if bridge.patch is None else [bridge.patch])):
        size = matrix.numel() * costs.source.dtype.itemsize
        total += Cost(2.0 * matrix.numel(), matrix.numel(), size, size)
    return total


def seam_costs(costs: Costs, site: int, translations: Mapping[str, Translation]) -> dict[str, Cost]:
    """Costs of the translations alone."""
    return {
        name: of_translation(translation, costs.source, costs.target, site)
        for name, translation in translations.items()
    }
