"""Devices and dtypes by the names users give them."""

from stitch.config import CHOICES
from stitch.errors import UsageError


def torch_dtype(name: str):
    """The torch dtype called fp32, bf16 or fp16. Raises UsageError for another name."""
    import torch

    if name not in CHOICES["dtype"]:
        raise UsageError(f"--dtype must be one of {', '.join(CHOICES['dtype'])}; got {name!r}.")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def torch_device(name: str):
    """`auto` is the accelerator if there is one. Raises UsageError for a device that this machine does not have."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device must name a device of this machine; {name!r} is none ({str(error).splitlines()[0][:80]})."
        ) from None
