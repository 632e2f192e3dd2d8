"""The SAEs of both sites, given or trained, and the matching of their features."""

import dataclasses
from pathlib import Path

from sae.config import SAEConfig
from sae.schedule import batch_size_for, default_features, steps_for
from sae.types import Dictionary
from stitch.activations.paired import Paired
from stitch.config import AnySettings, CompleteSettings
from stitch.features.by_block import Side, by_block
from stitch.features.codes import code_stream
from stitch.features.given import GivenSAE, Place, look_at, require_fitting
from stitch.features.matching import Matching, match
from stitch.features.saes import SAERequest, SAEs, train
from stitch.files.store import Store
from stitch.jobs.pair.settings import check_determined
from stitch.models.model import Model
from stitch.models.sources import Source
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import Windows


def sae_requests(
    settings: CompleteSettings, a: Model, b: Model, tokens: int, sources: dict[str, Source], work: Path
) -> dict[str, SAERequest]:
    """The SAEs to train on so many tokens, or to load, by side. Trained ones are written to folders of `work`."""
    batch = batch_size_for(tokens)
    given = {"a": settings.sae_a, "b": settings.sae_b}

    def request(side: str, model: Model, site: int) -> SAERequest:
        config = SAEConfig(
            architecture=settings.architecture,
            features=settings.features or default_features(model.width, tokens),
            k=settings.k,
            steps=steps_for(tokens, settings.sae_passes, batch),
            batch_size=batch,
            seed=settings.seed,
        )
        provenance = {
            "model": sources[side].name,
            "revision": sources[side].revision,
            "site": f"resid_pre.{site}",
            **dataclasses.asdict(config),
        }
        return SAERequest(config, work / f"sae-{side}", given[side], provenance)

    return {"a": request("a", a, settings.layer), "b": request("b", b, settings.layer_b)}


def look_at_saes(settings: AnySettings, a: Model, b: Model) -> list[GivenSAE]:
    """The SAEs that the settings name, looked at without a word on where they belong."""
    given = {"sae_a": (settings.sae_a, a), "sae_b": (settings.sae_b, b)}
    return [look_at(name, source, model.width) for name, (source, model) in given.items() if source is not None]


def check_saes(settings: AnySettings, given: list[GivenSAE], sources: dict[str, Source]) -> list[str]:
    """What cannot be told of given SAEs. Raises: SAEError for those that cannot be used at their sites.

    Where `layer_b` is still to be chosen, the SAE of B may be of any hook.
    """
    site_b = settings.layer_b if isinstance(settings.layer_b, int) else None
    places = {"sae_a": Place(sources["a"], settings.layer), "sae_b": Place(sources["b"], site_b)}
    notes = require_fitting(given, places, insist=settings.sae_any_hook)
    return [note for one in notes.values() for note in one]


def train_pair(
    settings: CompleteSettings,
    a: Model,
    b: Model,
    paired: dict[Split, Paired],
    work: Path,
    sources: dict[str, Source],
    progress: Progress | None = None,
    store: Store | None = None,
) -> SAEs:
    """The SAEs of both sites: loaded where the settings name one, otherwise trained together, with files in `work`.

    Those that `store` has of an earlier run are taken from there.
    """
    requests = sae_requests(settings, a, b, paired["fit"].tokens, sources, work)
    saes = train(
        paired["fit"],
        paired["sweep"],
        requests,
        snapshots=work / "sae-snapshots",
        group=4,
        device=a.device,
        store=store,
        progress=progress,
    )
    if settings.features is not None and settings.sae_a is None:
        check_determined(settings.features, paired["fit"].tokens, "features")
    return saes


def chunk_tokens(settings: CompleteSettings, *dictionaries: Dictionary) -> int:
    """Tokens encoded at a time. Dense codes of all `dictionaries` and their copies take at most a sixteenth of the memory.

    With more than 2,048, arrays are so large that the allocator returns them to the system after every use, which is slower.
    """
    features = sum(dictionary.encoder.shape[1] for dictionary in dictionaries)
    return max(256, min(2048, settings.memory // 16 // (12 * features)))


def codes_of_pair(settings: CompleteSettings, fit: Paired, saes: SAEs, work: Path, progress: Progress | None = None):
    """Both SAEs' codes of the fit split, as a stream that can be read several times."""
    chunk = chunk_tokens(settings, saes.a, saes.b)
    return code_stream(fit, saes.a, saes.b, chunk=chunk, folder=work / "codes", progress=progress)


def match_pair(
    settings: CompleteSettings, fit: Paired, saes: SAEs, work: Path, progress: Progress | None = None
) -> Matching:
    """The matching of both SAEs' features on the fit split, whose codes are kept in `work`."""
    stream = codes_of_pair(settings, fit, saes, work, progress)
    return match(stream, settings.matching, seed=settings.seed, budget_bytes=settings.memory // 4, progress=progress)


def match_by_block(
    settings: CompleteSettings,
    a: Model,
    b: Model,
    held_out: Windows,
    saes: SAEs,
    matching: Matching,
    progress: Progress | None = None,
) -> dict:
    """How far the best pairs agree at other blocks, see `by_block`; nothing for a brief report."""
    if settings.brief:
        return {}
    sides = Side(a, saes.a, settings.layer), Side(b, saes.b, settings.layer_b)
    return by_block(
        *sides, held_out.ids, matching.pairs, seed=settings.seed, chunk=chunk_tokens(settings, saes.a, saes.b),
        budget_bytes=settings.memory // 16, progress=progress,
    )  # fmt: skip
