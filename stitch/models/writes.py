"""Finds the projection by which the MLPs of a family write to the residual stream, by running its blocks on a few tokens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stitch.modeling.modeling_halves import Stream
from stitch.models.flow import FAMILY_ERRORS, TOKENS

NEAR = 0.02  # relative: rounding of half precision is below it, a factor before the stream above it


@torch.no_grad()
def down_of(net: PreTrainedModel, flow: dict) -> str:
    """The path of the MLP's output projection within a block, as `Anatomy.down`; "" where none is found.

    It is the last projection that a block calls, in every block at the same path, on a stream of the block's shape. What is
    added to its output must be added to the stream, so that no norm, gate or factor stands between them. Its neurons must not
    look at other tokens, as the heads of an attention do.
    """
    blocks: Any = net.get_submodule(flow["blocks"])
    stream = Stream(flow["argument"], flow["output"])
    try:
        paths = {_down(block, stream, *call) for block, call in zip(blocks, _calls(net, blocks), strict=True)}
    except FAMILY_ERRORS:
        return ""
    return paths.pop() if len(paths) == 1 else ""


def _calls(net: PreTrainedModel, blocks: nn.ModuleList) -> list[tuple[tuple, dict]]:
    """What each block is given in a pass over a few tokens."""
    found: list[tuple[tuple, dict]] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args, kwargs: found.append((args, kwargs)), with_kwargs=True)
        for block in blocks
    ]
    try:
        net(input_ids=torch.arange(2, 2 + TOKENS, device=net.device)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _down(block: nn.Module, stream: Stream, args: tuple, kwargs: dict) -> str:
    """The path of the projection in one block; "" where there is none."""

    def run() -> Tensor:
        returned = block(*args, **kwargs)
        return (returned if stream.output is None else returned[stream.output[0]]).clone()

    paths = {module: path for path, module in block.named_modules()}
    called: list[nn.Module] = []
    shapes: dict[nn.Module, torch.Size] = {}

    def note(module: nn.Module, _: tuple, output: Tensor) -> None:
        called.append(module)
        shapes[module] = output.shape

    with _hooked(_projections(block), note):
        before = run()
    if len(called) < 2 or shapes[called[-1]] != before.shape:
        return ""
    earlier, down = called[-2:]
    read: list[Tensor] = []
    with _hooked([down], lambda module, inputs, _: read.append(inputs[0].clone())):
        run()
        with _hooked([earlier], lambda module, _, output: _with_first_changed(output)):
            run()
    added = torch.randn(before.shape, generator=torch.Generator().manual_seed(0)).to(before) * before.std()
    with _hooked([down], lambda module, _, output: output + added):
        after = run()
    moved = (read[1] - read[0]).abs().amax(-1)[0]  # of each token
    is_alone = bool(moved[0] > 0) and not bool(moved[1:].any())
    is_direct = (after - before - added).norm() <= NEAR * added.norm()
    return paths[down] if is_alone and is_direct else ""


def _projections(block: nn.Module) -> list[nn.Module]:
    return [module for module in block.modules() if isinstance(module, (nn.Linear, Conv1D))]


def _with_first_changed(output: Tensor) -> Tensor:
    changed = output.clone()
    changed[:, 0] += 1 + changed[:, 0].abs()
    return changed


@contextmanager
def _hooked(modules: list[nn.Module], hook: Callable[[nn.Module, tuple, Tensor], Tensor | None]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
