"""The stages of the main job, from the text to the translations: functions of the settings and of earlier stages' results."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sae.config import SAEConfig
from sae.schedule import TOKENS_PER_FEATURE, batch_size_for, default_features, steps_for
from sae.types import Dictionary
from stitch.activations.harvest import Activations, harvest, windows_per_shard
from stitch.activations.paired import Paired, pair
from stitch.composite.bridges import fit_bridges, sites_of
from stitch.composite.compose import check_target
from stitch.composite.costs import Costs
from stitch.composite.cuts import exact_streams_from, require_exact
from stitch.composite.exact import require_renumbered
from stitch.composite.splice import Splice
from stitch.composite.surgery import Bridge, why_not_foldable
from stitch.config import TOKENS, TOKENS_NATIVE, AnySettings, CompleteSettings, same_relative_depth
from stitch.errors import UsageError, require_extra
from stitch.features.by_block import Side, by_block
from stitch.features.codes import code_stream
from stitch.features.given import GivenSAE, Place, look_at, require_fitting
from stitch.features.matching import Matching, match
from stitch.features.saes import SAERequest, SAEs, train
from stitch.files.store import Store
from stitch.layers.choose import check_choosable
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.device import torch_device, torch_dtype
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import Check, Source, resolve_all
from stitch.models.writer import Writer
from stitch.progress import Progress, Steps
from stitch.text.documents import Split
from stitch.text.sources import Corpus
from stitch.text.tokenizers import require_same_ids
from stitch.text.windows import CONTEXT, HELD_OUT, LEAST_HELD_OUT, Windows, read_for, split_windows
from stitch.translation.available import available, earlier_sites
from stitch.translation.fit import Evidence, Fitted, MatchedFeatures, Options, inputs_read, translate
from stitch.translation.packing import bytes_without_tables, pack, steps
from stitch.translation.token_tables import TokenTables, token_tables
from stitch.translation.types import Translation


@dataclass(frozen=True, kw_only=True)
class TextSize:
    """How much text a job reads, in tokens: in the fit split, in each held-out split, and in a window."""

    fit: int
    held_out: int
    context: int

    @property
    def limits(self) -> dict[Split, int]:
        """Tokens of each split."""
        return {"fit": self.fit, "sweep": self.held_out, "report": self.held_out}


def load_pair(
    settings: AnySettings, progress: Progress | None = None, check: Check | None = None
) -> tuple[Model, Model, dict[str, Source]]:
    """Both models and their sources by side. If both are the same folder, it is loaded once. `check` is called before.

    Raises: UsageError when they do not read the same token ids, and when the second is a composite.
    """
    a, b, sources = load_any_pair(settings, progress, check)
    require_same_ids(a.tokenizer, b.tokenizer, a.name, b.name)
    return a, b, sources


def load_any_pair(
    settings: AnySettings, progress: Progress | None = None, check: Check | None = None
) -> tuple[Model, Model, dict[str, Source]]:
    """The same of models whose tokenizers may differ. Raises: UsageError when the second is a composite."""
    dtype, device = torch_dtype(settings.dtype), torch_device(settings.device)
    both = [settings.model_a, settings.model_b]
    found = resolve_all(both, check=check, trust_remote_code=settings.trust_remote_code, progress=progress)
    sources = dict(zip("ab", found, strict=True))
    arguments = {
        "dtype": dtype,
        "device": device,
        "trust_remote_code": settings.trust_remote_code,
        "progress": progress,
    }
    a = load(sources["a"].folder, name=sources["a"].name, **arguments)
    same = sources["a"].folder.resolve() == sources["b"].folder.resolve()
    b = a if same else load(sources["b"].folder, name=sources["b"].name, **arguments)
    check_target(b.config, b.name)
    return a, b, sources


def text_size(settings: AnySettings, a: Model, b: Model, held_out: int = HELD_OUT) -> TextSize:
    """Tokens of the splits and of a window, with the defaults for these models.

    Unless the settings say otherwise, a held-out split has LEAST_HELD_OUT windows, or more up to `held_out` tokens.
    Raises: UsageError when the context is longer than the models take.
    """
    longest = min(a.longest, b.longest)
    context = settings.context if settings.context is not None else min(longest, CONTEXT)
    if context > longest:
        raise UsageError(f"context must be at most {longest}, what both models take; got {context}.")
    tokens = settings.tokens or (TOKENS_NATIVE if settings.native else TOKENS)
    held = settings.held_out or max(LEAST_HELD_OUT * context, min(tokens // 10, held_out))
    return TextSize(fit=tokens, held_out=held, context=context)


def check(settings: AnySettings, a: Model, b: Model) -> None:
    """Raises UsageError when the models cannot be joined as the settings say."""
    if settings.matching == "ot" and not settings.native:
        require_extra("ot", "balanced transport")
    a.check_site(settings.layer)
    require_exact(a, settings.layer, first=not settings.native)
    if isinstance(settings.layer_b, int):
        b.check_site(settings.layer_b)
        require_exact(b, settings.layer_b)
    elif settings.layer_b == "auto":
        check_choosable(settings.layer, b)
    if settings.native:
        require_renumbered(a)
    widest = max(a.width, b.width)
    if settings.features is not None:
        if settings.features < widest:
            raise UsageError(f"features must be at least the width, {widest}; got {settings.features}: raise it.")
        # SAE training keeps weights, gradients and two Adam moments of both halves of both SAEs, in float32.
        needed = 4 * 4 * 2 * settings.features * (a.width + b.width)
        if needed > settings.memory:
            raise UsageError(
                f"features must fit into `memory`: {settings.features:,} need {needed / 2**30:.1f} GiB to train, and `memory` is "
                f"{settings.memory / 2**30:.1f} GiB; lower `features` or raise `memory`."
            )
    if not settings.native and not (
        settings.sae_a and settings.sae_b
    ):  # depth surgery has no features, given SAEs have theirs
        tokens = text_size(settings, a, b).fit
        if settings.features is not None:
            check_determined(settings.features, tokens, "features")
        else:
            check_determined(widest, tokens, "the width of both streams")


def complete(settings: AnySettings, a: Model, b: Model) -> CompleteSettings:
    """The settings with every default filled in that depends on the models. `layer_b` must not be "auto".

    Raises: UsageError when the models cannot be joined as the settings say.
    """
    check(settings, a, b)
    layer_b = settings.layer_b
    if layer_b is None:
        layer_b = same_relative_depth(settings.layer, a.depth, b.depth)
        require_exact(b, layer_b)
    if isinstance(layer_b, str):
        raise UsageError("layer_b must be a block's number here; got auto: choose a block first.")
    size = text_size(settings, a, b)
    values = {**settings.to_dict(), "layer_b": layer_b, "context": size.context, "tokens": size.fit}
    return CompleteSettings(**values)


def check_determined(features: int, tokens: int, what: str) -> None:
    """Raises UsageError for fewer than two tokens per feature, too few for least squares. `what` begins the message."""
    if tokens < TOKENS_PER_FEATURE * features:
        raise UsageError(
            f"{what} must be at most half the number of tokens to fit on, {tokens:,}; got {features:,}: "
            "raise `tokens` or lower `features`."
        )


def read_corpus(
    settings: AnySettings,
    a: Model,
    b: Model,
    progress: Progress | None = None,
    held_out: int = HELD_OUT,
    *,
    store: Store | None = None,
) -> Corpus:
    """The text that the settings name. Text `self` is B's, whose blocks finish what A's have begun; `store` keeps it."""
    size = text_size(settings, a, b, held_out)
    writer = Writer.of(b, settings.seed)
    return read_for(
        settings.text, size.limits, b.tokenizer, size.context, writer=writer, store=store, progress=progress
    )


def read_windows(
    settings: AnySettings,
    a: Model,
    b: Model,
    progress: Progress | None = None,
    held_out: int = HELD_OUT,
    *,
    store: Store | None = None,
) -> dict[Split, Windows]:
    """Packed windows of the three splits. Raises StitchError when the text is too small to fill them."""
    corpus = read_corpus(settings, a, b, progress, held_out, store=store)
    return windows_of(corpus, settings, a, b, progress, held_out)


def windows_of(
    corpus: Corpus,
    settings: AnySettings,
    a: Model,
    b: Model,
    progress: Progress | None = None,
    held_out: int = HELD_OUT,
) -> dict[Split, Windows]:
    """The same of a text that has been read."""
    size = text_size(settings, a, b, held_out)
    return split_windows(corpus, size.limits, b.tokenizer, size.context, progress)


def harvest_pair(
    settings: CompleteSettings,
    a: Model,
    b: Model,
    windows: Windows,
    folder: Path,
    progress: Progress | None = None,
    store: Store | None = None,
    also: Sequence[int] = (),
) -> Paired:
    """Writes the activations of both sites to `folder`, in one pass when A is B; those that `store` has are taken from there.

    `also` are further sites of a model that is both A and B.
    """

    def one(request: HarvestRequest) -> Activations:
        return harvest(
            request.model, windows, request.sites, folder / request.name, per_shard=request.per_shard, store=store,
            late=exact_streams_from, progress=progress,
        )  # fmt: skip

    found = [one(request) for request in harvest_requests(settings, a, b, also)]
    return pair(found[0], found[-1], settings.layer, settings.layer_b)


@dataclass(frozen=True)
class HarvestRequest:
    """Sites of one model whose activations are written, so many windows per shard; `name` is the side, or "ab" for both."""

    model: Model
    sites: list[int]
    name: str
    per_shard: int


def harvest_requests(settings: CompleteSettings, a: Model, b: Model, also: Sequence[int] = ()) -> list[HarvestRequest]:
    """What `harvest_pair` writes of each split: a request for each model, or one where A is B."""
    early = [*earlier_sites(settings.layer, blocks_before_last_part(a.config)), settings.layer]
    sites = sorted({*early, settings.layer_b, *bridging_sites(settings, a, b), *also}) if a is b else early
    width = sum(map(a.width_at, sites)) + (0 if a is b else b.width)
    per_shard = windows_per_shard(settings.context, width, a.dtype, settings.memory)
    if a is b:
        return [HarvestRequest(a, sites, "ab", per_shard)]
    return [HarvestRequest(a, sites, "a", per_shard), HarvestRequest(b, [settings.layer_b], "b", per_shard)]


def bridging_sites(settings: CompleteSettings, a: Model, b: Model) -> list[int]:
    """Sites that `bridge_pair` reads; none where it has nothing to do."""
    sites = settings.layer, settings.layer_b
    if a is not b or settings.brief:
        return []
    return sites_of(Splice(a.depth, *sites)) if why_not_foldable(a, *sites, settings.memory) is None else []


def bridge_pair(
    settings: CompleteSettings, a: Model, b: Model, paired: dict[Split, Paired], progress: Progress | None = None
) -> dict[str, Bridge]:
    """Where A is B and blocks are left out or repeated, the bridges over the seam (see `fit_bridges`); otherwise none."""
    if not bridging_sites(settings, a, b):
        return {}
    streams: dict[Split, Activations] = {split: paired[split].a for split in ("fit", "sweep")}
    splice = Splice(a.depth, *settings.sites)
    return fit_bridges(a, splice, streams, memory=settings.memory, seed=settings.seed, progress=progress)


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


def codes_of_pair(settings: CompleteSettings, fit: Paired, saes: SAEs, work: Path, progress: Progress | None = None):
    """Both SAEs' codes of the fit split, as a stream that can be read several times."""
    chunk = chunk_tokens(settings, saes.a, saes.b)
    return code_stream(fit, saes.a, saes.b, chunk=chunk, folder=work / "codes", progress=progress)


def pack_pair(
    settings: CompleteSettings, costs: Costs, fitted: Fitted, fit: Paired, progress: Progress | None = None
) -> dict[str, Translation]:
    """Translations that may be written, by row name, within the bytes that the settings leave to the seam.

    Those whose matrices alone take more are left out; where that is all of them, the smallest remains. A translation that the
    settings name is the only one, and is kept in any case.
    """
    b = costs.target
    limit = int(costs.halves(settings.layer, settings.layer_b).bytes * settings.seam_bytes / 100)
    if settings.translation == "auto":
        sizes = {name: bytes_without_tables(found, b.dtype) for name, found in fitted.translations.items()}
        allowed = {name for name, size in sizes.items() if size <= limit} or {min(sizes, key=lambda name: sizes[name])}
    else:
        allowed = {f"translation:{settings.translation}"}
    written = {name: found for name, found in fitted.translations.items() if name in allowed}
    step = Steps("packing (tables, at most)", sum(map(steps, written.values())), progress)
    packed = {
        name: pack(found, limit, fit.a.windows.ids, b.vocabulary, b.dtype, memory=settings.memory, tick=step)
        for name, found in written.items()
    }
    step.end()
    return packed


def states_of_tokens(
    a: Model, b: Model, paired: dict[Split, Paired], progress: Progress | None = None
) -> TokenTables:  # fmt: skip
    """B's embedding of every token that occurs, and its state at B's site, behind BOS alone."""
    fit, held_out = paired["fit"], paired["sweep"]
    return token_tables(a, b, fit.a.windows, held_out.a.windows, fit.site_b, progress)


def translate_pair(
    settings: CompleteSettings,
    a: Model,
    b: Model,
    paired: dict[Split, Paired],
    saes: SAEs,
    matching: Matching,
    tokens: TokenTables,
    progress: Progress | None = None,
) -> Fitted:
    """Every translation and null that the settings ask for, fitted on the fit split, with λ chosen on the sweep split."""
    fit, held_out = paired["fit"], paired["sweep"]
    inputs = available(a, b, fit, saes, settings.seed, inputs_read(settings.wants), tokens=tokens)
    evidence = Evidence(
        fit=fit, held_out=held_out, inputs=inputs, first=fit.b.first(fit.site_b),
        vocabulary=b.vocabulary, features=MatchedFeatures(saes.a, saes.b, matching),
    )  # fmt: skip
    options = Options(
        ngrams=settings.ngrams, routes=settings.routes, seed=settings.seed, chunk=chunk_tokens(settings, saes.a, saes.b),
        memory=settings.memory,
    )  # fmt: skip
    return dataclasses.replace(translate(evidence, options, settings.wants, progress), look_ups=tokens.described())
