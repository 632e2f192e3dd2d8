"""What a disk refused, also where a library says so in an error of its own."""

import os
import re

from stitch.errors import DiskError

OF_SYSTEM = re.compile(r"I/O error: .*\(os error (\d+)\)", re.DOTALL)  # safetensors
OF_TORCH = re.compile(r"inline_container\.cc.*(PytorchStreamWriter|unexpected pos)", re.DOTALL)  # does not say why


def refusal(error: BaseException) -> OSError | DiskError | None:
    """The error of the system behind `error`, or the innermost of ours where it is unknown; None where no disk is to blame."""
    if isinstance(error, DiskError):
        return (error.__cause__ and refusal(error.__cause__)) or error
    if isinstance(error, OSError):
        return error
    if found := OF_SYSTEM.search(str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    return DiskError("the disk may be full") if OF_TORCH.search(str(error)) else None
