"""Devices and dtypes by name. torch is imported inside functions, so that checking settings needs no torch."""

from stitch.errors import UsageError

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # name in settings: name in torch


def torch_dtype(name: str):
    """The torch dtype called `name`, a key of `DTYPES`. Raises: UsageError for another name."""
    import torch

    if name not in DTYPES:
        raise UsageError(f"dtype must be one of {', '.join(DTYPES)}; got {name!r}.")
    return getattr(torch, DTYPES[name])


def torch_device(name: str):
    """The torch device called `name`; `auto` is a CUDA device if there is one, else the CPU.

    Raises: UsageError for a device that this machine does not have, and for MPS, which has no float64: losses and regressions
    are added up in it.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] == "mps":
        raise UsageError("device must compute in float64, which mps does not: use cpu.")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:80]
        raise UsageError(f"device must name a device of this machine; got {name!r} ({reason}).") from None
