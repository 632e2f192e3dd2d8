"""The browser of matched features, and how well the matching works beside its control, from the content of features.json."""

from stitch.pages.chart import FLUID, Chart, axis, colour, roles_in, tips
from stitch.pages.embedded import script_json
from stitch.pages.section import Section

MOST = 1_750_000  # bytes of the browser's data: with the scripts and the rest the page stays below 3 MB
PLAIN = 20  # pairs in the table for readers without JavaScript
STEPS = 20  # of the histogram of correlations


def features_section(features: dict, models: dict[str, str], tokens: int) -> Section:
    """The section. `features` is the content of features.json, `tokens` the number of tokens that features were counted on."""
    data = browser_data(features, models, tokens)
    shown, others = len(data["pairs"]), data["left_out"]
    words = [
        "Two features are matched when their codes go up and down on the same tokens. The background of a token is the code of "
        "the feature that the text was chosen for, the line below it the code of its partner. A frame marks the token with the "
        "highest code. Hover over a token for both numbers.",
        f"Here are the {shown:,} pairs with the highest correlation."
        + (f" {others:,} others are in features.json." if others else ""),
    ]
    return Section(
        name="features",
        heading="Matched features",
        words=words,
        charts=[correlations(features)],
        template="features.html.j2",
        data={
            "features": data,
            "plain": [_plain(pair, data["pieces"]) for pair in data["pairs"][:PLAIN]],
            "script": "features.js",
        },
    )


def browser_data(features: dict, models: dict[str, str], tokens: int, most: int = MOST) -> dict:
    """What the page's script reads: as many of the best pairs as fit into `most` bytes, with each B feature's nearest of A."""
    nearest = {
        one["feature"]: [[near["feature"], near["correlation"]] for near in one["strongest"]] for one in features["b"]
    }
    pairs = [{**pair, "strongest": nearest[pair["b"]]} for pair in features["pairs"]]
    left = most - len(script_json(features["pieces"]).encode())
    kept = 0
    for pair in pairs:
        left -= len(script_json(pair).encode()) + 1
        if left < 0:
            break
        kept += 1
    return {
        "pairs": pairs[:kept],
        "pieces": features["pieces"],
        "left_out": features["left_out"] + len(pairs) - kept,
        "models": [models["a"], models["b"]],
        "tokens": tokens,
    }


def correlations(features: dict) -> Chart:
    """How many matched pairs have which correlation, beside the best of some random partners."""
    matches = [one["match"] for one in features["b"] if one["match"]]
    values = []
    for role, label, key in (("composite", "matched", "score"), ("null", "control", "null_score")):
        counts = [0] * STEPS
        for match in matches:
            counts[min(STEPS - 1, max(0, int(match[key] * STEPS)))] += 1
        values += [
            {"label": label, "role": role, "from": step / STEPS, "to": (step + 1) / STEPS, "pairs": count}
            for step, count in enumerate(counts)
        ]
    spec = {
        "data": {"values": values},
        **FLUID,
        "height": 160,
        "mark": {"type": "bar", "opacity": 0.75, "binSpacing": 1},
        "encoding": {
            "x": {**axis("from", "correlation of the two features' codes"), "bin": {"binned": True, "step": 1 / STEPS}},
            "x2": {"field": "to"},
            "y": {"field": "pairs", "type": "quantitative", "title": "pairs", "stack": None},
            **colour(roles_in(values)),
            "tooltip": tips(("label", "", ""), ("from", "from", ".2f"), ("to", "to", ".2f"), ("pairs", "pairs", ",")),
        },
    }
    note = "Matched pairs, and as a control the best of some random partners of the same features."
    names = {"composite": "matched pairs", "null": "random partners"}
    title = f"Correlations of {len(matches):,} matched pairs"
    return Chart(
        name="correlations", title=title, spec=spec, roles=roles_in(values), names=names, shaped=False, note=note
    )


def _plain(pair: dict, pieces: list[str]) -> dict:
    """A pair as a line of text: where B's feature fires most."""
    contexts = [pair["contexts"][number] for number in pair["top"][1][:1]]
    text = "".join(pieces[token] for context in contexts for token in context["tokens"])
    return {
        "b": pair["b"],
        "a": pair["a"],
        "score": f"{pair['score']:.3f}",
        "null_score": f"{pair['null_score']:.3f}",
        "text": text,
    }
