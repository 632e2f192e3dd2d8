"""`stitch inspect --heads`: the report on a model's attention heads, its tables and its maps."""

from collections.abc import Sequence
from math import log2
from statistics import median

from stitch.errors import UsageError
from stitch.evaluation.documents import counted, phrase, warning
from stitch.files.sizes import size_in_words
from stitch.layers.curve import WAYS, name_of, score_keys
from stitch.layers.heads import SIZES, WHOLE, measure_heads
from stitch.layers.tokens import RAREST, shuffled_windows
from stitch.models.model import Model
from stitch.models.provenance import surroundings
from stitch.models.sources import Source
from stitch.progress import Progress
from stitch.text.windows import Windows

FAR = 128  # tokens back, at most
LOOKS_FAR = 0.1  # of what a head moves comes from far keys
ENRICHED = 1.5  # times as much as at other places
SHOWN = 12  # heads in a table
MISSING = float("nan")


def far_of(context: int) -> int:
    """Keys more than so many tokens back are far: 128, or a quarter of a shorter context."""
    return min(FAR, context // 4)


def heads_report(
    model: Model,
    source: Source,
    windows: Windows,
    asked: dict,
    *,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    memory: int = 2**30,
    progress: Progress | None = None,
) -> dict:
    """What every head looks at, how many keys matter to it, and the loss where all heads know only so many.

    Raises: UsageError for a context too long for `memory`, or a family whose attention is not known.
    """
    require_memory(model, windows.context, memory)
    far = far_of(windows.context)
    heads = measure_heads(model, windows, far=far, sizes=sizes, seed=seed, progress=progress)
    null = measure_heads(
        model, shuffled_windows(windows, seed), far=far, sizes=sizes, costs=False, progress=progress,
        task="heads on shuffled text (windows)",
    )  # fmt: skip
    scores = score_keys(model, windows, sizes, seed=seed, memory=memory, progress=progress)
    return {
        "models": {"a": model.name},
        "tokens": {"report": windows.tokens},
        "documents": counted(scores["model"]),
        "context": windows.context,
        "far": far,
        "sizes": list(sizes),
        "heads": [
            {"block": block, "head": head, **found, "rare_shuffled": other["rare"]}
            for block, (one, two) in enumerate(zip(heads, null, strict=True))
            for head, (found, other) in enumerate(zip(one, two, strict=True))
        ],
        "results": [score.row(name) for name, score in scores.items()],
        "differences": [
            {"name": name, "minus": "model", **score.difference(scores["model"])}
            for name, score in scores.items()
            if name != "model"
        ],
        "provenance": {**surroundings(asked, {"a": (model, source)}), **windows.provenance},
    }


def require_memory(model: Model, context: int, memory: int) -> None:
    """Raises UsageError where the patterns of all heads, and what is made of those of a block, take more than `memory` bytes."""
    pattern = 4 * context**2
    needed = pattern * (sum(map(model.heads, range(model.depth))) + 8 * max(map(model.heads, range(model.depth))))
    if needed > memory:
        raise UsageError(
            f"memory must hold the attention patterns of a window, {size_in_words(needed)} at a context of {context:,}; got "
            f"{size_in_words(memory)}: lower `context` or raise `memory`."
        )


def lead(report: dict) -> str:
    """The sentence that matters most."""
    heads, sizes = report["heads"], report["sizes"]
    size = next((size for size in sizes if _difference(report, size, "equalised")["ce"] <= 0.01), None)
    far = far_heads(report)
    rare = [head for head in far if _times(head["rare"]) > ENRICHED]
    copies = [head for head in far if _times(head["copies"]) > max(ENRICHED, _times(head["copies_null"]))]
    enough = (
        f"With the {size} strongest keys of each query exact, and the others averaged, {report['models']['a']} loses "
        f"{_range(_difference(report, size, 'equalised'))} nats per token"
        if size is not None
        else f"Even the {sizes[-1]} strongest keys of each query are not enough for {report['models']['a']}: it loses "
        f"{_range(_difference(report, sizes[-1], 'equalised'))} nats per token when the others are averaged"
    )
    return (
        f"{enough}. {len(far)} of {len(heads)} heads look far; of these {len(copies)} prefer tokens after an earlier copy of the "
        f"present one, and {len(rare)} prefer rare tokens."
    )


def far_heads(report: dict) -> list[dict]:
    """The heads that move at least LOOKS_FAR from far keys."""
    return [head for head in report["heads"] if (head["far_moved"] or 0) >= LOOKS_FAR]


def _times(value: float | None) -> float:
    return 0.0 if value is None else value


def _difference(report: dict, size: int, way: str) -> dict:
    return next(one for one in report["differences"] if one["name"] == name_of(size, way))


def _range(found: dict) -> str:
    return f"{found['ce']:.4f} ({found['ce_low']:.4f} to {found['ce_high']:.4f})"


def maps(report: dict) -> list[tuple[str, list[str], list[list[str]], list[list[float]]]]:
    """Heat maps by block (down) and head (across): keys that matter, far keys, cost of few keys."""
    few = report["sizes"][1] if len(report["sizes"]) > 1 else report["sizes"][0]
    place = report["sizes"].index(few)
    return [
        _map(
            report,
            f"keys that matter: with so many exact and the others averaged, what a head writes changes by less than {WHOLE:.0%} "
            f"of its variance (> is more than {report['sizes'][-1]})",
            lambda head: (
                (str(head["keys"]), log2(head["keys"]))
                if head["keys"]
                else (f">{report['sizes'][-1]}", log2(2 * report["sizes"][-1]))
            ),
        ),
        _map(
            report,
            f"percent of what a head moves that comes from more than {report['far']} tokens back",
            lambda head: (f"{100 * (head['far_moved'] or 0):.0f}", head["far_moved"] or 0.0),
        ),
        _map(
            report,
            f"estimated cost of {few} keys in this head alone, in thousandths of a nat per token",
            lambda head: (f"{1000 * head['cost'][place]:.1f}", log2(1e-6 + head["cost"][place])),
        ),
    ]


def _map(report: dict, title: str, cell) -> tuple[str, list[str], list[list[str]], list[list[float]]]:
    depth, width = (1 + max(head[key] for head in report["heads"]) for key in ("block", "head"))
    texts = [[str(block), *[""] * width] for block in range(depth)]
    values = [[MISSING] * width for _ in range(depth)]
    for head in report["heads"]:
        text, value = cell(head)
        texts[head["block"]][1 + head["head"]], values[head["block"]][head["head"]] = text, value
    return f"{report['models']['a']}, {title}", ["block", *map(str, range(width))], texts, values


def keys_table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of the loss where all heads keep so many keys."""
    rows = [[f"{size} keys", *(_signed(_difference(report, size, way)) for way in WAYS)] for size in report["sizes"]]
    scored = f"{report['tokens']['report']:,} held-out tokens{phrase(report)}"
    return (
        ["of each query", *(f"others {way}" for way in WAYS[:3]), WAYS[3]],
        rows,
        f"{report['models']['a']}: nats per token above the whole model; {scored}",
    )


def _signed(found: dict) -> str:
    return f"{found['ce']:+.4f} ±{(found['ce_high'] - found['ce_low']) / 2:.4f}"


def far_table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of the heads that look farthest."""
    found = sorted(far_heads(report), key=lambda head: -head["far_moved"])[:SHOWN]
    rows = [
        [
            f"{head['block']}.{head['head']}",
            f"{head['far_moved']:.2f}",
            f"{head['sink']:.2f}",
            *(_ratio(head[name]) for name in ("rare", "rare_shuffled", "copies", "copies_null")),
        ]
        for head in found
    ]
    header = ["block.head", "far", "first token", "rare", "shuffled", "after a copy", "other token"]
    return header, rows, f"Heads that look farthest, {len(rows)} of {len(far_heads(report))}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def footnotes(report: dict) -> list[str]:
    """What the columns are, and warnings."""
    rare = [_times(head["rare"]) for head in far_heads(report)]
    middle = f" Over all far heads the median of rare is {median(rare):.2f}." if rare else ""
    return [
        f"far: share of what the head moves (probability × length of what the key's value writes) from more than "
        f"{report['far']} tokens back, tokens that start a text left out. first token: its share of the probability.",
        f"rare: how many times more of that goes to the rarest {RAREST:.0%} of tokens than they are of the keys; shuffled: the "
        f"same on text in random order.{middle}",
        "after a copy: the same of tokens behind an earlier copy of the query's token, against keys at the same distance; other "
        "token: behind a copy of a token of another text.",
        "Costs are estimates to second order, each for its head alone.",
        *warning(report),
    ]
