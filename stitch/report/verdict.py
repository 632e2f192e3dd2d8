"""The verdict on a composite in one sentence: on the frontier, level with an alternative, or dominated by one."""

from stitch.translation.rows import ROWS


def verdict_sentence(report: dict) -> str:
    """The sentence that a report begins with, made from its "verdict", "alternatives" and "models".

    Where a model wrote the text that decides, the sentence says so first: it is the best of all on that.
    """
    written = report.get("provenance", {}).get("text", {}).get("written")
    return (f"Text written by {written['model']}. " if written else "") + _sentence(report) + _not_tried(report)


def _sentence(report: dict) -> str:
    found = report["verdict"]
    if not found["rivals"]:
        return "On the frontier by its cost: no alternative was found with at most its FLOPs and bytes."
    name = named(found["row"], report)
    price = f"with {found['flops']:.2f} of its FLOPs and {found['bytes']:.2f} of its bytes"
    if found["status"] == "level":
        spread = f"{found['ce_low']:+.3f} to {found['ce_high']:+.3f}"
        cost = f"{found['flops']:.2f} of the FLOPs and {found['bytes']:.2f} of the bytes of the composite"
        return f"Level with {name}, which takes {cost}: the difference is {found['ce']:+.3f} nats ({spread})."
    low, high = sorted((abs(found["ce_low"]), abs(found["ce_high"])))
    nats = f"by {abs(found['ce']):.3f} nats ({low:.3f} to {high:.3f})"
    if found["status"] == "dominated":
        return f"Dominated: {name} is better {nats} {price}."
    return f"On the frontier: the best alternative with at most its FLOPs and bytes is worse {nats}. It is {name}, {price}."


def _not_tried(report: dict) -> str:
    """The alternatives that `brief` left out, where one of them might change the verdict.

    LinearPatch keeps a matrix of its own, so that it is never within the cost.
    """
    is_brief = report.get("provenance", {}).get("settings", {}).get("brief")
    if not is_brief or report["verdict"].get("status") == "dominated":
        return ""
    same = report["models"]["a"] == report["models"]["b"]
    rows = [row for row in ROWS if same or not row.one_model]
    never = {*report.get("not_made", {}), "reference:linear-patch", *(["reference:b-skip"] if same else [])}
    names = [
        row.name for row in rows if row.alternative and not (row.brief or row.across_tokenizers or row.name in never)
    ]
    return f" Not tried, as the report is brief: {', '.join(names)}." if names else ""


def named(row: str, report: dict) -> str:
    """An alternative in words, with its row."""
    models, site = report["models"], report["site"]
    words = {
        "a": models["a"],
        "b": models["b"],
        "null:no-source": f"{models['b']} from block {site['b']} on with look-ups alone",
        **report["alternatives"],
    }
    return f"{words[row]} ({row})" if row in words else row
