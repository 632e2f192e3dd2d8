"""Merges key heads and compares with every baseline and with latent attentions that cache as many numbers, all with the
same refits: one JSON line per model and number of heads.

    python benchmarks/conversions_heads.py --model demo:gpt2 --kv-heads 1
    python benchmarks/conversions_heads.py --train build/eight-heads          trains a Llama with eight key heads
    python benchmarks/conversions_heads.py --train build/qwen3 --family qwen3 trains a Qwen3 (normalised queries and keys)
    python benchmarks/conversions_heads.py --model build/eight-heads --kv-heads 4,2,1 --context 64 --tokens 16384

Windows of the report split are four times as long as those used for fitting, if the model has enough positions. The
latent attentions (`_latent_peers.py`) have settings, which are chosen on the sweep split; Qwen3 is left out, as its keys
are normalised and so not linear in a latent. The converted model and the best of them are also read on other text.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from _domains import code, passages, prose
from _latent_choice import Peer, best_latents
from _latent_nets import trace
from other_text import documents

from stitch.conversions.donor import Donor, read_donor
from stitch.conversions.heads.convert import LONGER, convert_heads
from stitch.conversions.report import difference
from stitch.demo.recipe import CONTEXT, Recipe
from stitch.demo.ship import ship
from stitch.demo.train import train
from stitch.evaluation.documents import counted
from stitch.evaluation.scores import Scores, evaluate, whole_model
from stitch.internals import weights
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.text.documents import select
from stitch.text.windows import Windows, sample

CHOSEN_ON = 16_384  # tokens of the sweep split, for settings of latent attentions


def trained(folder: Path, family: str, steps: int) -> None:
    """Trains a model of four blocks, width 128, with eight heads of 16 and as many key heads, like the embedded
    Llama but for fewer steps.
    """
    shape = dict(
        num_hidden_layers=4, hidden_size=128, num_attention_heads=8, num_key_value_heads=8, head_dim=16, intermediate_size=384,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True,
    )  # fmt: skip
    wanted = Recipe(family=family, shape=shape, steps=steps, rates=((steps // 2, 1.0), (steps, 0.0)))
    work = folder.with_name(f"{folder.name}-work")
    net, curve = train(wanted, work)
    ship(folder.name, wanted, net, curve, work / "tokenizer", folder)


def line(given: argparse.Namespace, kv_heads: int) -> dict:
    began = time.perf_counter()
    text = dict(tokens=given.tokens, held_out=given.held_out, context=given.context, seed=given.seed)
    with tempfile.TemporaryDirectory() as folder:
        report = convert_heads(given.model, Path(folder) / "out", kv_heads=kv_heads, steps=given.steps, **text)
        converted = load(Path(folder) / "out", dtype=torch.float32)
    donor = read_donor(given.model, text="docs", report_factor=LONGER, **text)
    peers = latent_peers(donor, kv_heads, given.seed)
    models = {"donor": donor.model.net, "converted": converted.net, **{name: peer.net for name, peer in peers.items()}}
    scores = scored(models, donor.windows["report"], donor.model)
    best = min(
        (name for name in peers if not name.startswith("null:")), key=lambda name: peers[name].sweep, default=None
    )
    away = {name: models[name] for name in ("donor", "converted", best) if name}
    texts = {kind: scored(away, windows, donor.model) for kind, windows in other_windows(donor).items()}
    sizes = sizes_of(donor.model), sizes_of(converted)
    return {
        "benchmark": "conversions_heads",
        "model": Path(given.model).name,
        "family": donor.model.config.model_type,
        "key_heads": weights.attention(donor.model, 0).k.shape[1],
        "left": kv_heads,
        "seed": given.seed,
        "steps": given.steps,
        "tokens": report["tokens"],
        "fit_window": donor.context,
        "report_window": donor.windows["report"].context,
        "documents": report["documents"],
        "ce": scores["donor"].ce,
        "chosen": report["notes"][0].removeprefix("converted: ").partition(",")[0],
        "results": [
            {"name": "donor", "above": 0.0, **sizes[0]},
            {**above(scores, "converted"), **sizes[1]},
            *(
                {"name": row["name"], "above": row["ce"] - report["results"][0]["ce"], **sizes[1]}
                for row in report["results"]
                if row["name"] not in ("donor", "converted")
            ),
            *({**above(scores, name), **peer.row()} for name, peer in peers.items()),
        ],
        "best_peer": best,
        "differences": [*report["differences"][1:], *(difference(scores, "converted", name) for name in peers)],
        "texts": {kind: of_text(found, best) for kind, found in texts.items()},
        "groups": report["groups"],
        "by_block": report["by_block"],
        "notes": report["notes"],
        "seconds": round(time.perf_counter() - began, 1),
    }


def latent_peers(donor: Donor, kv_heads: int, seed: int) -> dict[str, Peer]:
    """Latent attentions that cache as many numbers per token as `kv_heads` key and value heads; none for a Qwen3."""
    own = weights.attention(donor.model, 0)
    if own.q_gain is not None:
        return {}
    of = trace(donor.model, {split: donor.windows[split].ids for split in ("fit", "sweep")})

    def on_sweep(net: torch.nn.Module) -> float:
        return scored({"it": net}, donor.to_choose_on.first(CHOSEN_ON), donor.model)["it"].ce

    return best_latents(donor.model, of, cached=2 * kv_heads * own.k.shape[2], loss=on_sweep, seed=seed)


def scored(models: Mapping[str, torch.nn.Module], windows: Windows, donor: Model) -> dict[str, Scores]:
    rows = {name: whole_model(net) for name, net in models.items()}
    reference = rows.get("donor")
    return evaluate(rows, windows, vocabulary=donor.vocabulary, reference=reference)


def above(scores: dict[str, Scores], name: str) -> dict:
    """Nats above the donor, with the paired interval."""
    found = difference(scores, name, "donor")
    return {"name": name, "above": found["ce"], "above_low": found["ce_low"], "above_high": found["ce_high"]}


def sizes_of(model: Model) -> dict:
    """Numbers that all blocks cache per token, their weights of queries, keys and values, and the multiplications per
    cached token when a new one attends to it.
    """
    own = [weights.attention(model, block) for block in range(model.depth)]
    return {
        "cached": sum(one.k[0].numel() + one.v[0].numel() for one in own),
        "parameters": sum(one.q.numel() + one.k.numel() + one.v.numel() for one in own),
        "products": sum(2 * one.q[0].numel() for one in own),
    }


def other_windows(donor: Donor) -> dict[str, Windows]:
    """Passages of licences, and of code and prose of the modules of the report split, in windows of the report's length.

    One passage of each document: otherwise a few long ones would be most of the text.
    """
    report, tokenizer = donor.windows["report"], donor.model.tokenizer
    texts = {"licences": documents("licences"), "code": code("report"), "prose": select(prose(), "report")}
    return {kind: sample(passages(read), tokenizer, report.context, report.tokens) for kind, read in texts.items()}


def of_text(scores: dict[str, Scores], best: str | None) -> dict:
    found = {"ce": scores["donor"].ce, "documents": counted(scores["donor"]), "converted": above(scores, "converted")}
    if best is None:
        return found
    return {**found, "peer": above(scores, best), "difference": difference(scores, "converted", best)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:llama")
    parser.add_argument("--kv-heads", default="1", help="Numbers of key heads, separated by commas.")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--held-out", type=int, default=32_768)
    parser.add_argument("--context", type=int)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--family", default="llama", help="With --train: llama or qwen3.")
    parser.add_argument("--train-steps", type=int, default=600)
    given = parser.parse_args()
    if given.train:
        trained(given.train, given.family, given.train_steps)
    else:
        for kv_heads in map(int, given.kv_heads.split(",")):
            print(json.dumps(line(given, kv_heads)), flush=True)


if __name__ == "__main__":
    main()
