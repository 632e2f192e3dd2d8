"""What is known of a model's licence and of the models it comes from: what its own card says."""

import re

from stitch.files.front_matter import CARD, read_front_matter
from stitch.models.gguf import HUB
from stitch.models.sources import HUB_NAME, Source

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def lineage(source: Source) -> dict:
    """`license`: {"license": …} with `license_name` and `license_link` where the card has them, or None where it is unknown.

    `base_model`: names on the Hub. A model that is not there itself is represented by those that its card names.
    """
    card = read_front_matter(source.folder / CARD)
    return {"license": _licence(card, source), "base_model": _base_models(card, source)}


def _licence(card: dict, source: Source) -> dict | None:
    given = card.get("license")
    several = [_line(one) for one in (given if isinstance(given, list) else [given]) if isinstance(one, str)]
    if not several or any(one in ("", "unknown") for one in several):  # the Hub has the identifier `unknown`
        return None
    found: dict = {"license": several if isinstance(given, list) else several[0]}
    if name := _line(card.get("license_name")):
        found["license_name"] = name
    if link := _absolute(_line(card.get("license_link")), source):
        found["license_link"] = link
    return found


def _line(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _absolute(link: str, source: Source) -> str:
    """The address of a licence. That of a file beside the card holds for models on the Hub; the file is not copied."""
    if "://" in link or not link:
        return link if re.fullmatch(r"https?://[^\s<>()\[\]]+", link) else ""
    if source.kind != "hub":
        return ""
    return f"{HUB}/{repository(source)}/blob/{source.revision}/{link}"


def repository(source: Source) -> str:
    """The name on the Hub without the revision that was asked for."""
    name = HUB_NAME.fullmatch(source.name)
    return name["repo"] if name else source.name


def _base_models(card: dict, source: Source) -> list[str]:
    if source.kind == "hub":
        return [repository(source)]
    given = card.get("base_model")
    named = [_line(one) for one in (given if isinstance(given, list) else [given])]
    return [name for name in dict.fromkeys(named) if REPOSITORY.fullmatch(name)]
