"""Blocks removed by every method on the same text: at 10, 20 and 33 % of a model's blocks, with paired intervals.

    python benchmarks/depth.py --model demo:llama --tokens 100000
    python benchmarks/depth.py --model smollm2 --context 128 --tokens 12000 --held-out 16384 --on-cells 2048
    python benchmarks/depth.py --sweep depth/report.json      # lines of what `stitch sweep MODEL --depth` found

One JSON line per method and number of blocks. Each range of blocks is chosen on the sweep split by the method's own rule:

    plain removal       the contiguous range with the lowest cross-entropy when nothing is refitted
    ShortGPT            not contiguous: the blocks whose input and output have the highest mean cosine (arXiv 2403.03853)
    ReplaceMe           the range whose ends have the highest mean cosine, as published; and our range
    LinearPatch         the same rule, as published; and our range
    own tables          the first blocks as n-gram tables (`convert ngram`), also packed into the bytes of these blocks
    down-projection(s)  the range with the lowest cross-entropy when the down projection is refitted

The nulls are random ranges, with nothing refitted and with both down projections refitted as ours are, and the down projection
fitted to the streams of other tokens. A line's
`minus_ours` is the paired difference to `down-projections`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stitch.activations.harvest import Activations, harvest, windows_per_shard
from stitch.composite.bridges import fit_bridge, fit_bridges
from stitch.composite.native import with_blocks
from stitch.composite.splice import Splice
from stitch.composite.surgery import bridged
from stitch.config import CompleteSettings, Settings
from stitch.conversions.ngrams.fit import fit_full_memory, tables_for
from stitch.conversions.ngrams.late import LateBlocks
from stitch.conversions.ngrams.memory import NgramShape, read_fit_data
from stitch.conversions.ngrams.size import bytes_of, bytes_replaced, packed
from stitch.evaluation.scores import Logits, Scores, evaluate, mean_of, whole_model
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.pair.text import read_windows
from stitch.layers.depth import BRIDGED, PLAIN, from_shared, score_depth, splices
from stitch.models.model import Model
from stitch.text.documents import SPLITS, Split
from stitch.text.windows import Windows
from stitch.translation.types import Translation

PERCENT = (10, 20, 33)
RANDOM = 4  # ranges of the null
OURS = "down-projections"
BOTH = f"translation:{OURS}"
Streams = dict[Split, Activations]


@torch.no_grad()
def cosines(streams: Activations, apart: int, depth: int) -> list[float]:
    """Mean cosine of the streams entering block i and block i + `apart`, for every i."""
    total = torch.zeros(depth - apart + 1, dtype=torch.float64)
    for shard in range(streams.shards):
        read = [streams.read(shard, site).float() for site in range(depth + 1)]
        for site in range(len(total)):
            total[site] += torch.cosine_similarity(read[site], read[site + apart], dim=-1).double().sum()
    return (total / streams.windows.tokens).tolist()


def most_similar(streams: Activations, depth: int, count: int) -> Splice:
    """The rule of ReplaceMe and LinearPatch: the removed range whose ends are most similar. Block 0 stays."""
    found = cosines(streams, count, depth)
    first = max(range(1, len(found)), key=lambda site: found[site])
    return Splice(depth, first, first + count)


def shortgpt(streams: Activations, depth: int, count: int) -> list[int]:
    """The blocks that stay when those with the least influence, 1 − cosine of input and output, are removed."""
    found = cosines(streams, 1, depth)
    removed = sorted(range(depth), key=lambda block: -found[block])[:count]
    return [block for block in range(depth) if block not in removed]


def own_tables(
    model: Model, windows: dict[Split, Windows], drop: int, memory: int
) -> dict[str, tuple[Logits, dict]]:  # fmt: skip
    """The first blocks as n-gram tables, of any size and packed into the bytes of the blocks."""
    shape = NgramShape(rows=65_536 if model.config.vocab_size < 2**15 else 16_384)
    indices = tables_for(model, windows, shape, memory)
    fitted = fit_full_memory(read_fit_data(model, windows, drop, shape, indices)).translation
    small = packed(model, windows["fit"], drop, fitted, 100, memory)
    late = LateBlocks(model, drop)

    def row(tables: Translation) -> tuple[Logits, dict]:
        return late.reading(tables), {"range": f"0–{drop - 1}", "table_bytes": bytes_of(tables, model)}

    return {"own tables": row(fitted), "own tables, packed": row(small)}


def rows_of(
    model: Model, settings: CompleteSettings, windows: dict[Split, Windows], streams: Streams, count: int
) -> tuple[dict[str, tuple[Logits, dict]], Splice]:
    """Logits and description of every method at `count` removed blocks, and our range."""
    cells = score_depth(
        model,
        splices(model.depth, [count], repeat=False),
        streams,
        streams["sweep"],
        bridge=True,
        memory=settings.memory,
    )
    plain = min(cells, key=lambda splice: cells[splice].scores[PLAIN].ce)
    ours = min(cells, key=lambda splice: cells[splice].scores[BRIDGED].ce)
    similar = most_similar(streams["sweep"], model.depth, count)
    fitted = {
        splice: fit_bridges(model, splice, streams, memory=settings.memory, seed=settings.seed)
        for splice in dict.fromkeys((ours, similar))
    }

    def bridge(splice: Splice, name: str) -> tuple[Logits, dict]:
        found = fitted[splice][name]
        spliced = bridged(model, splice, found)
        if not found.folds:  # its hooks belong to the whole network
            return whole_model(spliced.net), _range(splice)
        return from_shared(spliced, splice, streams["report"].all(splice.shared)), _range(splice)

    kept = shortgpt(streams["sweep"], model.depth, count)
    gone = ", ".join(str(block) for block in range(model.depth) if block not in kept)
    rows = {
        "plain removal": (_plain(model, plain, streams), _range(plain)),
        "ShortGPT": (whole_model(with_blocks(model, kept).net), {"range": gone}),
        "ReplaceMe": bridge(similar, "reference:replaceme"),
        "ReplaceMe, our range": bridge(ours, "reference:replaceme"),
        "LinearPatch": bridge(similar, "reference:linear-patch"),
        "LinearPatch, our range": bridge(ours, "reference:linear-patch"),
        **own_tables(model, windows, count, settings.memory),
        "down-projection": bridge(ours, "translation:down-projection"),
        OURS: bridge(ours, BOTH),
        "null: shuffled": bridge(ours, "null:shuffled-down-projection"),
    }
    return rows, ours


def _plain(model: Model, splice: Splice, streams: Streams) -> Logits:
    return from_shared(with_blocks(model, splice.order), splice, streams["report"].all(splice.shared))


def _range(splice: Splice) -> dict:
    first, last = splice.changed[0], splice.changed[-1]
    return {"range": str(first) if first == last else f"{first}–{last}"}


def null_ranges(
    model: Model, streams: Streams, count: int, ours: Splice, memory: int, seed: int
) -> dict[str, list[Logits]]:  # fmt: skip
    """Random ranges removed that are not ours, by row: with nothing refitted, and refitted as ours are."""
    every = [splice for splice in splices(model.depth, [count], repeat=False) if splice != ours]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:RANDOM]
    drawn = [every[number] for number in order.tolist()]
    refitted = []
    for splice in drawn:
        bridge = fit_bridge(BOTH, model, splice, streams, memory=memory)
        refitted.append(from_shared(bridged(model, splice, bridge), splice, streams["report"].all(splice.shared)))
    return {
        "null: random ranges": [_plain(model, splice, streams) for splice in drawn],
        "null: random ranges, refitted": refitted,
    }


def lines(given: argparse.Namespace, folder: Path, tell: Callable[[str], None]):
    settings = Settings(
        model_a=given.model, model_b=given.model, layer=0, layer_b=0, native=True, tokens=given.tokens,
        held_out=given.held_out, context=given.context, seed=given.seed, dtype=given.dtype,
    )  # fmt: skip
    model, _, _ = load_pair(settings)
    completed = complete(settings, model, model)
    windows = read_windows(completed, model, model)
    windows["sweep"] = windows["sweep"].first(given.on_cells)
    per_shard = windows_per_shard(given.context, model.width * (model.depth + 1), model.dtype, settings.memory)
    streams: Streams = {
        split: harvest(model, windows[split], range(model.depth + 1), folder / split, per_shard=per_shard)
        for split in SPLITS
    }
    tell(f"{given.model}: streams are on disk")
    for count in sorted({max(1, round(percent * model.depth / 100)) for percent in given.percent}):
        began = time.perf_counter()
        rows, ours = rows_of(model, completed, windows, streams, count)
        logits = {name: row for name, (row, _) in rows.items()}
        drawn = null_ranges(model, streams, count, ours, settings.memory, given.seed)
        nulls = {f"{name} {number}": row for name, draws in drawn.items() for number, row in enumerate(draws)}
        scores = evaluate(
            {"whole": whole_model(model.net), **logits, **nulls}, windows["report"], vocabulary=model.config.vocab_size,
            memory=settings.memory,
        )  # fmt: skip
        for name, draws in drawn.items():
            scores[name] = mean_of([scores.pop(f"{name} {number}") for number in range(len(draws))])
        seconds = round(time.perf_counter() - began)
        tell(f"{given.model}: {count} blocks in {seconds} s")
        removed = bytes_replaced(model, count)
        for name, found in scores.items():
            yield {
                "benchmark": "depth",
                "model": given.model,
                "removed": 0 if name == "whole" else count,
                "at": count,
                "blocks": model.depth,
                "method": name,
                "range": "",
                **rows.get(name, (None, {}))[1],
                "bytes_removed": removed,
                **_numbers(found, scores),
                "tokens": {split: one.tokens for split, one in windows.items()},
                "documents": found.documents,
                "context": given.context,
                "dtype": given.dtype,
                "seconds": seconds,
            }


def _numbers(found: Scores, scores: dict[str, Scores]) -> dict:
    """The row, and its paired differences to `down-projections` and to the whole model."""
    row = {key: value for key, value in found.row("").items() if key != "name"}
    for name, other in (("minus_ours", scores[OURS]), ("minus_whole", scores["whole"])):
        row |= found.difference(other, name)
    return row


def swept(report: dict):
    """One line per best range of a depth sweep and row in which it is the best."""
    for one in report["best"]:
        for row in (row for row in one["rows"] if row["name"] in one["best_in"]):
            yield {
                "benchmark": "depth_sweep",
                "model": report["models"]["a"],
                "of": report["depth"],
                **{key: one[key] for key in ("change", "length", "first", "blocks")},
                "last": one["first"] + one["length"] - 1,
                "whole": report["whole"]["ce"],
                **row,
                "tokens": report["tokens"],
                "documents": report["documents"]["number"],
                "context": report["context"],
            }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo:llama")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--held-out", type=int, default=32_768)
    parser.add_argument("--on-cells", type=int, default=8_192, help="Tokens that every range is tried on.")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--percent", type=int, nargs="+", default=PERCENT, help="Of the blocks, to remove.")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", type=Path, metavar="REPORT", help="Print the lines of this report; measure nothing.")
    given = parser.parse_args()
    if given.sweep is not None:
        for line in swept(json.loads(given.sweep.read_text())):
            print(json.dumps(line))
        return

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for line in lines(given, Path(folder), tell):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
