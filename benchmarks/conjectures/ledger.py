"""The ledger: one JSON line for each of the project's 28 founding conjectures, made from results and from the answers of pages.

    python benchmarks/conjectures/ledger.py > benchmarks/results/ledger.jsonl

Measures nothing. Verdicts of the conjectures that have a script here are those of its lines, by the rule in its head.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from _lines import read  # noqa: E402 (found by the line above)

RESULTS, PAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "findings"
UNNUMBERED = "1, 2, 6–9, 11, 24"  # the numbers of the eight below; which is whose is not in the project's records


@dataclass(frozen=True)
class Entry:
    """`numbers` are places in the founding list. `evidence` gives the numbers as a sentence, from results or from a page."""

    numbers: str
    claim: str
    verdict: str
    evidence: Callable[[], str]
    documents: Callable[[], str] = lambda: ""
    page: str = ""
    script: str = ""  # in `benchmarks/conjectures`

    @property
    def more(self) -> str:
        """Links to limits and to how it is rerun: those of its page, or of the page of all, and the script."""
        if self.page:
            return f"[limits]({self.page}.md#limits), [rerun]({self.page}.md#rerun)"
        return f"[limits](#limits), `{self.script}.py`" if self.script else ""


def lines(conjecture: str, file: str = "conjectures") -> list[dict]:
    return [line for line in read(RESULTS / f"{file}.jsonl") if line["conjecture"] == conjecture]


def answer(page: str) -> Callable[[], str]:
    """The answer of a page: its second paragraph."""
    return lambda: (PAGES / f"{page}.md").read_text().split("\n\n", 2)[1]


def signed(found: dict) -> str:
    return f"{found['ce']:+.4f} ({found['ce_low']:+.4f} to {found['ce_high']:+.4f})".replace("-", "−")


def verdicts(conjecture: str) -> str:
    """ "refuted", or by model where they differ: "refuted (demo:gpt2, smollm2), partly (demo:llama)"."""
    by: dict[str, list[str]] = {}
    for line in lines(conjecture):
        by.setdefault(line["verdict"], []).append(line["model"])
    if len(by) == 1:
        return next(iter(by))
    return ", ".join(f"{verdict} ({', '.join(models)})" for verdict, models in by.items())


def each(conjecture: str, told: Callable[[dict], str]) -> str:
    return "; ".join(f"{line['model']}: {told(line)}" for line in lines(conjecture))


def counted(conjecture: str) -> str:
    found = sorted({line["documents"] for line in lines(conjecture) if "documents" in line})
    return "" if not found else str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def keys() -> str:
    def told(line: dict) -> str:
        dropped = next(row for row in line["rows"] if row["keys"] == 16 and row["others"] == "dropped")
        return f"{signed(line)}, dropped {dropped['ce']:+.3f}".replace("-", "−")

    return f"nats with 16 exact keys per query and the others averaged: {each('keys', told)}"


def far() -> str:
    return "far heads that prefer rare tokens: " + each(
        "far_heads", lambda line: f"{line['enriched']} of {line['far']} (median {line['median']:.2f} times)"
    )


def outliers() -> str:
    def told(line: dict) -> str:
        found = {row["statistic"]: row for row in line["rows"] if row["cost"] == "bridged"}
        return f"ρ {found['top_share']['rho']:+.2f} (p {found['top_share']['p']:.2f}), {line['cuts']} cuts".replace(
            "-", "−"
        )

    return f"top channel's share of the variance against the cost of a bridged cut: {each('outliers', told)}"


def binding() -> str:
    return "overlap of two heads' maps, and of random ones with the same spectrum: " + each(
        "rotation_binding", lambda line: f"{line['crosstalk']:.3f}, {max(line['null']['crosstalk']):.3f}"
    )


def products() -> str:
    return "products of two minus ReLU features, nats: " + each(
        "multilinear",
        lambda line: (
            f"{signed(line['bilinear_minus_relu'])}, classes minus random ones {signed(line['classes_minus_random'])}"
        ),
    )


def row_of(line: dict, arm: str) -> dict:
    (found,) = [row for row in line["rows"] if row["arm"] == arm]
    return found


def prepared() -> str:
    """What the readout tells answers apart by has of the cue; and of the stream at a language model's middle site."""

    def told(line: dict) -> str:
        row = row_of(line, "trained")
        value, low, high = row["read"]
        return f"{value:.2f} ({low:.2f} to {high:.2f}; chance {row['chance'][0]:.2f})"

    def of_stream(line: dict) -> str:
        site = line["sites"][len(line["sites"]) // 2]
        return f"{site['read']:.2f} (chance {site['read_by_chance']:.2f})"

    return (
        "share of what holds the answer, while it waits, that the readout sees: "
        f"{each('output_null', told)}; of the stream at the middle site: {each('outliers', of_stream)}"
    )


def eigenvalues() -> str:
    (line,) = lines("spectral")

    def told(arm: str) -> str:
        seeds = [row for row in line["rows"] if row["arm"] == arm]
        grown = sum(row["growth"] is None or row["growth"] > 10 for row in seeds)
        right = sum(row["accuracy"] for row in seeds) / len(seeds)
        return f"{arm}: {grown} of {len(seeds)} diverge, {right:.0%} right"

    arms = ("diagonal, inside", "diagonal, free", "dense, inside", "dense, free")
    return "over 10,000 steps, and symbols recalled: " + "; ".join(map(told, arms))


def of_no_text() -> dict:
    from no_text import verdict

    return verdict([line for line in read(RESULTS / "no_text.jsonl") if "minus_real" in line])


def no_text() -> str:
    found = [
        line["minus_real"][writer]
        for line in read(RESULTS / "no_text.jsonl")
        if "minus_real" in line
        for writer in ("by A", "by B")
    ]
    worse = sum(low > 0.01 for _, low, _ in found)
    most = max(value for value, _, _ in found)
    return (
        f"written minus people's text: more than 0.01 nats worse in {worse} of {len(found)} cells, at most {most:+.3f}"
    )


def routes() -> str:
    wanted = {"name": "null:random-routes", "minus": "translation:routed"}
    (line,) = [one for one in read(RESULTS / "main_job.jsonl") if wanted.items() <= one.items()]
    found = " and ".join(signed(line[direction]) for direction in ("gpt2-llama", "llama-gpt2"))
    (forgotten,) = lines("random_routing")

    def told(other: str) -> str:
        value, low, high = forgotten["random_minus"][other]
        return f"{other.removeprefix('null:')} {value:+.3f} ({low:+.3f} to {high:+.3f})".replace("-", "−")

    return (
        f"nats forgotten per nat learned, random minus {', '.join(map(told, forgotten['random_minus']))}; "
        f"as look-ups, random minus learned classes, nats: {found}"
    )


def arms() -> dict[str, dict]:
    return {line["arm"]: line for line in read(RESULTS / "traces.jsonl")}


def of_traces() -> str:
    """The first two rules in the head of `traces.py`, and how adversarial training does by the measure of the second."""
    found = arms()
    remains = found["unlearned"]["after_start"][1] > 0
    removed = any(found[arm]["savings"][1] <= 0 for arm in ("distilled from never", "distilled from itself"))
    first = "a trace remains" if remains else "no trace is clear"
    second = "distillation removes it" if removed else "distillation does not remove it"
    against = found["against relearning"]
    reduced = against["savings"][2] < found["unlearned"]["savings"][1]
    third = f"adversarial training {'reduces it' if reduced else 'does not reduce it'}"
    return f"{first}; {second}; {third}"


def traces() -> str:
    found = arms()

    def told(arm: str) -> str:
        value, low, high = found[arm]["savings"]
        return f"{arm} {value:+.2f} ({low:+.2f} to {high:+.2f})".replace("-", "−")

    return "savings in nats · steps: " + ", ".join(
        map(told, ("unlearned", "distilled from itself", "against relearning", "undone"))
    )


ENTRIES = [
    Entry(
        UNNUMBERED,
        "A behaviour can be written into a freshly initialised model of another architecture.",
        "holds",
        answer("grafts"),
        lambda: "prompts",
        "grafts",
    ),
    Entry(
        UNNUMBERED,
        "A finite automaton's definition converts to transformer weights.",
        "holds",
        answer("compiled"),
        lambda: "strings",
        "compiled",
    ),
    Entry(
        UNNUMBERED,
        "An intended attention pattern converts to query-key weights and positions.",
        "partly",
        answer("compiled-precision"),
        lambda: "no text",
        "compiled-precision",
    ),
    Entry(
        UNNUMBERED,
        "Shallow transformers with induction heads are stored-program machines.",
        "holds",
        answer("long-trace"),
        lambda: "runs",
        "long-trace",
    ),
    Entry(
        UNNUMBERED,
        "Multi-head attention contracts to multi-query attention by SVD.",
        "partly",
        answer("convert-heads"),
        lambda: "110",
        "convert-heads",
    ),
    Entry(
        UNNUMBERED,
        "A transformer converts to a recurrent network with fast weights.",
        "partly",
        answer("convert-recurrent"),
        lambda: "110 to 175",
        "convert-recurrent",
    ),
    Entry(
        UNNUMBERED,
        "Fast weights convert to slow weights.",
        "partly",
        answer("convert-consolidate"),
        lambda: "24 to 57",
        "convert-consolidate",
    ),
    Entry(
        UNNUMBERED,
        "Early layers convert to an explicit n-gram memory.",
        "partly",
        answer("convert-ngram"),
        lambda: "110 to 121",
        "convert-ngram",
    ),
    Entry(
        "3, 10",
        "What attention scores say of all but the strongest keys is noise.",
        verdicts("keys"),
        keys,
        lambda: counted("keys"),
        "keys-that-matter",
    ),
    Entry(
        "4",
        "Products of features hold what linear maps miss.",
        verdicts("multilinear"),
        products,
        lambda: counted("multilinear"),
        script="multilinear",
    ),
    Entry(
        "5",
        "Heads that look far look at rare, specific tokens.",
        verdicts("far_heads"),
        far,
        lambda: counted("far_heads"),
        "keys-that-matter",
    ),
    Entry("12", "A prediction for 2033.", "not tested", lambda: "there is nothing to measure yet"),
    Entry(
        "13, 17",
        "Layers of two models, joined without training, are worth their cost.",
        "refuted on one pair",
        answer("seam-bytes"),
        lambda: "110",
        "seam-bytes",
    ),
    Entry(
        "14",
        "Value maps are near-orthogonal, so one read tells heads apart.",
        verdicts("rotation_binding"),
        binding,
        lambda: "weights",
        script="rotation_binding",
    ),
    Entry(
        "15",
        "Sites with outlier channels are bad sites to cut.",
        verdicts("outliers"),
        outliers,
        lambda: counted("outliers"),
        "outliers",
    ),
    Entry("16", "A link to a paper.", "not tested", lambda: "there is nothing to measure"),
    Entry(
        "18, 26",
        "What prepares later tokens is hidden from the output.",
        verdicts("output_null"),
        prepared,
        lambda: counted("outliers"),
        "outliers",
    ),
    Entry(
        "19",
        "Training on corrupted trajectories teaches to correct them.",
        "not tested",
        lambda: "needs preference training, which is no tool of this kit",
    ),
    Entry(
        "20",
        "A trace remains of what was unlearned, and only adversarial training removes it.",
        of_traces(),
        traces,
        lambda: str(arms()["unlearned"]["documents"]),
        script="traces",
    ),
    Entry(
        "21",
        "Backdoors cannot be found by testing behaviour.",
        "not tested",
        lambda: "a theorem (Goldwasser et al. 2022); planting them is no tool of this kit",
    ),
    Entry(
        "22",
        "No text is needed: what a model writes is as good to fit on.",
        of_no_text()["verdict"],
        no_text,
        lambda: str(min(line["documents"] for line in read(RESULTS / "no_text.jsonl") if "documents" in line)),
        "what-failed",
    ),
    Entry(
        "23",
        "Random routing separates patterns as well as learned routing.",
        verdicts("random_routing"),
        routes,
        lambda: counted("random_routing"),
        "look-ups",
    ),
    Entry("25", "Visual counting.", "not tested", lambda: "no model that sees is converted here"),
    Entry(
        "27",
        "Recurrent networks with eigenvalues inside the unit circle stay stable.",
        verdicts("spectral"),
        eigenvalues,
        lambda: "no text",
        script="spectral",
    ),
    Entry(
        "28",
        "Tokens that mark interventions teach causal effects.",
        "not tested",
        lambda: "needs training on made-up data, which is no tool of this kit",
    ),
]


def main() -> None:
    for entry in ENTRIES:
        print(json.dumps({
            "numbers": entry.numbers, "claim": entry.claim, "verdict": entry.verdict, "evidence": entry.evidence(),
            **({"documents": found} if (found := entry.documents()) else {}),
            **({"page": f"[{entry.page}]({entry.page}.md)"} if entry.page else {}),
            **({"more": entry.more} if entry.more else {}),
        }, ensure_ascii=False))  # fmt: skip


if __name__ == "__main__":
    main()
