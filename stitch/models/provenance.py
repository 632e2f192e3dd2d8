"""The part of every report that makes its numbers reproducible: settings, model revisions, tokenizer, versions, device."""

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from stitch.modeling.modeling_composite import parts_of
from stitch.models import hub
from stitch.models.donor_code import brings_code
from stitch.models.identity import weights_hash
from stitch.models.lineage import lineage
from stitch.models.model import Model
from stitch.models.sources import Source

PACKAGES = ("stitch-lm", "torch", "transformers", "sae-lens", "scipy", "safetensors")


def provenance(settings: dict, a: Model, b: Model, sources: dict[str, Source]) -> dict:
    """The provenance of a report on a pair of models; `sources` has the keys "a" and "b"."""
    return surroundings(settings, {"a": (a, sources["a"]), "b": (b, sources["b"])})


def surroundings(settings: dict, models: dict[str, tuple[Model, Source]]) -> dict:
    """The provenance of a report on any number of models that share a tokenizer; `models` by their role in the report."""
    last = list(models.values())[-1][0]
    return {
        "settings": settings,
        "models": {
            role: {
                **described(source),
                **_note(model, source),
                "width": model.width,
                "attention": model.config._attn_implementation,
            }
            for role, (model, source) in models.items()
        },
        "tokenizer_sha256": hash_of(last.tokenizer),
        "versions": versions(),
        "device": str(last.device),
    }


def hash_of(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's vocabulary."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a result."""
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }


def described_sae(name: str) -> dict:
    """The same of an SAE: a folder, or a release on the Hub, whose card is asked for."""
    from sae.storage import repository_of

    repository = repository_of(name)
    if repository is None:
        return described(Source(name, Path(name), None, "folder"))
    found = hub.card(repository)
    if found is None:
        return {"name": name, "kind": "hub", "revision": None, "license": None, "base_model": [repository]}
    folder, commit = found
    return {**described(Source(repository, folder, commit, "hub")), "name": name}


def _note(model: Model, source: Source) -> dict:
    """What is left of the model and what was done to its weights, as a part of a sentence; nothing for a model used as it is."""
    found = [source.note]
    if source.note is None and not model.anatomy.tested and len(model.parts) == 1 and model.flow["idle"]:
        found.append(f"its text part alone, without {', '.join(model.flow['idle'])}")
    if any(brings_code(part) for part in parts_of(model.config)):
        found.append("it brings code of its own, which is copied with it and runs when it is loaded")
    return {"note": told} if (told := ", ".join(filter(None, found))) else {}


def described(source: Source) -> dict:
    """A model as a report has it: its name, where it is from, its revision, its licence and the models it comes from.

    A folder has no revision, but the hash of its files. It is remembered, so that it is not worked out twice.
    """
    of_files = {"weights_sha256": weights_hash(source.folder)} if source.kind == "folder" else {}
    return {"name": source.name, "kind": source.kind, "revision": source.revision, **of_files, **lineage(source)}
