"""The report of a stitch: one dict, what a terminal shows of it, and the model card it makes."""

import json

from stitch.files.markdown import loading_example, markdown_table
from stitch.report import chain as chain_report

COLUMNS = ["", "CE", "95 % interval", "perplexity", "KL to B", "top-1"]


def table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of the result table."""
    of_chain = chain_report.rows(report["chain"]) if "chain" in report else []
    rows = [[_label(row["name"], report), *_cells(row)] for row in (*of_chain, *report["results"])]
    return COLUMNS, rows, title(report)


def title(report: dict) -> str:
    if "site" not in report:
        return f"{report['models']['a']} on {report['tokens']['report']:,} held-out tokens"
    if native := report.get("native"):
        return (
            f"{report['models']['a']} without blocks {report['site']['a']} to {report['site']['b'] - 1}, {native['blocks']} of "
            f"{native['of']} left; {report['tokens']['report']:,} held-out tokens, nats per token"
        )
    if chain := report.get("chain"):
        return f"{chain_report.title(chain)}; {report['tokens']['report']:,} held-out tokens, nats per token"
    return (
        f"{report['models']['a']} up to block {report['site']['a']}, then {report['models']['b']} from block "
        f"{report['site']['b']}; {report['tokens']['report']:,} held-out tokens, nats per token"
    )


def _label(name: str, report: dict) -> str:
    if name == "composite":
        return f"{name} ({report['chosen']})"
    return chain_report.label(name, report["chain"]) if "chain" in report else name


def _cells(row: dict) -> list[str]:
    def show(key: str, form: str) -> str:
        value = row.get(key)
        return "" if value is None else format(value, form)

    interval = "" if row.get("ce_low") is None else f"{row['ce_low']:.3f} – {row['ce_high']:.3f}"
    perplexity = "" if row.get("ppl") is None else f"{row['ppl']:,.1f}" if row["ppl"] < 1e5 else f"{row['ppl']:.1e}"
    return [show("ce", ".3f"), interval, perplexity, show("kl_to_b", ".3f"), show("top1", ".1%")]


def footnotes(report: dict) -> list[str]:
    """The sentences below the table: what was chosen and how the differences stand, with their paired intervals."""
    lines = chain_report.footnotes(report["chain"]) if "chain" in report else []
    if choice := report.get("layer_choice"):
        tried = ", ".join(f"{item['b']}: {item['ce']:.3f}" for item in choice["layers"] if item["ce"] is not None)
        lines.append(
            f"Layer of B: {choice['b']}, chosen on the sweep split" + (f" (CE by layer {tried})" if tried else "") + "."
        )
    for item in report.get("saes", []):
        lines.append(
            f"SAE at {item['site']}: {item['features']:,} features, FVU {item['fvu']:.3f}, L0 {item['l0']:.1f}, "
            f"{item['dead']:.1%} dead, cross-entropy with it spliced in {item['spliced_ce']:.3f}."
        )
    if found := report.get("matching"):
        lines.append(
            f"Matching: {found['pairs']:,} pairs, mean correlation {found['mean_score']:.3f}; best random alternative "
            f"{found['null_mean_score']:.3f}. Their sum is at most {found['gap']:.4%} below that of the best matching there is."
        )
    if found := report.get("left_out"):
        lines.append(f"Left out, because they need more than `memory`: {', '.join(found)}.")
    for item in report.get("differences", []):
        lines.append(
            f"{item['name']} − {item['minus']}: {item['ce']:+.3f} nats ({item['ce_low']:+.3f} to {item['ce_high']:+.3f}, paired)."
        )
    return lines


def model_card(report: dict) -> bytes:
    """README.md of the composite, its metadata block holding a model-index that the Hub reads."""
    a, b = donors = report["models"]["a"], report["models"]["b"]
    composite = next(row for row in report["results"] if row["name"] == "composite")
    dataset = report["provenance"]["settings"]["text"]
    if native := report.get("native"):
        name = f"{a} with {native['blocks']} of {native['of']} blocks"
        made = (
            f"{a} without blocks {report['site']['a']} to {report['site']['b'] - 1}, the hole bridged by weights refitted in "
            f"closed form ({report['chosen']}). A stock {native['family']}; no weight was fine-tuned."
        )
    elif chain := report.get("chain"):
        donors = [part["model"] for part in chain["parts"]]
        name, made = " × ".join(donors), chain_report.made(chain)
    else:
        name = f"{a} × {b}"
        made = (
            f"The first {report['site']['a']} blocks of {a}, a translation ({report['chosen']}) fitted in closed form, and "
            f"the blocks of {b} from {report['site']['b']} on. No weight was fine-tuned."
        )
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["stitch", "model-stitching", "merge"],
        "base_model": [name for name in dict.fromkeys(donors) if "/" in name and not name.startswith((".", "/"))],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "text-generation", "name": "Language modelling"},
                        "dataset": {"type": dataset, "name": f"{dataset}, report split"},
                        "metrics": [
                            {"type": "perplexity", "value": round(composite["ppl"], 4), "name": "Perplexity"},
                            {
                                "type": "cross-entropy",
                                "value": round(composite["ce"], 4),
                                "name": "Cross-entropy, nats per token",
                            },
                        ],
                    }
                ],
            }
        ],
    }
    if not metadata["base_model"]:
        del metadata["base_model"]
    header, rows, caption = table(report)
    lines = ["---", json.dumps(metadata, indent=2, ensure_ascii=False), "---", ""]  # JSON is YAML
    lines += [f"# {name}", ""]
    lines += [
        made,
        "",
        *loading_example(remote_code=not native),
        "",
        f"## What it is worth ({caption})",
        "",
        *markdown_table(header, rows),
        "",
        *(f"- {line}" for line in footnotes(report)),
        "",
        "`report.json` holds the same with settings and versions. Made with [stitch-lm](https://pypi.org/project/stitch-lm/).",
        "",
    ]
    return "\n".join(lines).encode()
