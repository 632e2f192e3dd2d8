"""The lines of docs/findings/grafts-in-use.md, from the reports of grafts.

    stitch graft demo:gpt2 --behaviour natural-ngram --keep 0.9 --host examples/llama-wide.json --out ngrams
    python benchmarks/grafts.py ngrams/graft.json >> benchmarks/results/grafts_natural_ngram.jsonl

A line per graft of each report, with the scores of its rows, the best control, and what was done with positions. Shares are per
cent.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

ROWS = {
    "donor": "donor",
    "its circuit alone": "circuit",
    "host, grafted": "host",
    "host on corrupt prompts": "corrupt",
    "this graft alone": "alone",
    "the others alone": "others",
    "host without the graft": "bare",
    "noise of the same norm": "noise",
}
SHARES = ("right", "beyond")
CONTROLS = ("noise of the same norm", "blocks in opposite order", "without block ")


def lines(report: dict) -> Iterator[dict]:
    for graft in report["grafts"]:
        rows, plan = {row["name"]: row for row in graft["results"]}, graft["plan"]
        positions = plan.get("positions") or {}  # reports of earlier versions have none
        best = max((name for name in rows if name.startswith(CONTROLS)), key=lambda name: rows[name]["right"])
        first = min((head["host"][0] for head in plan["heads"]), default=0)
        moved = [100 * head["moved"] for head in plan["heads"] if head["host"][0] == first] or [0.0]
        line = {
            "benchmark": "grafts", "donor": graft["donor"], "behaviour": graft["behaviour"], "host": host_name(report["host"]),
            "seed": report["seed"], "prompts": graft["prompts"], "places": graft["places"], "heads": len(plan["heads"]),
            "neurons": sum(each["count"] for each in plan["neurons"]),
            "positions": positions.get("heads"),
            "positions_lost": 100 * positions.get("lost", 0),
            "missing": 100 * max(read["missing"] for read in graft["reads"]),
            "moved_low": min(moved), "moved_high": max(moved), "control": best, "control_right": 100 * rows[best]["right"],
        }  # fmt: skip
        for name, key in ROWS.items():
            row = rows.get(name, {})
            line |= {f"{key}_{one}": 100 * value for one, value in row.items() if one.startswith(SHARES)}
            line |= {f"{key}_kl": row["kl"]} if "kl" in row else {}
        yield line


def host_name(config: dict) -> str:
    """What kind of fresh model a config makes."""
    kind = {"llama": "Llama", "gpt2": "GPT-2", "mistral": "Mistral", "qwen2": "Qwen2"}[config["model_type"]]
    blocks, width = (config.get(new) or config.get(old) for new, old in
                     (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd")))  # fmt: skip
    biases = ", no biases" if config.get("attention_bias") is False else ""
    return f"fresh {kind}, {blocks} blocks, width {width:,}{biases}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, nargs="+", help="graft.json")
    for path in parser.parse_args().report:
        for line in lines(json.loads(path.read_text(encoding="utf-8"))):
            print(json.dumps(line))


if __name__ == "__main__":
    main()
