"""Two networks with the same tensors."""

from collections.abc import Callable

from torch import Tensor, nn

from stitch.errors import UsageError


def share(part: nn.Module, donor: nn.Module, path_in_donor: Callable[[str], str] = str) -> None:
    """Gives every module of `part` the tensors of its counterpart in `donor`, whose path is `path_in_donor` of the module's.

    What is tied in both stays tied: one parameter.
    Raises: UsageError where the counterpart lacks one.
    """
    made: dict[tuple[nn.Parameter, nn.Parameter], nn.Parameter] = {}
    for path, module in part.named_modules():
        plain = [name for name, value in module.__dict__.items() if isinstance(value, Tensor)]
        if not (module._parameters or module._buffers or plain):
            continue
        counterpart = donor.get_submodule(path_in_donor(path))
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if (theirs := counterpart._parameters.get(name)) is None:  # such as a bias of the last block alone
                    raise UsageError(
                        f"blocks must have the same weights to take each other's places; what comes to {path} has no {name}: "
                        "leave that block where it is, or join without `native`."
                    )
                # A new Parameter over the same memory, so that `.to()` on the part does not move the donor.
                if (parameter, theirs) not in made:
                    made[parameter, theirs] = nn.Parameter(theirs.detach(), requires_grad=theirs.requires_grad)
                module._parameters[name] = made[parameter, theirs]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = counterpart.get_buffer(name)
        for name in plain:
            setattr(module, name, getattr(counterpart, name))
