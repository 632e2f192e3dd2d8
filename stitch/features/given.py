"""SAEs that a caller gives, looked at before any work: whether they can be used, and whether they belong to their sites."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae.attachment import Attachment, attachment
from sae.convert import to_dictionary
from sae.errors import SAEError
from stitch.features.hooks import is_elsewhere, site_of
from stitch.features.model_names import compared
from stitch.models.published_saes import load
from stitch.models.sources import Source


@dataclass(frozen=True)
class GivenSAE:
    """The SAE `source` that the parameter `parameter` names, its attachment, and the faults that it has at any site.

    Faults are sentences without a full stop. An SAE that cannot be read has no attachment.
    """

    parameter: str
    source: str
    attachment: Attachment | None
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where an SAE is to be used: a model and a site of it. `site` is None where it is chosen later."""

    model: Source
    site: int | None

    def __str__(self) -> str:
        return self.model.name if self.site is None else f"resid_pre.{self.site} of {self.model.name}"


def look_at(parameter: str, source: str, width: int) -> GivenSAE:
    """Loads an SAE, a folder or release:sae_id, and finds its faults: files, weights, width, normalisation, top-k norms."""
    try:
        sae = load(source)
    except SAEError as error:
        return GivenSAE(parameter, source, None, (_sentence(error),))
    faults = []
    if (reads := sae.cfg.d_in) != width:
        faults.append(f"it must read activations of width {width}; {source} reads {reads}")
    try:
        to_dictionary(sae)
    except SAEError as error:
        faults.append(_sentence(error))
    return GivenSAE(parameter, source, attachment(sae, source), tuple(faults))


def require_fitting(given: Sequence[GivenSAE], places: Mapping[str, Place], *, insist: bool) -> dict[str, list[str]]:
    """Notes on each SAE, by parameter: where its hook or its model cannot be told. `places` has the place of each parameter.

    With `insist` a hook or a model that is not the place's is a note as well.
    Raises: SAEError with all faults of all SAEs.
    """
    notes, refused = {}, {}
    for one in given:
        elsewhere, untold = misplaced(one, places[one.parameter])
        notes[one.parameter] = [*elsewhere, *untold]
        if faults := [*one.faults, *([] if insist else elsewhere)]:
            hint = (
                ["give another, or set `sae_any_hook` to use it all the same"]
                if elsewhere and not one.faults and not insist
                else []
            )
            refused[one.parameter] = "; ".join([*faults, *hint])
    if refused:
        listed = [f"`{one}`: {faults}" for one, faults in refused.items()] if len(refused) > 1 else refused.values()
        where = " and ".join(str(places[one]) for one in refused)
        raise SAEError(f"{' and '.join(refused)} must be usable at {where}: {'. '.join(listed)}.")
    return notes


def misplaced(given: GivenSAE, place: Place) -> tuple[list[str], list[str]]:
    """What says that an SAE belongs elsewhere, and what cannot be told, as sentences without a full stop."""
    elsewhere: list[str] = []
    untold: list[str] = []
    if given.attachment is None:
        return elsewhere, untold
    hook, name = given.attachment.hook, given.attachment.model
    site = None if hook is None else site_of(hook)
    if hook is None:
        untold.append(f"{given.source} does not say at which hook it was trained")
    elif is_elsewhere(hook):
        elsewhere.append(f"it was trained at {hook}, which is no site of the residual stream")
    elif site is None:
        untold.append(f"{given.source} was trained at {hook}, a hook of unknown name")
    elif place.site is not None and site != place.site:
        elsewhere.append(f"it was trained at {hook}, which is resid_pre.{site}")
    if name is None:
        untold.append(f"{given.source} does not say on which model it was trained")
        return elsewhere, untold
    match compared(name, place.model):
        case "other":
            elsewhere.append(f"it was trained on {name}")
        case "derived":
            untold.append(f"{given.source} was trained on {name}, from which {place.model.name} was made by its card")
        case "unknown":
            untold.append(f"{given.source} was trained on {name}, which may or may not be {place.model.name}")
    return elsewhere, untold


def _sentence(error: SAEError) -> str:
    return str(error).removesuffix(".")
