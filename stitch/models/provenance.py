"""What made the numbers of a report."""

import hashlib
import importlib.metadata
import json
import platform

from stitch.models.model import Model
from stitch.models.sources import Source


def provenance(settings: dict, a: Model, b: Model, sources: dict[str, Source]) -> dict:
    """What made the numbers of a pair: settings, revisions, tokenizer, attention kernels, versions."""
    return surroundings(settings, {"a": (a, sources["a"]), "b": (b, sources["b"])})


def surroundings(settings: dict, models: dict[str, tuple[Model, Source]]) -> dict:
    """The same for any number of models that share a tokenizer, by what they are called."""
    last = list(models.values())[-1][0]
    vocabulary = json.dumps(last.tokenizer.get_vocab(), sort_keys=True).encode()
    return {
        "settings": settings,
        "models": {
            side: {
                "name": source.name,
                "kind": source.kind,
                "revision": source.revision,
                "attention": model.config._attn_implementation,
            }
            for side, (model, source) in models.items()
        },
        "tokenizer_sha256": hashlib.sha256(vocabulary).hexdigest(),
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("stitch-lm", "torch", "transformers", "sae-lens", "scipy", "safetensors")
            },
        },
        "device": str(last.device),
    }
