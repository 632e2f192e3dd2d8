"""`stitch transfer probe`: a linear probe of A rewritten for B, beside one trained on B and maps that know less."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.activations.observe import residuals
from stitch.config import Settings
from stitch.errors import UsageError
from stitch.evaluation.intervals import effective_number
from stitch.files.lent import lent_file
from stitch.files.store import Store
from stitch.jobs.transfer import Loaded, transfer
from stitch.jobs.transfer_sites import Sites
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.labels import UNLABELLED, LabelledText, read_labelled
from stitch.transfers.maps import TRANSFERRED
from stitch.transfers.probes import Probe, accuracy, predicted, trained
from stitch.transfers.vectors import carried_probe, read_probe, write

FILE = "probe.safetensors"


@dataclass(frozen=True)
class Examples:
    """Labelled tokens with the stream of a model at its site, and the document of each."""

    stream: Float[Tensor, "tokens d"]
    truth: Int64[Tensor, " tokens"]
    document: Int64[Tensor, " tokens"]

    def predicted(self, probe: Probe) -> "Predicted":
        return Predicted(predicted(probe, self.stream), self)


@dataclass(frozen=True)
class Predicted:
    """The class that a probe gives to each of some examples."""

    classes: Int64[Tensor, " tokens"]
    examples: Examples


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
    much. Where the models read different tokens, labels are those of each model's own, and predictions are compared where tokens
    of both end.
    Raises: UsageError when the probe, the labels or the request do not fit.
    """

    def read(loaded: Loaded) -> Probe:
        if labels is not None:
            for model in (loaded.a, loaded.b):
                read_labelled(lent_file(labels), model.tokenizer, model.longest)
        return read_probe(lent_file(file), loaded.a.width)

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
    on_a, on_b = Examples(x, truth, document), Examples(y, truth, document)
    rows = {"a": on_a.predicted(probe), **{name: on_b.predicted(one) for name, one in carried.items()}}
    return _report(rows, on_b, classes_of(probe), "what it predicts on A")


def _scored(sites: Sites, probe: Probe, carried: dict[str, Probe], labels: Path) -> dict:
    fit_a, held_a = _examples(sites, sites.a, sites.settings.layer, labels)
    fit_b, held_b = _examples(sites, sites.b, sites.settings.layer_b, labels)
    if not all(len(some.truth) for some in (fit_a, held_a, fit_b, held_b)):
        raise UsageError(f"labels must stand in two texts or more, half of them to train on; {labels} has too few.")
    highest = max(int(some.truth.max()) for some in (fit_a, held_a, fit_b, held_b))
    classes = max(classes_of(probe), highest + 1)
    rows = {"a": held_a.predicted(probe), **{name: held_b.predicted(one) for name, one in carried.items()}}
    rows["reference:trained on a"] = held_a.predicted(trained(fit_a.stream, fit_a.truth, classes))
    rows["reference:native"] = held_b.predicted(trained(fit_b.stream, fit_b.truth, classes))
    few = torch.randperm(len(fit_b.truth), generator=torch.Generator().manual_seed(sites.settings.seed))[
        : -(-len(fit_b.truth) // 100)
    ]
    of_few = trained(fit_b.stream[few], fit_b.truth[few], classes)
    rows["reference:native, 1 % of the labels"] = held_b.predicted(of_few)
    return {"trained_on": len(fit_b.truth), **_report(rows, held_b, classes, "its label")}


def _examples(sites: Sites, model: Model, site: int, labels: Path) -> tuple[Examples, Examples]:
    """Every labelled token of the texts to train on and of those to score on, each text read by the model on its own."""
    texts = read_labelled(lent_file(labels), model.tokenizer, sites.settings.context)
    fit, held = (_read_by(sites, model, site, texts[start::2]) for start in (0, 1))
    return fit, held


def _read_by(sites: Sites, model: Model, site: int, texts: list[LabelledText]) -> Examples:
    parts = []
    for number, text in enumerate(texts):
        chosen = text.classes != UNLABELLED
        if chosen.any():
            stream = _stream(model, text.ids, site)[chosen]
            parts.append((stream, text.classes[chosen], torch.full((int(chosen.sum()),), number)))
        if sites.progress:
            sites.progress(f"labelled texts of {model.name}", number + 1, len(texts))
    if not parts:
        empty = torch.zeros(0, dtype=torch.long)
        return Examples(torch.zeros(0, model.width_at(site)), empty, empty)
    return Examples(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.no_grad()
def _stream(model: Model, ids: Int64[Tensor, " tokens"], site: int) -> Float[Tensor, "tokens d"]:
    return residuals(model, ids[None].to(model.device), [site])[site][0].float().cpu()


def _report(rows: dict[str, Predicted], held: Examples, classes: int, truth: str) -> dict:
    """Every row on its own examples. `held` are those of B."""
    shares = torch.bincount(held.truth, minlength=classes) / len(held.truth)
    results = [
        {"name": name, **accuracy(found.classes, found.examples.truth, found.examples.document, classes)}
        for name, found in rows.items()
    ]
    tokens = held.document.bincount().double()  # of every document
    documents = int((tokens > 0).sum())
    return {
        "truth": truth, "classes": classes, "shares": shares.tolist(), "scored_tokens": len(held.truth),
        "scored_documents": documents, "documents": {"number": documents, "effective": round(effective_number(tokens), 1)},
        "chance": 1 / int((shares > 0).sum()), "results": results,
    }  # fmt: skip
