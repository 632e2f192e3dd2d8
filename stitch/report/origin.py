"""Licence and lineage in a model card: the fields that the Hub reads, and the same in words.

The models are entries of a report's `provenance`, as `stitch.models.provenance.described` gives them. SAEs that were given have
the same keys, and `of`, the model and site that they belong to, and `inside`: whether numbers from their weights are in the new
model.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from stitch.files.markdown import inert
from stitch.files.workspace import short_name

Relation = Literal["merge", "finetune"]  # of the four that the Hub knows; the others are adapter and quantized
FIELDS = ("license", "license_name", "license_link")
LICENCES = "LICENSE.md"  # the name that the Hub looks for


def origin_metadata(models: Iterable[dict], relation: Relation, saes: Sequence[dict] = ()) -> dict:
    """The fields on licence and base models of a card's metadata.

    The licence is the one that all models and the SAEs inside have; none where one is unknown. Where they differ it is `other`,
    with a name made of theirs and a link to `licence_file`. `relation` is merge for a model made of parts, finetune for one model
    with other weights.
    """
    found = _distinct(models)
    base = list(dict.fromkeys(name for one in found for name in one["base_model"]))
    return {
        **_licence([*found, *_inside(saes)]),
        **({"base_model": base, "base_model_relation": relation} if base else {}),
    }


def origin_section(models: Iterable[dict], saes: Sequence[dict] = ()) -> list[str]:
    """The lines of a card that list the models and SAEs it was made from, each with its revision and its licence."""
    listed = _distinct(models)
    found = [*listed, *_inside(saes)]
    if not found:
        told = "No weights of another model are in it, so nothing decides its licence and this card gives none."
        return ["## Licence", "", told, ""]
    unknown = [_name(one) for one in found if one["license"] is None]
    if unknown:
        told = f"The licence of {' and '.join(unknown)} is unknown, so this card gives none: find it before you share this model."
    elif _common(found) is None:
        told = (
            "They have different licences, so this card gives `other`: each holds for what was taken from its model. "
            f"[{LICENCES}]({LICENCES}) lists them."
        )
    else:
        told = (
            "This card gives the licence that all of them have." if len(found) > 1 else "This card gives its licence."
        )
    lines = [*(f"- {entry(one)}" for one in listed), *(f"- {_sae_entry(one)}" for one in saes)]
    return ["## Made from", "", *lines, "", told, ""]


def licence_file(models: Iterable[dict], saes: Sequence[dict] = ()) -> dict[str, bytes]:
    """The file that a card with different licences links to, by its name; nothing for other cards."""
    found = [*_distinct(models), *_inside(saes)]
    if "license" not in _licence(found) or _common(found) is not None:
        return {}
    lines = [f"- {_sae_entry(one) if 'inside' in one else entry(one)}" for one in found]
    told = "This model was made from others. Each licence holds for what was taken from its model."
    return {LICENCES: "\n".join(["# Licences", "", told, "", *lines, ""]).encode()}


def _distinct(models: Iterable[dict]) -> list[dict]:
    return list({(one["name"], one["revision"]): one for one in models}.values())


def _inside(saes: Sequence[dict]) -> list[dict]:
    return [one for one in _distinct(saes) if one["inside"]]


def _licence(models: list[dict]) -> dict:
    if not models or any(one["license"] is None for one in models):
        return {}
    common = _common(models)
    if common is not None:
        return common
    return {"license": "other", "license_name": _joined_name(models), "license_link": LICENCES}


def _joined_name(models: list[dict]) -> str:
    """A name for several licences together, in the characters that the Hub has in names: apache-2.0-and-mit."""
    names = [name for one in models for name in _names(one)]
    return "-and-".join(dict.fromkeys(re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") for name in names))


def _names(model: dict) -> list[str]:
    """The names of a model's licences. One that is called `other` and nothing else is named after the model."""
    licence = model["license"]
    if "license_name" in licence:
        return [licence["license_name"]]
    kinds = licence["license"] if isinstance(licence["license"], list) else [licence["license"]]
    own = model["base_model"][0] if model["kind"] == "hub" else short_name(model["name"])
    return [f"terms of {own}" if kind == "other" else kind for kind in kinds]


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


def _sae_entry(sae: dict) -> str:
    """An SAE by the name that it was given by, with its repository, revision and licence."""
    place = f" in {_name(sae)}{_revision(sae)}" if sae["kind"] == "hub" else ""
    use = "numbers from its weights are in this model" if sae["inside"] else "nothing of it is in this model"
    name = inert(sae["name"]).replace("`", "'")
    return f"the SAE `{name}`{place}, of {inert(sae['of'])}: {_shown_licence(sae)}; {use}"


def entry(model: dict) -> str:
    """A model with its revision, its licence, what it was made from where it is not on the Hub, and what was left of it."""
    note = f"; {inert(model['note'])}" if "note" in model else ""
    return f"{_name(model)}{_revision(model)}: {_shown_licence(model)}{_after(model)}{note}"


def origin_notes(report: dict) -> list[str]:
    """A line for each model of a report of which a part was used, or whose weights were changed before."""
    models = report.get("provenance", {}).get("models", {}).values()
    return [f"{one['name']}: {one['note']}." for one in _distinct(models) if "note" in one]


def _name(model: dict) -> str:
    if model["kind"] != "hub":
        return inert(model["name"])
    [repository] = model["base_model"]
    return f"[{repository}](https://huggingface.co/{repository}/tree/{model['revision'] or 'main'})"


def _revision(model: dict) -> str:
    if model["revision"] is None:
        return ""
    return f" at revision `{model['revision']}`" if model["kind"] == "hub" else f" (SHA-256 `{model['revision']}`)"


def _shown_licence(model: dict) -> str:
    licence = model["license"]
    if licence is None:
        return "licence unknown"
    kind = licence["license"]
    name = licence.get("license_name") or (kind if isinstance(kind, str) else ", ".join(kind))
    return f"[{inert(name)}]({licence['license_link']})" if "license_link" in licence else inert(name)


def _after(model: dict) -> str:
    """The models on the Hub that a model which is not there was made from."""
    if model["kind"] == "hub" or not model["base_model"]:
        return ""
    return f"; made from {', '.join(model['base_model'])}"
