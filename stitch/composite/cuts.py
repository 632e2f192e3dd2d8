"""At which layers a model can be cut, and the refusal of all others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stitch.composite.compose import Streams, streams_from
from stitch.composite.exact import TOKENS, WHOLE, Answers, answers, inexact, inexact_before, is_known
from stitch.errors import UsageError
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.models.pico import small_model

FLOPS = 2e12  # of a search for other layers: about half a minute on two cores
BLOCKS = 2_000  # that are run in it: of small models these take the time
LEAST = 6  # layers that are tried at any cost
SPREAD = 8  # parts of a small copy between the layers that are tried for a sweep
TRIED = "This was tried on a small copy of the model, made from its config.json, before its weights are read."


@dataclass(frozen=True)
class Cut:
    """Of one model: at layer `site`, or at every layer where that is None; `first` as in `require_exact`."""

    site: int | None
    first: bool = False


def require_exact_small(folder: Path, name: str, cuts: Iterable[Cut], trust_remote_code: bool = False) -> None:
    """As `require_exact` for each of the cuts, of a small copy of the model whose config.json is in `folder`.

    A model of which no small copy can be made, or one without finite logits, is not refused: the model itself will be tried.
    """
    asked = dict.fromkeys(cuts)
    try:
        model = small_model(folder, name, trust_remote_code) if asked else None
        if model is None or not _is_finite(own := answers(model, model.net)):
            return
        for cut in asked:
            if cut.site is None:
                sites = sorted({round(part * model.depth / SPREAD) for part in range(SPREAD + 1)})
                require_exact_everywhere(model, own, sites)
            elif cut.site in range(model.depth + 1):  # others are refused in any case
                require_exact(model, cut.site, first=cut.first, own=own)
    except UsageError as error:
        raise UsageError(f"{error} {TRIED}") from error


def _is_finite(own: Answers) -> bool:
    """Whether a network read a whole text, and all of its logits are numbers."""
    tensors = [one for one in own.values() if isinstance(one, Tensor)]
    return isinstance(own[WHOLE], Tensor) and all(bool(one.isfinite().all()) for one in tensors)


def require_exact(model: Model, site: int, *, first: bool = False, own: Answers | None = None) -> None:
    """Raises UsageError where cutting the model at `site` and joining it to itself changes its logits. The message lists layers
    where it does not.

    As the `first` part of a composite it may be cut where the blocks before the cut give the same stream without those after it.
    Families that tests have tried, and composites of them, are not tried again. `own` are the model's `answers`, where known.
    """
    if is_known(model):
        return
    own = own or answers(model, model.net)
    if different := _why_not(model, site, first, own):
        raise UsageError(
            f"a model must stay the same when it is cut and joined to itself; {model.name} ({model.config.model_type}) does not "
            f"at layer {site}: {different}. {_advice(model, site, first, own)}"
        )


def require_exact_everywhere(model: Model, own: Answers | None = None, sites: Sequence[int] | None = None) -> None:
    """Raises UsageError where the model joined to itself has other logits than before at some layer, or at one of `sites`."""
    if is_known(model):
        return
    own, sites = own or answers(model, model.net), sites or range(model.depth + 1)
    found = {site: why for site in sites if (why := inexact(model, site, own))}
    if found:
        raise UsageError(
            f"a sweep cuts at every layer; {model.name} ({model.config.model_type}) does not stay the same when it is cut and "
            f"joined to itself at {_listed([*found])}: {found[min(found)]}. "
            + ("Use `join` at other layers." if len(found) < len(sites) else "Choose another model.")
        )


def can_be_cut(model: Model, site: int) -> bool:
    """Whether the blocks from `site` on may run alone, as those of a second part do."""
    return is_known(model) or inexact(model, site) is None


def exact_streams_from(model: Model, start: int) -> Streams | None:
    """As `streams_from`; None where the blocks from `start` on cannot run alone."""
    return streams_from(model, start) if can_be_cut(model, start) else None


def _why_not(model: Model, site: int, first: bool, own: Answers) -> str | None:
    """In what way a cut at `site` changes the model, in words; None where it does not."""
    different = inexact(model, site, own)
    return inexact_before(model, site) if different and first else different


def _advice(model: Model, site: int, first: bool, own: Answers) -> str:
    """Where else it can be cut, of all layers or, of a large model, of the nearest."""
    others = [other for other in range(blocks_before_last_part(model.config), model.depth + 1) if other != site]
    tried = sorted(others, key=lambda other: (abs(other - site), other))[: _affordable(model)]
    exact = sorted(other for other in tried if not _why_not(model, other, first, own))
    of = "" if len(tried) == len(others) else f" of {_listed(sorted(tried))}, the nearest"
    if not exact:
        return f"Nor does it at any other layer{of}: choose another model."
    return f"It does at {_listed(exact)}{of}: choose one of these, or another model."


def _affordable(model: Model) -> int:
    """The number of layers that are tried."""
    return max(LEAST, min(int(FLOPS / (2 * model.net.num_parameters() * TOKENS)), BLOCKS // model.depth))


def _listed(layers: Sequence[int]) -> str:
    """Layers in words, such as "layers 0 to 3 and 6"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    told = [text for run in runs for text in (map(str, run) if len(run) < 3 else [f"{run[0]} to {run[-1]}"])]
    return ("layer " if len(layers) == 1 else "layers ") + " and ".join(filter(None, [", ".join(told[:-1]), told[-1]]))
