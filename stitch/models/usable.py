"""What config.json alone says against using a model: it is no decoder that predicts the next token."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stitch.modeling.modeling_composite import StitchConfig
from stitch.models.anatomy import find_anatomy
from stitch.models.text_part import text_part


def require_decoder(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises UsageError where the model whose config.json in `folder` was read as `config` is no decoder, or cannot be cut."""
    kind, architectures, has_encoder = (
        config.get(key) for key in ("model_type", "architectures", "is_encoder_decoder")
    )
    if kind != StitchConfig.model_type and text_part(folder) is None:
        find_anatomy(kind or "unknown", architectures or [], bool(has_encoder))
