"""A second device that every machine has, for tests of code that should run on a GPU.

Its tensors lie in the memory of the CPU, but torch takes them for those of another device, and they cannot be combined with
tensors of the CPU: code that forgets to move one fails here as it would on a GPU.
"""

from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "other"
COPIES = ("aten::copy_", "aten::_to_copy")  # what may read one device and write another
INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")  # places may be on the CPU, the values may not
aten = torch.ops.aten
# The fallback is never asked for the first; the others would be composed of one that changes the shape of a tensor.
NOT_LEFT_TO_THE_FALLBACK = (aten.copy_.default, aten.arange.default, aten.arange.start, aten.arange.start_step)
OF_VALUES = (torch.Tensor.tolist, torch.Tensor.__format__, torch.Tensor.storage, torch.Tensor.untyped_storage)
_libraries: list[torch.library.Library] = []  # what a library registers is gone with it


class Elsewhere(torch.Tensor):
    """A tensor on the other device. `inner` has its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Elsewhere":
        is_strided = inner.layout == torch.strided
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride() if is_strided else None,
            storage_offset=inner.storage_offset() if is_strided else None, dtype=inner.dtype, layout=inner.layout,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"Elsewhere({self.inner!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in OF_VALUES:
            return func(args[0].inner, *args[1:])
        if func in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def add() -> None:
    """Registers the device, once per process. Raises: ImportError with a torch that cannot have one in Python."""
    if _libraries:
        return
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    module: Any = ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module._lazy_init = lambda: None
    module.manual_seed_all = lambda seed: None
    module.synchronize = lambda *_: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    _setup_privateuseone_for_python_backend(NAME, backend_module=module)
    # Tensors are wrapped by the class above; these are for what torch makes from nothing or from values of Python.
    everything, some = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    for func in NOT_LEFT_TO_THE_FALLBACK:
        some.impl(func, lambda *args, func=func, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    _libraries.extend([everything, some])


def _run(func: Any, args: Any, kwargs: dict) -> Any:
    """What `func` gives on the CPU, on the device where it should be."""
    name = func._schema.name
    _require_one_device(func, name, args, kwargs)
    asked = kwargs.get("device")
    inner = {key: value for key, value in tree_map(_inner, kwargs).items() if key != "pin_memory"}
    if asked is not None:
        inner["device"] = "cpu"
    found = func(*tree_map(_inner, args), **inner)
    if name == "aten::copy_":
        return args[0]
    here = torch.device(asked).type == NAME if asked is not None else True
    if name == "aten::_to_copy":
        here = here if asked is not None else isinstance(args[0], Elsewhere)
        found = found.clone() if found is _inner(args[0]) else found  # to another device is never the same memory
        return Elsewhere(found) if here else found
    if not here:
        return found
    return return_and_correct_aliasing(func, args, kwargs, tree_map(_there, found))


def _require_one_device(func: Any, name: str, args: Any, kwargs: dict) -> None:
    """Raises RuntimeError where tensors of both devices are combined. One number is taken from the CPU by any device."""
    if name in COPIES:
        return
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    if name in INDEXING and isinstance(args[0], Elsewhere):
        tensors = [args[0], *(value for value in args[2:3] if isinstance(value, torch.Tensor))]
    there = [isinstance(value, Elsewhere) for value in tensors]
    if any(there) and any(not at and value.dim() for at, value in zip(there, tensors, strict=True)):
        raise RuntimeError(f"Expected all tensors to be on the same device; {func} got {NAME}:0 and cpu.")


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value


def _there(value: Any) -> Any:
    return Elsewhere(value) if isinstance(value, torch.Tensor) and not isinstance(value, Elsewhere) else value
