"""`stitch transfer sae`: a sparse autoencoder of A rewritten for B, beside one trained on B and maps that know less."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from sae.config import SAEConfig
from sae.convert import from_dictionary, to_dictionary
from sae.metrics import Quality, measure
from sae.schedule import batch_size_for, steps_for
from sae.storage import save
from sae.trainer import train_sites
from sae.types import Dictionary
from stitch.config import Settings
from stitch.evaluation.documents import counted
from stitch.features.codes import code_stream
from stitch.features.given import Place, look_at, require_fitting
from stitch.features.matching import assigned
from stitch.features.saes import place_of
from stitch.files.store import Store
from stitch.jobs.pair.features import chunk_tokens
from stitch.jobs.transfer import Loaded, transfer
from stitch.jobs.transfer_sites import Sites
from stitch.models.model import Model
from stitch.models.published_saes import load
from stitch.progress import Progress
from stitch.transfers.agreement import agreement, top_tokens
from stitch.transfers.autoencoders import (
    memory_to_refit,
    refitted,
    require_transferable,
    transferred,
    without_features,
)
from stitch.transfers.encoders import codes_and_streams, firing_at, firings, with_encoder
from stitch.transfers.maps import PROCRUSTES, RANDOM, TRANSFERRED

REFITTED, WHOLLY_REFITTED = "transferred, decoder refitted", "transferred, encoder and decoder refitted"
NATIVE, MATCHED, GIVEN = "reference:native", "reference:native, matched features", "reference:native, given"


@dataclass(frozen=True)
class SAEsGiven:
    """The SAE of A, perhaps one of B, and what cannot be told of them."""

    a: Dictionary
    b: Dictionary | None
    notes: list[str]


def transfer_sae(
    settings: Settings,
    file: str,
    out: Path | None = None,
    *,
    native: str | None = None,
    overwrite: bool = False,
    store: Store | None = None,
    progress: Progress | None = None,
) -> tuple[dict, Path]:
    """Rewrites the SAE `file` of A's site for B's, and writes it to `out`/sae in SAELens's format. Returns report and folder.

    Of the SAE that is only mapped, the one whose decoder is refitted to B's stream, and the one whose encoder is refitted to A's
    codes as well, the best on the sweep split is written.
    Rows: A's SAE on A; both; an SAE trained on B's tokens with as many features and as many active, whole and with those features
    alone that match one of A's; the SAE `native` of B, if given; A's through a Procrustes map, a random one, and as it is, the
    first two also with thresholds and decoder refitted.
    Every row has FVU, L0, the cross-entropy of B with the reconstruction in place of its stream, and the share of A's features
    that fire on the same text.
    Where the models read different tokens, each is measured in its own; matches and contexts are of places where both end.
    Where refitting needs more than `memory`, the first is written, and no row is refitted.
    Raises: UsageError when the SAE or the request do not fit; SAEError when the SAE cannot be read.
    """

    def read(loaded: Loaded) -> SAEsGiven:
        notes = _require_fitting(file, native, loaded)
        source = _read(file, loaded.a)
        require_transferable(source)
        return SAEsGiven(source, None if native is None else _read(native, loaded.b), notes)

    request = {
        "file": file, "native": native, "sae_any_hook": settings.sae_any_hook, "sae_passes": settings.sae_passes,
    }  # fmt: skip
    return transfer("sae", settings, out, read, _make, request, overwrite=overwrite, store=store, progress=progress)


def _require_fitting(file: str, native: str | None, loaded: Loaded) -> list[str]:
    """What cannot be told of the SAEs. Raises: SAEError for those that cannot be used at their sites."""
    given = {"file": (file, loaded.a, "a", loaded.settings.layer)}
    if native is not None:
        given["native"] = (native, loaded.b, "b", loaded.settings.layer_b)
    notes = require_fitting(
        [look_at(name, source, model.width) for name, (source, model, _, _) in given.items()],
        {name: Place(loaded.sources[side], site) for name, (_, _, side, site) in given.items()},
        insist=loaded.settings.sae_any_hook,
    )
    return [note for one in notes.values() for note in one]


def _read(file: str, model: Model) -> Dictionary:
    return to_dictionary(load(file, width=model.width, device=str(model.device)))


def _make(sites: Sites, saes: SAEsGiven, output: Path) -> dict:
    source, given = saes.a, saes.b
    own = measure(source, sites.own_stream_a())
    mapped = {name: transferred(source, maps) for name, maps in sites.maps.items()}
    found = {TRANSFERRED: mapped.pop(TRANSFERRED)}
    needed = memory_to_refit(source)
    if needed <= sites.settings.memory and own.l0 > 0:
        with sites.clock.stage("refits"):
            counts = firings(source, sites.paired_stream_a("fit"))

            def refitted_as_often(one: Dictionary) -> Dictionary:
                """With thresholds at which features fire as often as A's at the same bytes, and a decoder behind them."""
                room = sites.settings.memory // 2
                return _decoder_refitted(sites, firing_at(one, counts, lambda: sites.paired_stream_b("fit"), room))

            found[REFITTED] = _decoder_refitted(sites, found[TRANSFERRED])
            found[WHOLLY_REFITTED] = refitted_as_often(_encoder_refitted(sites, source))
            for name in (PROCRUSTES, RANDOM):
                mapped[f"{name}, refitted"] = refitted_as_often(mapped[name])
    if given is not None:
        found[GIVEN] = given
    with sites.clock.stage("native"):
        found[NATIVE] = _native(sites, source, measure(source, sites.paired_stream_a("sweep")))
    with sites.clock.stage("matching"):
        partners = _partners(sites, source, found[NATIVE])
        found[MATCHED] = without_features(found[NATIVE], partners[partners >= 0].tolist())
    found |= mapped
    ours = [name for name in (TRANSFERRED, REFITTED, WHOLLY_REFITTED) if name in found]
    choice = {name: measure(found[name], sites.own_stream_b("sweep")).fvu for name in ours}
    chosen = min(choice, key=lambda name: choice[name])
    with sites.clock.stage("evaluation"):
        report = {"chosen": chosen, "sae_notes": saes.notes, **_scored(sites, source, own, found, partners, chosen)}
    if needed > sites.settings.memory:
        report["memory_to_refit"] = needed
    provenance = {
        "transferred_from": sites.a.name,
        "model": sites.b.name,
        "site": f"resid_pre.{sites.settings.layer_b}",
    }
    save(from_dictionary(found[chosen]), output / "sae", provenance, place_of(provenance["model"], provenance["site"]))
    return report


def _decoder_refitted(sites: Sites, carried: Dictionary) -> Dictionary:
    return refitted(carried, sites.own_stream_b("fit"), sites.own_stream_b("sweep"))


def _encoder_refitted(sites: Sites, source: Dictionary) -> Dictionary:
    """An encoder that predicts A's codes from B's stream, behind which A's decoder still is to be replaced."""
    fit, held_out = (
        codes_and_streams(source, sites.paired_stream_a(split), sites.paired_stream_b(split))
        for split in ("fit", "sweep")
    )
    return with_encoder(transferred(source, sites.maps[TRANSFERRED]), fit, held_out)


def _native(sites: Sites, source: Dictionary, quality: Quality) -> Dictionary:
    """An SAE trained on B's fit tokens, with the size of `source` and its number of active features."""
    fit, settings = sites.own_b["fit"], sites.settings
    batch = batch_size_for(fit.tokens)
    config = SAEConfig(
        features=max(len(source.encoder_bias), fit.width_b), k=max(1, round(quality.l0)), batch_size=batch,
        steps=steps_for(fit.tokens, settings.sae_passes, batch), seed=settings.seed,
    )  # fmt: skip

    def batches(start: int) -> Iterator[dict[str, torch.Tensor]]:
        return ({"b": y} for _, y in fit.batches(batch, seed=config.seed, group=4, start=start))

    def told(step: int, steps: int, losses: dict) -> None:
        if sites.progress:
            sites.progress("native SAE (steps)", step, steps)

    return to_dictionary(
        train_sites({"b": config}, {"b": fit.width_b}, batches, device=sites.b.device, progress=told)["b"]
    )


def _partners(sites: Sites, source: Dictionary, native: Dictionary) -> Int64[np.ndarray, " features"]:
    """The feature of `native` matched to each of A's; −1 without one whose correlation is above its null's."""
    fit, settings = sites.paired["fit"], sites.settings
    chunk = chunk_tokens(settings, source, native)
    codes = code_stream(fit, source, native, chunk=chunk, folder=sites.scratch / "codes", progress=sites.progress)
    budget = settings.memory // 4
    pairs = assigned(codes, seed=settings.seed, budget_bytes=budget, progress=sites.progress).pairs
    partners = np.full(len(source.encoder_bias), -1)
    real = pairs.scores > pairs.null_scores
    partners[pairs.rows[real]] = pairs.cols[real]
    return partners


def _scored(
    sites: Sites,
    source: Dictionary,
    own: Quality,
    found: dict[str, Dictionary],
    partners: Int64[np.ndarray, " features"],
    chosen: str,
) -> dict:
    on_a, on_b = sites.side_a.stage, sites.side_b.stage
    of_a = {"a": on_a.whole(sites.a.net), "a with its SAE": on_a.spliced_a(source)}
    of_b = {"b": on_b.whole(sites.b.net), **{name: on_b.spliced_b(one) for name, one in found.items()}}
    scores = sites.side_a.scores(of_a, sites.progress) | sites.side_b.scores(of_b, sites.progress)
    ours = top_tokens(source, sites.paired_stream_a("report"))
    results = []
    for name in scores:
        row = (sites.side_a if name in of_a else sites.side_b).row(name, scores[name])
        if name == "a with its SAE":
            row |= {"fvu": own.fvu, "l0": own.l0, "dead": own.dead}
        elif name in found:
            quality = measure(found[name], sites.own_stream_b("report"))
            row |= {"fvu": quality.fvu, "l0": quality.l0, "dead": quality.dead}
            if name != GIVEN:  # whose features were matched with none of A's
                theirs = top_tokens(found[name], sites.paired_stream_b("report"))
                row["agree"] = agreement(ours, theirs, partners if name in (NATIVE, MATCHED) else None)
        results.append(row)
    differences = []
    for name in found:
        if name != chosen:
            found_here = {"name": chosen, "minus": name, **scores[chosen].difference(scores[name])}
            differences.append(sites.side_b.in_bits(found_here))
    return {
        "kind": "sae",
        "features": len(source.encoder_bias),
        "matched": int((partners >= 0).sum()),
        "documents": counted(scores["b"]),
        "results": results,
        "differences": differences,
    }
