"""What made the numbers of a report."""

import hashlib
import importlib.metadata
import json
import platform

from stitch.config import Settings
from stitch.models import Model
from stitch.sources import Source


def provenance(settings: Settings, a: Model, b: Model, sources: dict[str, Source]) -> dict:
    """What made the numbers: settings, revisions, tokenizer, attention kernels, versions."""
    vocabulary = json.dumps(b.tokenizer.get_vocab(), sort_keys=True).encode()
    return {
        "settings": settings.to_dict(),
        "models": {
            side: {
                "name": sources[side].name,
                "kind": sources[side].kind,
                "revision": sources[side].revision,
                "attention": model.config._attn_implementation,
            }
            for side, model in (("a", a), ("b", b))
        },
        "tokenizer_sha256": hashlib.sha256(vocabulary).hexdigest(),
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("stitch-lm", "torch", "transformers", "sae-lens", "scipy", "safetensors")
            },
        },
        "device": str(a.device),
    }
