"""SAEs by the name that a caller gives, a folder or release:sae_id; what the Hub refuses is said as for models."""

from pathlib import Path
from typing import Any

import sae.storage
from sae.errors import SAEError
from stitch.files.lent import lent_file
from stitch.hub.access import access_token
from stitch.hub.errors import explanation
from stitch.hub.patience import patiently


def load(source: str | Path, width: int | None = None, device: str = "cpu") -> Any:
    """SAELens's SAE, as `sae.load` gives it. An SAE of the Hub is asked for again after failures that pass.

    Raises: SAEError as `sae.load` does; StitchError where the Hub or the network is the reason.
    """
    if (place := lent_file(source)).exists():
        return sae.storage.load(place, width, device)
    try:
        return patiently(lambda: sae.storage.load(source, width, device))
    except SAEError as error:
        repo = str(sae.storage.repository_of(str(source)))
        told = explanation(error, repo, f"no network and no such local SAE: {source}", access_token())
        raise told or error from None
