"""What chosen modules of a network read in a forward pass that stops once all of them have been called."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Key = TypeVar("Key", bound=Hashable)


class _AllSeen(Exception):
    """Raised by the hook of the last module, so that the rest of the forward pass is not computed."""


@torch.no_grad()
def module_inputs(
    net: Callable[..., Any],
    modules: Mapping[Key, nn.Module],
    *,
    argument: int | str = 0,
    use_cache: bool = False,
    **inputs: Any,
) -> dict[Key, Tensor]:
    """What each of the `modules` is given as `argument`, or as `hidden_states`, in one forward pass of `net` on `inputs`.

    `argument` is the place or the name of an input. Of a module that is called with fewer inputs it is the first.
    """
    seen: dict[Key, Tensor] = {}

    def keep_as(key: Key):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            place = argument if isinstance(argument, int) and argument < len(args) else 0
            seen[key] = kwargs[argument] if argument in kwargs else args[place] if args else kwargs["hidden_states"]
            if len(seen) == len(modules):
                raise _AllSeen

        return hook

    handles = [module.register_forward_pre_hook(keep_as(key), with_kwargs=True) for key, module in modules.items()]
    try:
        net(**inputs, use_cache=use_cache)
    except _AllSeen:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen
