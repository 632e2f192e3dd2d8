"""`stitch inspect --sites`: the report on the residual stream at every site, its table and its warnings."""

from collections.abc import Sequence

import torch

from stitch.errors import UsageError
from stitch.files.sizes import size_in_words
from stitch.layers.sites import LONG, READ, has_final_norm, measure_sites
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.models.provenance import surroundings
from stitch.models.sources import Source
from stitch.progress import Progress
from stitch.text.windows import Windows

FEW_CHANNELS = 0.25  # of the variance in one channel
LONG_FIRST = 30.0  # times the length of other tokens


def sites_report(
    model: Model,
    source: Source,
    windows: Windows,
    asked: dict,
    *,
    seed: int = 0,
    memory: int = 2**30,
    progress: Progress | None = None,
) -> dict:
    """What the stream is like at every site where `model` can be cut, but its last where it has no final norm.

    Raises: UsageError for too little `memory`, in bytes; StitchError for streams that are not finite.
    """
    sites = range(blocks_before_last_part(model.config), model.depth + has_final_norm(model))
    needed = 8 * len(sites) * 2 * model.width**2
    if needed > memory:
        raise UsageError(
            f"memory must hold the covariances of the stream at {len(sites)} sites, {size_in_words(needed)}; got "
            f"{size_in_words(memory)}: raise it."
        )
    found = measure_sites(model, windows, sites, seed=seed, progress=progress)
    owners = torch.bincount(windows.document.flatten().long())
    return {
        "models": {"a": model.name},
        "tokens": {"report": windows.tokens},
        "documents": {"number": int((owners > 0).sum())},
        "context": windows.context,
        "sites": found,
        "provenance": {**surroundings(asked, {"a": (model, source)}), **windows.provenance},
    }


def lead(report: dict) -> str:
    """The sentence that matters most."""
    name, sites = report["models"]["a"], report["sites"]
    sharp, long = _with_few_channels(sites), _with_long_first(sites)
    if not sharp and not long:
        return f"{name} has no site with an outlier channel, and none where a window's first token is a sink."
    told = []
    if sharp:
        worst = max(sharp, key=lambda one: one["top_share"])
        told.append(
            f"one channel has over {FEW_CHANNELS:.0%} of the variance at {_listed(sharp)} (channel {worst['top_channel']} has "
            f"{worst['top_share']:.0%} at site {worst['site']})"
        )
    if long:
        worst = max(long, key=lambda one: one["first_token"])
        told.append(
            f"a window's first token is a sink at {_listed(long)} ({worst['first_token']:.0f} times as long as other tokens at "
            f"site {worst['site']})"
        )
    return f"{name}: {', and '.join(told)}."


def _with_few_channels(sites: Sequence[dict]) -> list[dict]:
    return [one for one in sites if one["top_share"] > FEW_CHANNELS]


def _with_long_first(sites: Sequence[dict]) -> list[dict]:
    return [one for one in sites if one["first_token"] > LONG_FIRST]


def _listed(sites: Sequence[dict]) -> str:
    """ "site 3", "sites 3 to 9 and 12"."""
    runs: list[list[int]] = []
    for one in sites:
        if runs and runs[-1][-1] == one["site"] - 1:
            runs[-1].append(one["site"])
        else:
            runs.append([one["site"]])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    words = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{'site' if len(sites) == 1 else 'sites'} {words}"


def table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title: a row per site."""
    rows = [
        [
            str(one["site"]),
            f"{one['top_share']:.3f}",
            f"{one['kurtosis']:,.1f}",
            f"{one['kurtosis_turned']:,.1f}",
            f"{one['first_token']:.1f}",
            f"{100 * one['sinks']:.2f}%",
            f"{one['effective_rank']:.1f} of {one['width']}",
            "" if one["read"] is None else f"{one['read']:.2f}",
        ]
        for one in report["sites"]
    ]
    header = ["site", "top channel", "kurtosis", "turned", "first token", "sinks", "effective rank", "read by the head"]
    count = report["documents"]["number"]
    title = f"{report['models']['a']}, the stream at its sites; {report['tokens']['report']:,} tokens of {count:,} documents"
    return header, rows, title


def footnotes(report: dict) -> list[str]:
    """What the columns are."""
    chance = next((one["read_by_chance"] for one in report["sites"] if one["read_by_chance"] is not None), None)
    by_chance = "" if chance is None else f"; a stream turned at random would have {chance:.2f} there"
    return [
        "top channel: its share of the variance. kurtosis: of all channels in one pool, 3 for a normal distribution; turned: "
        "after a random rotation, which hides outlier channels but not outlier tokens.",
        "first token: median length of the stream at a window's first token, in those of other tokens, which the other columns "
        f"are about; sinks: tokens with over {LONG:.0f} times the median length.",
        "effective rank: (Σλ)² / Σλ² of the covariance's eigenvalues λ. read by the head: share of the variance in the "
        f"directions that hold {READ:.0%} of the head's squared weights{by_chance}.",
    ]
