"""Licence and lineage in a model card: the fields that the Hub reads, and the same in words.

The models are entries of a report's `provenance`, as `stitch.models.provenance.described` gives them.
"""

from collections.abc import Iterable
from typing import Literal

Relation = Literal["merge", "finetune"]  # of the four that the Hub knows; the others are adapter and quantized
FIELDS = ("license", "license_name", "license_link")


def origin_metadata(models: Iterable[dict], relation: Relation) -> dict:
    """The fields on licence and base models of a card's metadata.

    The licence is the one that all models have; `other` where they differ; none where one is unknown. `relation` is merge for
    a model made of parts, finetune for one model with other weights.
    """
    found = _distinct(models)
    base = list(dict.fromkeys(name for one in found for name in one["base_model"]))
    return {**_licence(found), **({"base_model": base, "base_model_relation": relation} if base else {})}


def origin_section(models: Iterable[dict]) -> list[str]:
    """The lines of a card that list the models it was made from, each with its revision and its licence."""
    found = _distinct(models)
    if not found:
        told = "No weights of another model are in it, so nothing decides its licence and this card gives none."
        return ["## Licence", "", told, ""]
    unknown = [_name(one) for one in found if one["license"] is None]
    if unknown:
        told = f"The licence of {' and '.join(unknown)} is unknown, so this card gives none: find it before you share this model."
    elif _common(found) is None:
        told = "They have different licences, so this card gives `other`: each holds for what was taken from its model."
    else:
        told = (
            "This card gives the licence that all of them have." if len(found) > 1 else "This card gives its licence."
        )
    return ["## Made from", "", *(f"- {entry(one)}" for one in found), "", told, ""]


def _distinct(models: Iterable[dict]) -> list[dict]:
    return list({(one["name"], one["revision"]): one for one in models}.values())


def _licence(models: list[dict]) -> dict:
    if not models or any(one["license"] is None for one in models):
        return {}
    common = _common(models)
    return {"license": "other"} if common is None else common


def _common(models: list[dict]) -> dict | None:
    """The licence that all models have; None where they differ. Two that are both called `other` differ, unless by name."""
    first, *others = [one["license"] for one in models]
    if not others:
        return first
    identity = (first["license"], first.get("license_name"))
    if identity == ("other", None) or any((one["license"], one.get("license_name")) != identity for one in others):
        return None
    return {
        field: first[field]
        for field in FIELDS
        if field in first and all(one.get(field) == first[field] for one in others)
    }


def entry(model: dict) -> str:
    """A model with its revision, its licence, and what it was made from where it is not on the Hub."""
    licence = model["license"]
    shown = "licence unknown" if licence is None else _shown(licence)
    return f"{_name(model)}{_revision(model)}: {shown}{_after(model)}"


def _name(model: dict) -> str:
    if model["kind"] != "hub":
        return model["name"]
    [repository] = model["base_model"]
    return f"[{repository}](https://huggingface.co/{repository}/tree/{model['revision']})"


def _revision(model: dict) -> str:
    if model["revision"] is None:
        return ""
    return f" at revision `{model['revision']}`" if model["kind"] == "hub" else f" (SHA-256 `{model['revision']}`)"


def _shown(licence: dict) -> str:
    kind = licence["license"]
    name = licence.get("license_name") or (kind if isinstance(kind, str) else ", ".join(kind))
    return f"[{name}]({licence['license_link']})" if "license_link" in licence else name


def _after(model: dict) -> str:
    """The models on the Hub that a model which is not there was made from."""
    if model["kind"] == "hub" or not model["base_model"]:
        return ""
    return f"; made from {', '.join(model['base_model'])}"
