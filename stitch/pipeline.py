"""The main job: each stage once, in order, resumable. Reads as a table of contents; the stages live in their own files."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import torch

from sae.config import SAEConfig
from stitch.activations import Activations, Paired, Progress, harvest, pair
from stitch.checkpoint import write_checkpoint
from stitch.composite import check_target, compose, stitch_config
from stitch.config import LEAST_TOKENS, Settings, same_relative_depth, torch_device, torch_dtype
from stitch.costs import Costs
from stitch.errors import StitchError, UsageError
from stitch.evaluate import Scores, evaluate
from stitch.explain import explain
from stitch.features import SAEs, code_stream, steps_for, train
from stitch.layers import check_choosable, choose_layer
from stitch.match import Matching, match
from stitch.models import Model, load
from stitch.reference import trained
from stitch.report import NULL_OF, model_card, to_json
from stitch.rows import Stage, against_line, differences, line, ranked
from stitch.sources import Source, resolve
from stitch.surgery import COMPARED, Bridge, bridged, described, fit_bridges, sites_of, why_not_foldable
from stitch.text import Split, read, select
from stitch.tokens import Windows, pack, require_same_ids
from stitch.translate import Fitted, translate
from stitch.translation.available import available, earlier_sites
from stitch.translation.inputs import Stream
from stitch.translation.types import Translation
from stitch.workspace import check_output, finished, workspace

SPLITS: tuple[Split, ...] = ("fit", "sweep", "report")
LONGEST_CONTEXT = 1024  # default; longer windows only on request
HELD_OUT = 65_536  # tokens of each held-out split, at most: enough for intervals of hundredths of a nat
CHOICE = (
    16_384  # tokens of the sweep split that the translation is chosen on: all see the same, so differences are paired
)
TIE = 0.01  # nats below which translations count as equal when one is chosen: the cheapest wins
FEATURES_PER_WIDTH = 8  # of an SAE, by default
CHARACTERS_PER_TOKEN = 8  # generous, so that a streamed dataset is read far enough


def stitch(
    settings: Settings,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    loaded: tuple[Model, Model, dict[str, Source]] | None = None,
) -> tuple[dict, Path]:
    """Stitches two models as `settings` ask, writes the composite to `out`, returns its report and folder.

    `loaded` are the models and where they are from, what `load_pair` would give; the settings' names then only name them.
    Raises UsageError when the request cannot be met, StitchError (SAEError, MatchError) when the work fails; either way
    nothing is left on disk. After an interrupt the same call with `resume` goes on and ends with the same bytes.
    """
    if settings.native:
        from stitch.shorten import shorten

        return shorten(settings, out, overwrite=overwrite, resume=resume, progress=progress)
    seconds: dict[str, float] = {}
    if out is not None and not resume:
        check_output(out, overwrite)  # before anything takes time
    with timed(seconds, "load"):
        a, b, sources = loaded or load_pair(settings, progress)
        settings = complete(settings, a, b)
        request = settings.to_dict()
    if out is None:
        out = Path(f"{short_name(a.name)}-{settings.layer}-{short_name(b.name)}-{settings.layer_b}")
    if resume and (report := finished(out, request)) is not None:
        return report, out
    check_output(out, overwrite)

    with workspace(out, request, resume) as work:
        with timed(seconds, "text"):
            windows = read_windows(settings, b, progress)
        layer_choice = None
        if settings.layer_b == "auto":
            with timed(seconds, "layer"):
                layer_choice = choose_layer(
                    a, b, settings.layer, windows, work / "layer", memory=settings.memory, progress=progress
                )
                settings = dataclasses.replace(settings, layer_b=layer_choice["b"])
        assert isinstance(settings.layer_b, int)
        sites = settings.layer, settings.layer_b
        with timed(seconds, "activations"):
            paired: dict[Split, Paired] = {}
            for split in SPLITS:
                paired[split] = harvest_pair(settings, a, b, windows[split], work / split, progress)
        with timed(seconds, "saes"):
            saes = train_pair(settings, a, b, paired, work, sources, progress)
        with timed(seconds, "matching"):
            matching = match_pair(settings, paired["fit"], saes, work, progress)
            codes = codes_of_pair(settings, paired["fit"], saes, work)
            explained = explain(paired["fit"], codes(), matching.graph, matching.pairs, b.tokenizer)
        with timed(seconds, "translations"):
            fitted = translate_pair(settings, a, b, paired, saes, matching, progress)
            bridges = bridge_pair(settings, a, b, paired, progress)
        with timed(seconds, "choice"):
            chosen = choose(settings, fitted, stage(settings, a, b, paired["sweep"]), progress)
        with timed(seconds, "references"):
            references = train_references(settings, a, b, paired["fit"], fitted, progress)
        config = stitch_config(a.config, b.config, *sites, fitted.translations[chosen], b.bos)
        with timed(seconds, "evaluation"):
            composite = compose(a, b, *sites, fitted.translations[chosen])
            report_stage = stage(settings, a, b, paired["report"])
            extra = {"references": references, "bridges": bridges, "progress": progress}
            scores = evaluate_all(report_stage, composite, fitted, saes, **extra)

        report = assemble(settings, a, b, sources, windows, saes, matching, fitted, bridges, chosen, scores)
        report["provenance"]["settings"] = request
        if layer_choice is not None:
            report["layer_choice"] = layer_choice
        with timed(seconds, "writing"):
            files = {"report.json": to_json(report), "README.md": model_card(report), **explained}
            folder = work / "composite"
            shutil.rmtree(folder, ignore_errors=True)
            write_checkpoint(
                folder,
                config,
                a.folder,
                b.folder,
                fitted.translations[chosen],
                dtype=a.dtype,
                extra_files=files,
            )
            for side in "ab":
                if (work / f"sae-{side}").exists():
                    shutil.copytree(work / f"sae-{side}", folder / f"sae-{side}", copy_function=shutil.copyfile)
            report["seconds"] = {name: round(value, 2) for name, value in seconds.items()}
            (folder / "report.json").write_bytes(to_json(report))
            if out.exists():
                os.replace(out, work / "replaced")
            os.replace(folder, out)
    return report, out


def load_pair(settings: Settings, progress: Progress | None = None) -> tuple[Model, Model, dict[str, Source]]:
    """Both models, loaded once if they are the same.

    Raises UsageError when they do not read the same token ids, and where the second is a composite.
    """
    dtype, device = torch_dtype(settings.dtype), torch_device(settings.device)
    sources = {
        side: resolve(name, progress=progress) for side, name in (("a", settings.model_a), ("b", settings.model_b))
    }
    arguments = {"dtype": dtype, "device": device, "trust_remote_code": settings.trust_remote_code}
    a = load(sources["a"].folder, name=sources["a"].name, **arguments)
    same = sources["a"].folder.resolve() == sources["b"].folder.resolve()
    b = a if same else load(sources["b"].folder, name=sources["b"].name, **arguments)
    check_target(b.config, b.name)
    require_same_ids(a.tokenizer, b.tokenizer, a.name, b.name)
    return a, b, sources


def complete(settings: Settings, a: Model, b: Model) -> Settings:
    """The settings with every default that depends on the models filled in, checked against them."""
    a.check_site(settings.layer)
    layer_b = (
        settings.layer_b if settings.layer_b is not None else same_relative_depth(settings.layer, a.depth, b.depth)
    )
    if isinstance(layer_b, int):
        b.check_site(layer_b)
    else:
        check_choosable(settings.layer, b)
    longest = min(a.longest, b.longest)
    context = settings.context if settings.context is not None else min(longest, LONGEST_CONTEXT)
    if context > longest:
        raise UsageError(f"--context must be at most {longest}, what both models take; got {context}.")
    widest = max(a.width, b.width)
    if settings.features is not None:
        if settings.features < widest:
            raise UsageError(f"--features must be at least the width, {widest}; got {settings.features}: raise it.")
        # SAE training keeps weights, gradients and two Adam moments of both halves of both SAEs, in float32.
        needed = 4 * 4 * 2 * settings.features * (a.width + b.width)
        if needed > settings.memory:
            raise UsageError(
                f"--features {settings.features:,} needs {needed / 2**30:.1f} GiB to train; --memory is "
                f"{settings.memory / 2**30:.1f} GiB: lower the one or raise the other."
            )
    check_determined(settings.features or FEATURES_PER_WIDTH * widest, settings.tokens, "--features")
    return dataclasses.replace(settings, layer_b=layer_b, context=context)


def check_determined(features: int, tokens: int, what: str) -> None:
    """Raises UsageError where `tokens` cannot determine a map from so many features: least squares wants two for each."""
    if tokens < 2 * features:
        raise UsageError(
            f"{what} must be at most half the number of tokens to fit on, {tokens:,}; got {features:,}: "
            "raise --tokens or take fewer features."
        )


def read_windows(
    settings: Settings, model: Model, progress: Progress | None = None, held_out: int = HELD_OUT
) -> dict[Split, Windows]:
    """Packed windows of the three splits. Raises StitchError when the text is too small to fill them."""
    assert settings.context is not None
    held = settings.held_out or max(8 * settings.context, min(settings.tokens // 10, held_out))
    limits: dict[Split, int] = {"fit": settings.tokens, "sweep": held, "report": held}
    wanted = max(
        settings.tokens * 10 // 9, held * 20
    )  # nine documents in ten are of the fit split, one in twenty of each other
    documents = list(read(settings.text, characters=CHARACTERS_PER_TOKEN * wanted))
    windows = {}
    for number, split in enumerate(SPLITS):
        windows[split] = pack(select(documents, split), model.tokenizer, settings.context, limits[split])
        if progress:
            progress("text", number + 1, len(SPLITS))
    least = {"fit": LEAST_TOKENS, "sweep": settings.context, "report": settings.context}
    for split, found in windows.items():
        if found.tokens < least[split]:
            raise StitchError(
                f"--text must fill at least {least[split]:,} tokens of the {split} split; {settings.text} has "
                f"{len(documents):,} documents that give {found.tokens:,}: use more or longer text, or a shorter --context."
            )
    return windows


def harvest_pair(
    settings: Settings, a: Model, b: Model, windows: Windows, folder: Path, progress: Progress | None = None
) -> Paired:
    """Activations of both sites on disk; one pass for both when A is B."""
    assert isinstance(settings.layer_b, int)
    early = [*earlier_sites(settings.layer), settings.layer]
    sites = sorted({*early, settings.layer_b, *bridging_sites(settings, a, b)}) if a is b else early
    width = sum(map(a.width_at, sites)) + (0 if a is b else b.width)
    per_window = windows.context * width * torch.finfo(a.dtype).bits // 8
    per_shard = max(1, min(256, settings.memory // 32 // per_window))
    batch = max(1, min(16, per_shard, settings.memory // 8 // (per_window * 16)))

    def one(model: Model, sites: list[int], name: str) -> Activations:
        return harvest(model, windows, sites, folder / name, per_shard=per_shard, batch=batch, progress=progress)

    if a is b:
        both = one(a, sites, "ab")
        return pair(both, both, settings.layer, settings.layer_b)
    return pair(one(a, sites, "a"), one(b, [settings.layer_b], "b"), settings.layer, settings.layer_b)


def bridging_sites(settings: Settings, a: Model, b: Model) -> list[int]:
    """Sites that `bridge_pair` needs; none where it has nothing to do."""
    assert isinstance(settings.layer_b, int)
    sites = settings.layer, settings.layer_b
    return sites_of(a, *sites) if a is b and why_not_foldable(a, *sites, settings.memory) is None else []


def bridge_pair(
    settings: Settings, a: Model, b: Model, paired: dict[Split, Paired], progress: Progress | None = None
) -> dict[str, Bridge]:
    """Where A is B and blocks are left out: the bridges that fold into A's own weights. Else none."""
    assert isinstance(settings.layer_b, int)
    if not bridging_sites(settings, a, b):
        return {}
    streams: dict[Split, Activations] = {split: paired[split].a for split in ("fit", "sweep")}
    return fit_bridges(
        a, settings.layer, settings.layer_b, streams, memory=settings.memory, seed=settings.seed, progress=progress
    )


def sae_configs(settings: Settings, a: Model, b: Model, fit: Paired) -> dict[str, SAEConfig]:
    """What both SAEs should be."""
    batch = 1024 if fit.tokens >= 64 * 1024 else 256

    def config(model: Model) -> SAEConfig:
        return SAEConfig(
            architecture=settings.architecture,
            features=settings.features or FEATURES_PER_WIDTH * model.width,
            k=settings.k,
            steps=steps_for(fit.tokens, settings.sae_passes, batch),
            batch_size=batch,
            seed=settings.seed,
        )

    return {"a": config(a), "b": config(b)}


def train_pair(
    settings: Settings,
    a: Model,
    b: Model,
    paired: dict[Split, Paired],
    work: Path,
    sources: dict[str, Source],
    progress: Progress | None = None,
) -> SAEs:
    """The SAEs of both sites: loaded where the settings name one, trained together in `work` where they do not."""
    configs = sae_configs(settings, a, b, paired["fit"])
    sites = {"a": settings.layer, "b": settings.layer_b}
    provenance = {
        side: {
            "model": sources[side].name,
            "revision": sources[side].revision,
            "site": f"resid_pre.{sites[side]}",
            **dataclasses.asdict(configs[side]),
        }
        for side in configs
    }
    saes = train(
        paired["fit"],
        paired["sweep"],
        configs,
        {side: work / f"sae-{side}" for side in configs},
        {"a": settings.sae_a, "b": settings.sae_b},
        snapshots=work / "sae-snapshots",
        group=4,
        provenance=provenance,
        device=a.device,
        progress=progress,
    )
    check_determined(saes.a.encoder.shape[1], paired["fit"].tokens, "the SAE of A")
    return saes


def chunk_tokens(settings: Settings, saes: SAEs) -> int:
    """Tokens encoded at a time: dense codes of both SAEs and their copies within a sixteenth of the memory.

    More than 2,048 only makes arrays so large that the allocator returns them to the system every time.
    """
    features = saes.a.encoder.shape[1] + saes.b.encoder.shape[1]
    return max(256, min(2048, settings.memory // 16 // (12 * features)))


def match_pair(settings: Settings, fit: Paired, saes: SAEs, work: Path, progress: Progress | None = None) -> Matching:
    """The matching of both SAEs' features over the fit tokens, whose codes are kept in `work`."""
    stream = codes_of_pair(settings, fit, saes, work, progress)
    return match(stream, settings.matching, seed=settings.seed, budget_bytes=settings.memory // 4)


def codes_of_pair(settings: Settings, fit: Paired, saes: SAEs, work: Path, progress: Progress | None = None):
    """Both SAEs' codes of the fit tokens, a stream that can be started again."""
    chunk = chunk_tokens(settings, saes)
    return code_stream(fit, saes.a, saes.b, chunk=chunk, folder=work / "codes", progress=progress)


def translate_pair(
    settings: Settings,
    a: Model,
    b: Model,
    paired: dict[Split, Paired],
    saes: SAEs,
    matching: Matching,
    progress: Progress | None = None,
) -> Fitted:
    """Every translation and null of the pair, fitted on the fit split, λ chosen on the sweep split."""
    fit = paired["fit"]
    # Before its last seam a composite's stream may be of another width, and routes deal their matrices out evenly among streams.
    inputs = {
        name: found
        for name, found in available(a, b, fit, saes, settings.seed).items()
        if not isinstance(found, Stream) or a.width_at(found.site) == fit.width_a
    }
    return translate(
        fit, paired["sweep"], inputs=inputs, a=saes.a, b=saes.b, matching=matching,
        first=fit.b.read(0, fit.site_b)[0, 0].float(), vocabulary=b.config.vocab_size, ngrams=settings.ngrams,
        routes=settings.routes, seed=settings.seed, chunk=chunk_tokens(settings, saes), memory=settings.memory, progress=progress,
    )  # fmt: skip


def stage(settings: Settings, a: Model, b: Model, paired: Paired) -> Stage:
    """Both models set up to score rows on one split."""
    assert isinstance(settings.layer_b, int)
    return Stage(a, b, settings.layer, settings.layer_b, paired, settings.memory)


def choose(settings: Settings, fitted: Fitted, on: Stage, progress: Progress | None) -> str:
    """Row name of the translation to write: the one asked for, or the best on the sweep split (the cheapest of equals)."""
    if settings.translation != "auto":
        return f"translation:{settings.translation}"
    scores = evaluate(
        {name: on.translated(translation) for name, translation in fitted.translations.items()},
        on.windows.first(CHOICE), vocabulary=on.vocabulary, memory=settings.memory, progress=progress,
        task="choice (tokens)",
    )  # fmt: skip
    best = min(found.ce for found in scores.values())
    tied = [name for name, found in scores.items() if found.ce - best <= TIE]

    def price(name: str) -> tuple[int, int, float]:
        translation = fitted.translations[name]
        return translation.multiply_adds, translation.parameters, scores[name].ce

    return min(tied, key=price)


def train_references(
    settings: Settings, a: Model, b: Model, fit: Paired, fitted: Fitted, progress: Progress | None = None
) -> dict[str, Translation]:
    """What gradient descent on cross-entropy makes of the affine map in `reference_steps` steps; none without steps."""
    if not settings.reference_steps:
        return {}
    start = fitted.translations["translation:affine"]
    arguments = {"steps": settings.reference_steps, "seed": settings.seed, "progress": progress}
    return {"reference:affine-trained": trained(start, a, b, fit, **arguments)}


def evaluate_all(
    on: Stage,
    composite: torch.nn.Module,
    fitted: Fitted,
    saes: SAEs,
    *,
    references: Mapping[str, Translation] = MappingProxyType({}),
    bridges: Mapping[str, Bridge] = MappingProxyType({}),
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Every row of the report on the same windows: models, translations, floors, ceilings, nulls."""
    rows = {
        "a": on.whole(on.a.net),
        "b": on.whole(on.b.net),
        "composite": on.whole(composite),
        **{name: on.translated(translation) for name, translation in fitted.translations.items()},
        **{name: on.whole(bridged(on.a, on.site_a, on.site_b, bridge).net) for name, bridge in bridges.items()},
        "floor:mean": on.constant(fitted.mean),
        "floor:zero": on.constant(torch.zeros_like(fitted.mean)),
        "floor:wrong-text": on.wrong_text(),
        "ceiling:sae-b": on.spliced_b(saes.b),
        "sae-a": on.spliced_a(saes.a),
        **{name: on.translated(translation) for name, translation in references.items()},
        **{name: on.translated(translation) for name, translation in fitted.nulls.items()},
        "null:shuffled-matching": on.translated(*fitted.shuffles),
    }
    return evaluate(
        rows, on.windows, vocabulary=on.vocabulary, reference=rows["b"], memory=on.memory, progress=progress
    )


def assemble(
    settings: Settings,
    a: Model,
    b: Model,
    sources: dict[str, Source],
    windows: dict[Split, Windows],
    saes: SAEs,
    matching: Matching,
    fitted: Fitted,
    bridges: dict[str, Bridge],
    chosen: str,
    scores: dict[str, Scores],
) -> dict:
    """report.json, timings aside."""
    assert isinstance(settings.layer_b, int) and settings.context is not None
    sites = {"a": settings.layer, "b": settings.layer_b}
    costs, translations = (
        Costs(a, b, settings.context),
        {"composite": fitted.translations[chosen], **fitted.translations},
    )
    results = [scores[name].row(name) for name in ranked(scores) if name != "sae-a"]
    for row in results:
        if (found := translations.get(row["name"]) or fitted.nulls.get(row["name"])) is not None:
            row |= {"multiply_adds": found.multiply_adds, "parameters": found.parameters}
        if (
            found := translations.get(row["name"])
        ) is not None:  # every translation has its own line: costlier ones a lower
            row["above_line"] = row["ce"] - line(costs, sites["a"], sites["b"], found, scores)["ce"]
    yardstick = line(costs, sites["a"], sites["b"], fitted.translations[chosen], scores)
    results.insert(3, yardstick)
    dictionaries = [
        {
            "site": f"{side}: resid_pre.{sites[side]}",
            "features": dictionary.encoder.shape[1],
            "architecture": config.architecture if given is None else given,
            **dataclasses.asdict(quality),
            "spliced_ce": scores[row].ce,
        }
        for side, dictionary, quality, config, given, row in (
            ("a", saes.a, saes.quality_a, saes.config_a, settings.sae_a, "sae-a"),
            ("b", saes.b, saes.quality_b, saes.config_b, settings.sae_b, "ceiling:sae-b"),
        )
    ]
    return {
        "models": {"a": a.name, "b": b.name},
        "site": sites,
        "tokens": {split: found.tokens for split, found in windows.items()},
        "saes": dictionaries,
        "matching": {
            "method": settings.matching,
            "pairs": len(matching.pairs),
            "mean_score": float(matching.pairs.scores.mean()) if len(matching.pairs) else 0.0,
            "null_mean_score": float(matching.pairs.null_scores.mean()) if len(matching.pairs) else 0.0,
            "above_0.7": float((matching.pairs.scores > 0.7).mean()) if len(matching.pairs) else 0.0,
        },
        "ridge": {
            **{
                name: {
                    "lambda": f.strength,
                    "lambda_of_lift": f.strength_apart,
                    "unexplained": f.unexplained,
                    "shares": fitted.shares[name],
                }
                for name, f in fitted.ridges.items()
            },
            **described(bridges),
        },
        "similarity": fitted.similarity,
        "results": results,
        "differences": [
            against_line(scores, yardstick["share"]),
            *differences(scores, chosen, {**NULL_OF, **COMPARED}),
        ],
        "chosen": chosen.partition(":")[2],
        "seconds": {},
        "provenance": provenance(settings, a, b, sources),
    }


def provenance(settings: Settings, a: Model, b: Model, sources: dict[str, Source]) -> dict:
    """What made the numbers: settings, revisions, tokenizer, attention kernels, versions."""
    vocabulary = json.dumps(b.tokenizer.get_vocab(), sort_keys=True).encode()
    return {
        "settings": settings.to_dict(),
        "models": {
            side: {
                "name": sources[side].name,
                "kind": sources[side].kind,
                "revision": sources[side].revision,
                "attention": model.config._attn_implementation,
            }
            for side, model in (("a", a), ("b", b))
        },
        "tokenizer_sha256": hashlib.sha256(vocabulary).hexdigest(),
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("stitch-lm", "torch", "transformers", "sae-lens", "scipy", "safetensors")
            },
        },
        "device": str(a.device),
    }


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def short_name(name: str) -> str:
    return name.rstrip("/").replace(":", "-").rpartition("/")[2]
