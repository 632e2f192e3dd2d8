"""`stitch transfer probe`: a linear probe of A rewritten for B, beside one trained on B and maps that know less."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.activations.observe import residuals
from stitch.config import Settings
from stitch.errors import UsageError
from stitch.files.store import Store
from stitch.jobs.transfer import Loaded, Sites, transfer
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.labels import UNLABELLED, LabelledText, read_labelled
from stitch.transfers.maps import TRANSFERRED
from stitch.transfers.probes import Probe, accuracy, predicted, trained
from stitch.transfers.vectors import carried_probe, read_probe, write

FILE = "probe.safetensors"


@dataclass(frozen=True)
class Examples:
    """Labelled tokens with the streams of both models at their sites, and the document of each."""

    x: Float[Tensor, "tokens d_a"]
    y: Float[Tensor, "tokens d_b"]
    truth: Int64[Tensor, " tokens"]
    document: Int64[Tensor, " tokens"]


def transfer_probe(
    settings: Settings,
    file: Path,
    out: Path | None = None,
    *,
    labels: Path | None = None,
    overwrite: bool = False,
    store: Store | None = None,
    progress: Progress | None = None,
) -> tuple[dict, Path]:
    """Rewrites the probe `file` of A's site for B's, and writes it to `out`/probe.safetensors. Returns report and folder.

    Without `labels` the truth is what the probe predicts on A, on held-out text. With them, half of their texts train a probe
    on A, one on B, and one on B with a hundredth of the labels; the other half are scored on. Rows: the probe on A; carried to
    B; through a Procrustes map, a random one, and as it is; and those trained. Accuracies are balanced: every class weighs as
    much.
    Raises: UsageError when the probe, the labels or the request do not fit.
    """

    def read(loaded: Loaded) -> Probe:
        if labels is not None:
            read_labelled(labels, loaded.a.tokenizer, loaded.a.longest)
        return read_probe(file, loaded.a.width)

    def make(sites: Sites, probe: Probe, output: Path) -> dict:
        carried = {name: carried_probe(*probe, maps) for name, maps in sites.maps.items()}
        with sites.clock.stage("evaluation"):
            report = _scored_by_a(sites, probe, carried) if labels is None else _scored(sites, probe, carried, labels)
        weight, bias = carried[TRANSFERRED]
        write({"weight": weight, "bias": bias}, output / FILE)
        return {"kind": "probe", "chosen": TRANSFERRED, **report}

    request = {"file": str(file), "labels": None if labels is None else str(labels)}
    return transfer("probe", settings, out, read, make, request, overwrite=overwrite, store=store, progress=progress)


def classes_of(probe: Probe) -> int:
    return max(2, len(probe[0]))


def _scored_by_a(sites: Sites, probe: Probe, carried: dict[str, Probe]) -> dict:
    """Agreement with the probe on A, on the report split."""
    held = sites.paired["report"]
    chunks = [(x.float(), y.float()) for x, y, _ in held.chunks()]
    x, y = (torch.cat(part) for part in zip(*chunks, strict=True))
    truth = predicted(probe, x)
    document = held.a.windows.document[held.keep].long()
    rows = {"a": predicted(probe, x), **{name: predicted(one, y) for name, one in carried.items()}}
    return _report(rows, Examples(x, y, truth, document), classes_of(probe), "what it predicts on A")


def _scored(sites: Sites, probe: Probe, carried: dict[str, Probe], labels: Path) -> dict:
    texts = read_labelled(labels, sites.a.tokenizer, sites.settings.context)
    fit, held = (_examples(sites, texts[start::2]) for start in (0, 1))
    if not len(fit.truth) or not len(held.truth):
        raise UsageError(f"labels must stand in two texts or more, half of them to train on; {labels} has too few.")
    classes = max(classes_of(probe), int(max(fit.truth.max(), held.truth.max())) + 1)
    rows = {"a": predicted(probe, held.x), **{name: predicted(one, held.y) for name, one in carried.items()}}
    rows["reference:trained on a"] = predicted(trained(fit.x, fit.truth, classes), held.x)
    rows["reference:native"] = predicted(trained(fit.y, fit.truth, classes), held.y)
    few = torch.randperm(len(fit.truth), generator=torch.Generator().manual_seed(sites.settings.seed))[
        : -(-len(fit.truth) // 100)
    ]
    rows["reference:native, 1 % of the labels"] = predicted(trained(fit.y[few], fit.truth[few], classes), held.y)
    return {"trained_on": len(fit.truth), **_report(rows, held, classes, "its label")}


def _examples(sites: Sites, texts: list[LabelledText]) -> Examples:
    """Every labelled token of `texts`, each text read by both models on its own."""
    parts = []
    for number, text in enumerate(texts):
        chosen = text.classes != UNLABELLED
        if chosen.any():
            x, y = (_stream(model, text.ids, site)[chosen] for model, site in
                    ((sites.a, sites.settings.layer), (sites.b, sites.settings.layer_b)))  # fmt: skip
            parts.append((x, y, text.classes[chosen], torch.full((int(chosen.sum()),), number)))
        if sites.progress:
            sites.progress("labelled texts", number + 1, len(texts))
    if not parts:
        empty = torch.zeros(0, dtype=torch.long)
        return Examples(torch.zeros(0, sites.a.width), torch.zeros(0, sites.b.width), empty, empty)
    return Examples(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.no_grad()
def _stream(model: Model, ids: Int64[Tensor, " tokens"], site: int) -> Float[Tensor, "tokens d"]:
    return residuals(model, ids[None].to(model.device), [site])[site][0].float().cpu()


def _report(rows: dict[str, Tensor], held: Examples, classes: int, truth: str) -> dict:
    shares = torch.bincount(held.truth, minlength=classes) / len(held.truth)
    results = [{"name": name, **accuracy(found, held.truth, held.document, classes)} for name, found in rows.items()]
    documents = len(held.document.unique())
    return {
        "truth": truth, "classes": classes, "shares": shares.tolist(), "scored_tokens": len(held.truth),
        "scored_documents": documents, "chance": 1 / int((shares > 0).sum()), "results": results,
    }  # fmt: skip
