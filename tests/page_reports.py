"""Small reports of every kind, for the tests of pages. Numbers are made up; `HOSTILE` stands where text of a corpus may."""

from stitch.layers.choose import RULE
from stitch.pages.certificate import certificate_page
from stitch.pages.chain import chain_page
from stitch.pages.circuit import circuit_page
from stitch.pages.conversion import conversion_page
from stitch.pages.depth import depth_page
from stitch.pages.graft import graft_page
from stitch.pages.join import join_page
from stitch.pages.page import Page, html
from stitch.pages.sweep import sweep_page
from stitch.pages.tool import tool_page
from stitch.pages.transfer import transfer_page

KINDS = ("join", "chain", "sweep", "depth", "circuit", "graft", "conversion", "transfer", "certificate", "tool")
HOSTILE = "</script><script>window.broken=1</script><img src=x onerror=window.broken=1>\u2028<!-- & \"'"
ROWS = {
    "a": (3.4, 5e6, 1e7), "b": (3.2, 8e6, 1.6e7), "composite": (3.5, 7e6, 1.7e7), "translation:affine": (4.0, 7e6, 1.6e7),
    "translation:identity": (8.8, 6e6, 1.6e7), "floor:mean": (8.0, 5e6, 9e6), "ceiling:sae-b": (4.8, 9e6, 1.8e7),
    "reference:own-tables": (3.3, 6.5e6, 1.7e7), "null:no-source": (3.6, 4.8e6, 2e7),
}  # fmt: skip


def interval(ce: float, width: float = 0.1) -> dict:
    return {"ce": ce, "ce_low": ce - width, "ce_high": ce + width}


def row(name: str) -> dict:
    ce, flops, size = ROWS[name]
    return {"name": name, **interval(ce), "ppl": 20.0, "kl_to_b": 0.2, "top1": 0.6, "flops": flops, "bytes": size,
            "parameters": size / 4, "bytes_read": size}  # fmt: skip


def join_report() -> dict:
    rival = "reference:own-tables"
    line = {
        "name": "line",
        "ce": 3.3,
        "ce_low": None,
        "ce_high": None,
        "ppl": None,
        "kl_to_b": None,
        "top1": None,
        "flops": 7e6,
    }
    shown = {name: interval(ROWS[name][0]) for name in ("a", "b", "composite", rival)}
    for name in shown.keys() - {"composite"}:
        shown[name]["minus_composite"] = interval(ROWS[name][0] - 3.5, 0.02)
    return {
        "verdict": {"status": "dominated", "rivals": [rival], "row": rival, **interval(0.2, 0.02), "flops": 0.93, "bytes": 1.0},
        "alternatives": {rival: "demo:llama with its first 2 of 8 blocks as n-gram tables"},
        "models": {"a": "demo:gpt2", "b": "demo:llama"},
        "site": {"a": 3, "b": 4},
        "tokens": {"fit": 8192, "sweep": 2048, "report": 2048},
        "documents": {"number": 40, "effective": 33.0},
        "results": [*map(row, ("a", "b", "composite")), line, *(row(name) for name in list(ROWS)[3:])],
        "differences": [
            {"name": "composite", "minus": "b", **interval(0.3, 0.02)},
            {"name": "null:no-source", "minus": "translation:affine", **interval(-0.4, 0.02)},
        ],
        "left_out": [],
        "chosen": "affine",
        "matching_by_block": {
            "pairs": 5, "tokens": 1984, "sites": {"a": [2, 3], "b": [3, 4, 5]},
            "correlation": [[0.1, 0.4, 0.2], [0.3, 0.7, 0.5]], "null": [[0.0, 0.01, -0.02], [0.0, 0.03, 0.02]],
        },
        "breakdown": {
            "position": [{"bin": bin, "tokens": 100, "rows": shown} for bin in ("1", "2–3", "4–7")],
            "frequency": [{"bin": bin, "tokens": 150, "rows": shown} for bin in ("never", "up to 10")],
        },
        "provenance": {"settings": {"text": "docs"}, "models": {}},
        "recipe": {"command": "join", "layer": 3},
    }  # fmt: skip


def features(pairs: int = 6, *, text: str = HOSTILE) -> dict:
    """features.json of some pairs: feature n of B with feature n + 100 of A. Scores fall with n, margins rise.

    `text` is one of the pieces; pair 0 fires on it.
    """
    pieces = ["The", " cat", " sat", text, *(f" word{number}" for number in range(pairs))]
    found = []
    for number in range(pairs):
        context = {
            "tokens": [0, 1, 2, 4 + number, 3 if number == 0 else 1],
            "at": 3,
            "a": [[3, 2.0], [1, 0.5]],
            "b": [[3, 4.0]],
        }
        score = round(0.95 - 0.8 * number / pairs, 4)
        found.append(
            {"b": number, "a": number + 100, "score": score, "null_score": round(score - 0.1 - 0.05 * number / pairs, 4),
             "fires": [40, 30], "highest": [2.0, 4.0], "histograms": [[30, 8, 0, 2], [20, 5, 4, 1]], "top": [[0], [0]],
             "contexts": [context]}
        )  # fmt: skip
    b = [
        {"feature": pair["b"], "contexts": [], "match": {"feature": pair["a"], "score": pair["score"], "null_score": 0.1},
         "strongest": [{"feature": pair["a"], "correlation": pair["score"]}]}
        for pair in found
    ]  # fmt: skip
    return {"b": b, "a": [], "pairs": found, "pieces": pieces, "left_out": 7}


def chain_report() -> dict:
    first, last = ({"model": "demo:gpt2", "from": 0, "to": 3}, {"model": "demo:llama", "from": 4, "to": None})
    seam = {
        "from": {"model": "demo:gpt2", "site": 3}, "to": {"model": "demo:llama", "site": 4}, "site": {"a": 3, "b": 4},
        "chosen": "affine", "composite": {"name": "demo:gpt2[:3] + demo:llama[4:]", "ppl": 30.0, **interval(3.5)},
    }  # fmt: skip
    models = [{"name": name, "ppl": 20.0, **interval(ce)} for name, ce in (("demo:gpt2", 3.4), ("demo:llama", 3.2))]
    return {**join_report(), "chain": {"parts": [first, last], "models": models, "seams": [seam]}}


def described(name: str, width: int) -> dict:
    return {"name": name, "revision": None, "width": width}


def sweep_report() -> dict:
    numbers = {"flops": 6e6, "bytes": 1e7, "parameters": 2e6}
    rival = {
        "made": "demo:llama",
        "ce": 3.2,
        "flops": 6e6,
        "bytes": 1e7,
        "above": 0.4,
        "above_low": 0.3,
        "above_high": 0.5,
    }
    cells = [
        {"source": source, "target": target, "i": i, "j": j, "flops": 6e6 + 1e5 * i, "line": 3.3, "chosen": "affine",
         "translations": {"affine": {**interval(3.6 + 0.1 * i - 0.05 * j), **numbers, "flops": 6e6 + 1e5 * i}},
         "null": interval(5.0), "rival": rival | {"above": 0.4 + 0.1 * i - 0.05 * j}, "rival_within_bytes": rival}
        for source, target in (("a", "b"), ("b", "a"))
        for i in range(3)
        for j in range(3)
    ]  # fmt: skip
    best = [
        {"source": "a", "target": "b", "i": 1, "j": 2, "translation": "affine", **interval(3.6), "line": 3.3,
         "within_budget": True, **numbers}
    ]  # fmt: skip
    donors = {"a": {**interval(3.4), **numbers, "flops": 5e6}, "b": {**interval(3.2), **numbers, "flops": 8e6}}
    whole = {"model": "b", "made": "demo:llama", **donors["b"]}
    return {
        "models": {"a": "demo:gpt2", "b": "demo:llama"}, "depth": {"a": 2, "b": 2}, "donors": donors, "cells": cells,
        "alternatives": [{"model": "b", "kind": "tables", "made": "demo:llama with tables", **interval(3.25), **numbers}],
        "best_layers": best, "fronts": {"flops": [whole], "bytes": [whole]}, "rule": RULE,
        "tokens": {"fit": 8192, "report": 2048}, "documents": {"number": 40, "effective": 33.0},
        "provenance": {"models": {"a": described("demo:gpt2", 160), "b": described("demo:llama", 192)}},
    }  # fmt: skip


def depth_report() -> dict:
    def losses(first: int, length: int) -> dict:
        return {"passthrough": 3.3 + 0.2 * length + 0.01 * first, "down-projection": 3.25 + 0.1 * length + 0.01 * first}

    cells = [
        {"change": "removed", "first": first, "length": length, "sweep_ce": losses(first, length)}
        for length in (1, 2)
        for first in range(4 - length)
    ]
    best = [
        {"change": "removed", "first": 0, "length": length, "blocks": 4 - length, "best_in": ["passthrough", "down-projection"],
         "rows": [
            {"name": name, **interval(ce), "minus_whole": interval(ce - 3.2, 0.02), "null_ce": ce + 0.2,
             "null_minus": interval(0.2, 0.02)}
            for name, ce in losses(0, length).items()
        ]}
        for length in (1, 2)
    ]  # fmt: skip
    return {
        "models": {"a": "demo:llama"}, "depth": 4, "tokens": {"fit": 8192, "sweep": 2048, "report": 2048},
        "documents": {"number": 40, "effective": 33.0}, "whole": {"sweep_ce": 3.2, **interval(3.2)}, "cells": cells, "best": best,
        "provenance": {"models": {"a": described("demo:llama", 192)}},
    }  # fmt: skip


def answers(name: str, right: float) -> dict:
    return {
        "name": name,
        "right": right,
        "right_low": right - 0.05,
        "right_high": right + 0.05,
        "probability": right,
        "nats": 1.0,
    }


def circuit_report() -> dict:
    return {
        "model": "demo:llama", "behaviour": "brackets", "prompts": 64, "places": 64,
        "circuit": {"heads": {"0": [1], "1": [0]}, "neurons": {"0": [3, 5]}},
        "attribution": {"heads": {"0": [0.01, 0.4], "1": [-0.3, 0.02]}, "neurons": {"0": [0.1, 0.2]}},
        "edges": {
            "method": "EAP-IG", "prompts": 16, "left_out": 3, "difference": 1.5,
            "components": {"neuron 0.3": 0.1, "neuron 0.5": 0.2, "head 0.1": 0.4, "head 1.0": -0.3, "tokens": 1.4},
            "into": {
                "neuron 0.3": {"head 0.1": 0.05, "tokens": 0.02}, "neuron 0.5": {"head 0.1": 0.04},
                "head 1.0": {"neuron 0.3": -0.2, "neuron 0.5": 0.05, "head 0.1": 0.3}, "answers": {"head 1.0": -0.31},
            },
        },
        "features": {}, "size": {"heads": {"kept": 2, "of": 4}, "neurons": {"kept": 2, "of": 32}}, "stability": 0.8,
        "results": [answers("model", 0.5), answers("circuit alone", 0.45), answers("without it", 0.1)],
    }  # fmt: skip


def graft_report() -> dict:
    heads = [
        {"donor": [0, 1], "host": [0, 2], "kind": "exact", "back": 0, "moved": 0.0, "lost": 0.0},
        {"donor": [1, 0], "host": [1, 0], "kind": "fitted", "back": 0, "moved": 0.1, "lost": 0.2},
    ]
    neurons = [{"donor": 0, "count": 8, "host": 0, "as": 16, "kind": "pairs", "lost": 0.05}]
    graft = {
        "donor": "demo:induction", "behaviour": "induction", "plan": {"heads": heads, "neurons": neurons},
        "results": [answers("donor", 1.0), answers("host, grafted", 0.98), answers("host without the graft", 0.001)],
    }  # fmt: skip
    return {"host": {"model_type": "llama"}, "trained": False, "grafts": [graft], "free": {"channels": 3, "of": 64}}


def conversion_report() -> dict:
    rows = {
        "donor": (3.2, 0.0, 4096),
        "converted": (3.3, 0.1, 512),
        "baseline:mean": (3.7, 0.5, 512),
        "null:random": (5.0, 1.9, 512),
    }
    results = [
        {"name": name, **interval(ce), "ppl": 20.0, "kl_to_b": kl, "top1": 0.7, "cache_bytes": size}
        for name, (ce, kl, size) in rows.items()
    ]
    return {
        "conversion": "heads", "model": "demo:gpt2", "title": "demo:gpt2 with one key head", "made": "Made without training.",
        "tokens": {"report": 2048}, "context": 64, "results": results, "notes": [],
        "differences": [{"name": "converted", "minus": "donor", **interval(0.1, 0.01)}], "provenance": {},
    }  # fmt: skip


def transfer_report() -> dict:
    def one(name: str, ce: float, fvu: float | None) -> dict:
        return {
            "name": name,
            **interval(ce),
            "fvu": fvu,
            "agree": None if fvu is None else 0.2,
            "l0": 20.0,
            "dead": 0.1,
        }

    rows = [
        one("a", 3.4, None), one("a with its SAE", 3.9, 0.2), one("b", 3.2, None), one("transferred", 4.4, 0.4),
        one("reference:native", 3.9, 0.25), one("baseline:procrustes", 4.6, 0.45), one("null:random-map", 9.1, 1.2),
    ]  # fmt: skip
    return {
        "kind": "sae", "models": {"a": "demo:gpt2", "b": "demo:llama"}, "site": {"a": 3, "b": 4}, "chosen": "transferred",
        "tokens": {"report": 2048}, "documents": {"number": 40, "effective": 33.0}, "results": rows, "features": 64,
        "unexplained": {"transferred": {"there": 0.3, "back": 0.2}}, "matched": 40,
        "differences": [{"name": "transferred", "minus": "reference:native", **interval(0.5, 0.05)}],
    }  # fmt: skip


def certificate_report() -> dict:
    def trial(name: str, dtype: str, wrong: int, margin: float) -> dict:
        return {
            "trial": name, "dtype": dtype, "attention": "sdpa", "prompts": 8, "asked": 64, "wrong": wrong, "margin": margin,
        }  # fmt: skip

    return {"results": [trial("every string", "fp32", 0, 10.0), trial("loops", "bf16", 2, -0.5)]}


def tool_report() -> dict:
    def share(right: float) -> dict:
        return {"right": right, "low": right - 0.1, "high": right + 0.1}

    def row(name: str, right: float) -> dict:
        read = [{"part": part, "tokens": 8, **share(right)} for part in ("1", "2–3")]
        alone = {"part": "4", "tokens": 1, "right": right, "low": None, "high": None}  # tokens of one document
        by_state = [{"part": state, "tokens": 12, **share(right)} for state in ("even", "odd")]
        return {
            "name": name,
            **share(right),
            "mean_over_states": right,
            "by_tokens_read": [*read, alone],
            "by_state": by_state,
        }

    return {
        "host": "demo:gpt2", "automaton": "parity.json", "faint": 0.1, "states": ["even", "odd"], "symbols": ["a", "b", "c"],
        "start": 0, "steps": [[1, 0, 1], [0, 1, 0]], "windows_per_block": 3, "blocks": 2, "tokens": 2048,
        "parameters": {"before": 1000, "after": 3000},
        "right": [row("tool, fp32", 1.0), row("tool, bf16", 0.98), row("probe on the host's stream, site 1", 0.7),
                  row("the most frequent state", 0.5)],
        "text": [{"name": name, **interval(3.2)} for name in ("as it was", "with the tool")],
        "price": {"nats": 1e-6, "low": -1e-7, "high": 2e-6},
    }  # fmt: skip


TABLE = (["", "right"], [["host, grafted", "98.0%"]], "demo:induction: induction")


def pages() -> dict[str, bytes]:
    """A page of every kind as HTML, by its name."""
    return {kind: html(page) for kind, page in made().items()}


def made() -> dict[str, Page]:
    """The same before they are HTML."""
    from stitch.conversions.report import footnotes, table
    from stitch.report import transfer
    from stitch.synthesis.report import tool_notes, tool_table

    conversion, carried, tool = conversion_report(), transfer_report(), tool_report()
    return {
        "join": join_page(join_report(), features()),
        "chain": chain_page(chain_report(), features()),
        "sweep": sweep_page(sweep_report()),
        "depth": depth_page(depth_report()),
        "circuit": circuit_page(circuit_report()),
        "graft": graft_page(graft_report(), [TABLE], ["a note"], [TABLE], []),
        "conversion": conversion_page(conversion, table(conversion), footnotes(conversion)),
        "transfer": transfer_page(carried, transfer.table(carried), transfer.notes(carried)),
        "certificate": certificate_page(certificate_report(), "an automaton", [TABLE], ["a note", "NOT certified"]),
        "tool": tool_page(tool, tool_table(tool), tool_notes(tool)),
    }
