"""Whether the name of a model that an SAE carries means a given model.

The same weights have several names: `gpt2-small` in TransformerLens, `gpt2` and `openai-community/gpt2` on the Hub, and any
local folder. So a name counts as another model's only where both names are known.
"""

import re
from pathlib import Path
from typing import Literal

from sae.attachment import name_on_the_hub
from stitch.models.lineage import lineage
from stitch.models.sources import HUB_NAME, PACKAGED, Source

IN_HUB_CACHE = re.compile(r"models--([\w.-]+)--([\w.-]+)", re.ASCII)
ADDRESS = "https://huggingface.co/"
Verdict = Literal["same", "derived", "unknown", "other"]


def compared(name: str, source: Source) -> Verdict:
    """What `name` is for the model `source`: the model itself, one that it comes from by its card, unknown, or another."""
    if name == source.name:
        return "same"
    is_place = source.kind in ("folder", "gguf")  # of such a name only the last part can tell something
    own = [
        _last(source.name) if is_place else source.name,
        *(f"{user}/{repo}" for user, repo in IN_HUB_CACHE.findall(str(source.folder))),
    ]
    is_named_alike = plain(name) in map(plain, own)
    if _is_folder(name) and _is_folder(source.name):
        if _folder(name).samefile(_folder(source.name)):
            return "same"
        if not is_known(name):  # folders are often called `model` or `final`
            return "unknown" if is_named_alike else "other"
    if is_named_alike:
        return "same"
    if plain(name) in map(plain, lineage(source)["base_model"]):
        return "derived"
    if _is_ours(name) and _is_ours(source.name):
        return "other"
    return "other" if is_known(name) and any(map(is_known, own)) else "unknown"


def plain(name: str) -> str:
    """The part of a name that its spellings share: without user, folder, revision and case, an alias resolved."""
    last = _last(name)
    official = _last(name_on_the_hub(last) or last).lower()
    return re.sub(r"[\W_]+", "-", official).removeprefix("meta-")


def is_known(name: str) -> bool:
    """Whether `name` can be taken for that of one model: of TransformerLens, of the Hub, or a demo of this package."""
    bare = _without_address(name)
    if bare.startswith("demo:") or name_on_the_hub(_last(bare)) is not None:
        return True
    return "/" in bare and HUB_NAME.fullmatch(bare) is not None and not bare.startswith(".") and not _is_folder(bare)


def _is_ours(name: str) -> bool:
    return name.startswith("demo:") or name in PACKAGED


def _without_address(name: str) -> str:
    return name.strip().removeprefix(ADDRESS).rstrip("/")


def _last(name: str) -> str:
    return _without_address(name).partition("@")[0].rpartition("/")[2]


def _folder(name: str) -> Path:
    return Path(name).expanduser()


def _is_folder(name: str) -> bool:
    return _folder(name).is_dir()
