"""Where an SAE belongs: the model and the hook that it was trained on, as it says itself."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sae.storage import read_provenance

if TYPE_CHECKING:
    import sae_lens


@dataclass(frozen=True)
class Attachment:
    """Names of the model and of the hook, spelt as whoever saved the SAE spelt them; None where it has no name."""

    model: str | None
    hook: str | None


def attachment(sae: "sae_lens.SAE", source: str | Path) -> Attachment:
    """What SAELens's metadata of `sae` say, and where they say nothing, what `save` recorded in the folder `source`.

    SAELens fills the metadata of published SAEs and of older folders, whose names stand elsewhere. `hf_hook_name` is the name
    of a module in transformers.
    """
    metadata, folder = sae.cfg.metadata, Path(source)
    recorded = (read_provenance(folder) if folder.is_dir() else None) or {}
    return Attachment(
        model=_text(metadata.get("model_name")) or _text(recorded.get("model")),
        hook=_text(metadata.get("hook_name")) or _text(metadata.get("hf_hook_name")) or _text(recorded.get("site")),
    )


def name_on_the_hub(name: str) -> str | None:
    """The Hub's name of a model that TransformerLens knows under `name`, with or without the user: gpt2 for gpt2-small.

    None for a name that it does not know.
    """
    return _names_on_the_hub().get(name.lower())


@cache
def _names_on_the_hub() -> dict[str, str]:
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    found = {}
    for official in OFFICIAL_MODEL_NAMES:
        for name in (official, official.rpartition("/")[2], *MODEL_ALIASES.get(official, [])):
            found.setdefault(name.lower(), official)
    return found


def _text(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None
