"""What `stitch transfer` carries between the embedded models, between two layers of SmolLM2, or between models that read other
tokens: an SAE, six probes and steering vectors, in both directions.

    python benchmarks/transfer.py --work build/benchmarks
    stitch join smollm2 smollm2 --layer 14 --layer-b 20 --brief --tokens 20000 --features 2304 --context 128 --out small
    python benchmarks/transfer.py --direction smollm2.14-20 --saes small/sae-a small/sae-b --kinds sae probe vector --texts 100 \
        --context 128 --tokens 20000
    python benchmarks/transfer.py --direction smollm2.20-14 --saes small/sae-b small/sae-a --kinds sae probe vector --texts 100 \
        --context 128 --tokens 20000
    python benchmarks/transfer.py --direction smollm2-gemma3 --direction gemma3-smollm2 --sae-tokens 100000 --texts 100 \
        --context 128 --tokens 10000 --held-out 4096

The SAEs of both sites are trained on a million tokens; the maps are fitted on a hundredth of that. So the row `reference:native`
has B's tokens of the maps alone, and `reference:native, given` a hundred times as many. Where models read different tokens, the
SAEs are trained on --sae-tokens of each model's own tokens, unless --saes names others. Probes are trained on labels that rules
give (see `_labels.py`); steering vectors are differences of the class means of the same labels, at A's site. One JSON line per
transfer and direction. `warm start` lines have the unexplained share of an SAE that is trained on, by training step: from new
weights, from the transferred SAE, and from the same SAE through a random or a Procrustes map; each also by its directions alone.
They and `native` lines need the SAEs that `sae` has left in --work. `native` has the transferred SAE beside ones that are
trained on B with every channel divided by its standard deviation, since one channel may have most of a stream's variance.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from _labels import SETS, write_labels
from _pair import DIRECTIONS, trained_saes
from safetensors.torch import save_file

import sae
import stitch
from sae.config import SAEConfig
from sae.convert import to_dictionary
from sae.metrics import measure
from sae.storage import load
from sae.trainer import new_trainer
from sae.types import Dictionary
from stitch.activations.harvest import harvest
from stitch.activations.observe import residuals
from stitch.activations.paired import without_sinks
from stitch.config import Settings
from stitch.evaluation.documents import counted
from stitch.features.saes import place_of
from stitch.files.job import Clock
from stitch.jobs.pair.models import load_any_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.transfer_sites import read_sites
from stitch.models.loading import load as load_model
from stitch.models.model import Model
from stitch.models.sources import resolve
from stitch.text.documents import read, select
from stitch.text.labels import UNLABELLED, read_labelled
from stitch.text.windows import sample
from stitch.transfers.autoencoders import transferred
from stitch.transfers.maps import PROCRUSTES, RANDOM, Affine, Maps
from stitch.transfers.probes import trained

REAL = {"smollm2.14-20": ("smollm2", "smollm2", 14, 20), "smollm2.20-14": ("smollm2", "smollm2", 20, 14)}
ACROSS = {
    "gpt2-neox": ("demo:gpt2", "demo:neox", 3, 3), "neox-gpt2": ("demo:neox", "demo:gpt2", 3, 3),
    "smollm2-gemma3": ("smollm2", "gemma3", 15, 9), "gemma3-smollm2": ("gemma3", "smollm2", 9, 15),
}  # fmt: skip
FEATURES, SAE_PASSES = 4, 5.0  # per dimension, and over the text, of the SAEs that are trained for the pairs of ACROSS
NATIVE_PASSES = 20.0  # over the fewer tokens of the maps, as `transfer sae` trains its reference
KINDS = ("sae", "native", "warm", "probe", "vector")
STEPS, EVERY = 800, 50  # of the warm start, and between its measurements


def class_streams(model: Model, site: int, file: Path, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The streams of the labelled tokens of every other text, from the first on, and their classes."""
    parts = []
    for text in read_labelled(file, model.tokenizer, context)[::2]:
        chosen = text.classes != UNLABELLED
        with torch.no_grad():
            stream = residuals(model, text.ids[None], [site])[site][0]
        parts.append((stream[chosen].float(), text.classes[chosen]))
    x, classes = zip(*parts, strict=True)
    return torch.cat(x), torch.cat(classes)


def write_probe_and_vectors(x: torch.Tensor, classes: torch.Tensor, folder: Path) -> None:
    count = int(classes.max()) + 1
    weight, bias = trained(x, classes, count)
    save_file({"weight": weight, "bias": bias}, folder / "probe.safetensors")
    means = torch.stack([x[classes == number].mean(0) for number in range(count)])
    save_file({"classes": (means[1:] - means[0]).contiguous()}, folder / "vectors.safetensors")


def site_sae(name: str, layer: int, given: argparse.Namespace) -> Path:
    """An SAE of one site, trained on --sae-tokens of the fit split in the model's own tokens; kept in --work."""
    place = given.work / f"sae-{name.replace(':', '-')}-{layer}-{given.sae_tokens}"
    if place.exists():
        return place
    source = resolve(name)
    model = load_model(source.folder, name=name, dtype=torch.float32)
    made = sae.train(site_streams(model, layer, given), features=FEATURES * model.width, passes=SAE_PASSES)
    site = f"resid_pre.{layer}"
    sae.save(made, place, {"model": source.name, "site": site, "tokens": given.sae_tokens}, place_of(source.name, site))
    return place


def site_streams(model: Model, layer: int, given: argparse.Namespace) -> torch.Tensor:
    """The streams at a site over --sae-tokens of the fit split in the model's own tokens."""
    context = given.context or min(512, model.longest)
    windows = sample(select(read("docs"), "fit"), model.tokenizer, context, given.sae_tokens)
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        streams = harvest(model, windows, [layer], Path(folder))
        return streams.all(layer)[without_sinks(streams, [layer])].float()


def saes_of(direction: str, given: argparse.Namespace) -> tuple[Path, Path]:
    """The SAEs of A's and of B's site."""
    if given.saes:
        return given.saes[0], given.saes[1]
    if direction in ACROSS:
        a_name, b_name, layer, layer_b = ACROSS[direction]
        return site_sae(a_name, layer, given), site_sae(b_name, layer_b, given)
    a_name, b_name, _ = DIRECTIONS[direction]
    saes = trained_saes(0, given.work)
    return saes[a_name], saes[b_name]


def natives(settings: Settings, carried_sae: Path, sae_b: Path, given: argparse.Namespace) -> dict:
    """Cross-entropy of B behind the carried SAE and behind SAEs trained on B, as streams are and with standardised channels."""
    a, b, _ = load_any_pair(settings)
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        sites = read_sites(complete(settings, a, b), a, b, Path(folder), Clock())
        x, y = torch.cat([*sites.own_stream_b("fit")]), site_streams(b, sites.settings.layer_b, given)
        rows = {
            "transferred": to_dictionary(load(carried_sae)),
            "reference:native": to_dictionary(sae.train(x, features=FEATURES * b.width, passes=NATIVE_PASSES)),
            "reference:native, standardised": standardised(x, NATIVE_PASSES),
            "reference:native, given": to_dictionary(load(sae_b)),
            "reference:native, given, standardised": standardised(y, SAE_PASSES),
        }
        side, splice = sites.side_b, sites.side_b.stage.spliced_b
        scores = side.scores({"b": side.stage.whole(b.net), **{name: splice(one) for name, one in rows.items()}}, None)
        streams = torch.cat([*sites.own_stream_b("report")])
        variance = streams.var(0)
        found = []
        for name, one in scores.items():
            row = side.row(name, one)
            if name in rows:
                left = (streams - rows[name](streams)).var(0)
                low, high = scores["transferred"].interval(minus=one)
                row |= {
                    "fvu": float(left.sum() / variance.sum()), "fvu_by_channel": float((left / variance).mean()),
                    "l0": measure(rows[name], [streams]).l0,
                    "ours_minus": {"ce": scores["transferred"].ce - one.ce, "ce_low": low, "ce_high": high},
                }  # fmt: skip
            found.append(row)
    return {
        "largest_channel": float(variance.max() / variance.sum()),
        "documents": counted(scores["b"]),
        "results": found,
    }


def standardised(x: torch.Tensor, passes: float) -> Dictionary:
    """An SAE trained on streams whose channels have a standard deviation of 1, for the streams as they are."""
    scale = x.std(0)
    made = to_dictionary(sae.train(x / scale, features=FEATURES * x.shape[1], passes=passes))
    none = torch.zeros((), dtype=torch.float64).expand(x.shape[1])
    there, back = scale.double().diag(), (1 / scale.double()).diag()
    return transferred(made, Maps(Affine(there, none), Affine(back, none)))


def warm_start(settings: Settings, sae_a: Path, carried_sae: Path, work: Path) -> Iterator[dict]:
    """The unexplained share on held-out tokens by step, from several kinds of first weights, on the same batches.

    `carried_sae` is the transferred form of `sae_a`; nulls are that SAE through a random map and through a Procrustes map.
    """
    a, b, _ = load_any_pair(settings)
    sites = read_sites(complete(settings, a, b), a, b, work, Clock())
    fit = sites.own_b["fit"]
    carried = load(carried_sae)
    x = torch.cat([*sites.own_stream_b("report")])
    k = max(1, round(measure(to_dictionary(carried), [x]).l0))
    config = SAEConfig(features=carried.W_enc.shape[1], k=k, steps=STEPS, batch_size=256)
    mean = torch.cat([*sites.own_stream_b("fit")]).mean(0)
    scale = b.width**0.5 / float(x.norm(dim=1).mean())
    maps = sites.maps
    source = to_dictionary(load(sae_a))
    first = {
        "new": None, "transferred": to_dictionary(carried), "null": transferred(source, maps[RANDOM]),
        "procrustes": transferred(source, maps[PROCRUSTES]),
    }  # fmt: skip
    for start in (*first, *(f"{name}, directions alone" for name in first if name != "new")):
        trainer = new_trainer(config, b.width, "cpu")
        trainer.activation_scaler.scaling_factor = scale
        _start(trainer.sae, first[start.partition(",")[0]], start.endswith("alone"), mean, scale)
        batches = (y for _, y in fit.batches(256, seed=0, group=4))
        for step in range(STEPS + 1):
            if step % EVERY == 0:
                yield {"start": start, "step": step, "k": k, "fvu": _unexplained(trainer.sae, scale * x)}
            trainer.step(next(batches).float())
            trainer.n_training_steps += 1


@torch.no_grad()
def _start(weights, given: Dictionary | None, directions_alone: bool, mean: torch.Tensor, scale: float) -> None:
    """Weights from `given`, in units in which the mean norm is sqrt(d). A training SAE subtracts its decoder bias first."""
    if given is None or directions_alone:
        weights.b_dec.copy_(scale * mean)
        if given is not None:
            weights.W_dec.copy_(given.decoder)
            weights.W_enc.copy_(given.decoder.T)
        return
    weights.W_dec.copy_(given.decoder)
    weights.W_enc.copy_(given.encoder)
    weights.b_dec.copy_(scale * given.decoder_bias)
    weights.b_enc.copy_(scale * (given.encoder_bias + given.decoder_bias @ given.encoder))


@torch.no_grad()
def _unexplained(weights, x: torch.Tensor) -> float:
    """With the k · tokens largest codes of all tokens, as in a training batch."""
    rebuilt = weights.decode(weights.encode(x))
    return float((x - rebuilt).square().sum() / (x - x.mean(0)).square().sum())


def lines(direction: str, given: argparse.Namespace) -> Iterator[dict]:
    a_name, b_name, layer, layer_b = (REAL | ACROSS).get(direction) or (*DIRECTIONS[direction], None)
    work = given.work / f"transfer-{direction}"
    work.mkdir(parents=True, exist_ok=True)
    common = {
        "layer": layer, "layer_b": layer_b, "tokens": given.tokens, "held_out": given.held_out, "context": given.context,
        "quiet": True, "device": "cpu",
    }  # fmt: skip
    settings = Settings(
        model_a=a_name,
        model_b=b_name,
        layer=layer,
        layer_b=layer_b,
        tokens=given.tokens,
        held_out=given.held_out,
        context=given.context,
        device="cpu",
        brief=True,
    )
    sae_a, sae_b = saes_of(direction, given) if {"sae", "native", "warm"} & set(given.kinds) else (Path(), Path())
    if "sae" in given.kinds:
        found = stitch.transfer.sae(a_name, b_name, sae_a, native=sae_b, out=work / "sae", overwrite=True, **common)
        yield {"transfer": "sae", **found.report}
    if "native" in given.kinds:
        yield {"transfer": "native", **natives(settings, work / "sae" / "sae", sae_b, given)}
    if "warm" in given.kinds:
        for line in warm_start(settings, sae_a, work / "sae" / "sae", work / "warm"):
            yield {"transfer": "warm start", **line}
    if not {"probe", "vector"} & set(given.kinds):
        return
    model = load_model(resolve(a_name).folder, name=a_name, dtype=torch.float32)
    documents = select(read("docs"), "report")
    for name in given.sets:
        folder = work / name.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        write_labels(documents, name, given.texts, folder / "labels.jsonl")
        x, classes = class_streams(model, layer, folder / "labels.jsonl", given.context or min(512, model.longest))
        write_probe_and_vectors(x, classes, folder)
        options = {**common, "out": folder / "carried", "overwrite": True}
        if "probe" in given.kinds:
            labels = folder / "labels.jsonl"
            found = stitch.transfer.probe(a_name, b_name, folder / "probe.safetensors", labels=labels, **options)
            yield {"transfer": "probe", "set": name, **found.report}
        if "vector" in given.kinds:
            found = stitch.transfer.vector(a_name, b_name, folder / "vectors.safetensors", **options)
            yield {"transfer": "vector", "set": name, **found.report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--direction", action="append", choices=[*DIRECTIONS, *REAL, *ACROSS])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--sets", nargs="+", choices=[*SETS], default=[*SETS], help="of labels")
    parser.add_argument("--saes", type=Path, nargs=2, help="SAEs of A's and of B's site, in place of trained ones")
    parser.add_argument(
        "--sae-tokens", type=int, default=1_000_000, help="for SAEs of models that read different tokens"
    )
    parser.add_argument("--texts", type=int, default=400, help="labelled texts per set; half of them are scored on")
    parser.add_argument("--context", type=int)
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--held-out", type=int, default=32_768)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    for direction in given.direction or DIRECTIONS:
        for line in lines(direction, given):
            for unread in ("provenance", "seconds", "recipe", "cache"):  # these name folders of the machine
                line.pop(unread, None)
            print(json.dumps({"benchmark": "transfer", "direction": direction, **line}), flush=True)


if __name__ == "__main__":
    main()
