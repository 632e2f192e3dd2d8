"""cfg.json of an SAE in SAELens's format: what it must say, and whether the weights beside it can be those that it describes.

Keys that are not listed are SAELens's own, and it checks them.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool

from sae.errors import SAEError
from sae.json_file import faults, read_config, shown
from sae.messages import one_line

MATRICES = ("W_enc", "W_dec", "b_enc", "b_dec")  # whose sizes are those of cfg.json in every architecture
Size = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
Dtype = Literal[
    "float64", "float32", "float16", "bfloat16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"
]  # fmt: skip


class SAEFile(BaseModel):
    d_in: Size
    d_sae: Size
    d_out: Size | None = None
    k: Size | None = None
    dtype: Dtype = "float32"
    apply_b_dec_to_input: StrictBool | None = None
    rescale_acts_by_decoder_norm: StrictBool | None = None
    metadata: dict = {}


def require_described(config: Path, weights: Path) -> None:
    """Raises: SAEError with all that the file `config` cannot say, by itself or of the SAE in the file `weights`."""
    values = read_config(config)
    _require_inference(config.parent, values.get("architecture", "standard"))
    found = faults(SAEFile, values)
    if (size := values.get("d_sae")) and isinstance(k := values.get("k"), int) and isinstance(size, int) and k > size:
        found.append(f"k: must be at most d_sae = {size}, got {k}")
    if not found:
        sizes = {values["d_in"], values.get("d_out", values["d_in"]), size}
        found = [
            f"{name}: shape {tuple(shape)} does not agree with d_in = {values['d_in']} and d_sae = {size}"
            for name, shape in _shapes(weights).items()
            if name in MATRICES and not set(shape) <= sizes
        ]
    if found:
        raise SAEError(f"{config} must describe the SAE beside it; {'; '.join(found[:5])}. Save or download it again.")


def _require_inference(folder: Path, architecture: Any) -> None:
    from sae_lens.registry import SAE_CLASS_REGISTRY

    if not isinstance(architecture, str) or architecture not in SAE_CLASS_REGISTRY:
        raise SAEError(
            f"{folder} must hold an SAE in its inference form; got the architecture {shown(architecture)}, which may be a "
            "training checkpoint. Save it with save_inference_model."
        )


def _shapes(weights: Path) -> dict[str, list[int]]:
    """The shapes of the stored tensors by name. Only the header is read."""
    from safetensors import safe_open

    try:
        with safe_open(weights, "pt") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own, and those of the system
        raise SAEError(
            f"{weights.parent} is truncated, corrupt or not an SAE: {one_line(error)}. Save or download it again."
        ) from error
