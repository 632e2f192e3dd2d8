"""SAE features in the place of a block's neurons: a transcoder's, or those of an SAE on what the MLP writes.

A transcoder reads what the MLP reads and gives what it writes (Dunefsky, Chlenski & Nanda 2024, arXiv:2406.11944), so that its
features are neurons of a wider MLP with a threshold. Features of an SAE are a layer behind the neurons, which stay.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.convert import to_dictionary, transcoder_to_dictionary
from sae.errors import SAEError
from sae.storage import load
from sae.types import Dictionary
from stitch.errors import UsageError
from stitch.models.model import Model

WRITTEN_BY = ("mlp_out", ".mlp")  # how hook names of an MLP's output end
BEFORE_NORM = ("hook_resid_mid", "hook_mlp_in")  # how those end of the stream that its norm reads


class FeatureMlp(nn.Module):
    """decode(JumpReLU(encode(x))), of the MLP's input x, or of its output where `behind` it; where features compete, of the `k`
    largest of a token alone.

    `replaced`, no parameter of it, is the MLP whose place it has. The decoder has the name that the family gives the projection
    that ends an MLP.
    """

    def __init__(self, dictionary: Dictionary, replaced: nn.Module, ending: str, *, behind: bool) -> None:
        super().__init__()
        width, features = dictionary.encoder.shape
        self.encoder, decoder = nn.Linear(width, features), nn.Linear(features, width)
        self.add_module(ending, decoder)
        self.ending, self.behind, self.k, self.aside = ending, behind, dictionary.k, False
        self._replaced = (replaced,)
        threshold = torch.zeros(features) if dictionary.threshold is None else dictionary.threshold
        self.threshold = nn.Parameter(threshold.clone())
        with torch.no_grad():
            self.encoder.weight.copy_(dictionary.encoder.T)
            self.encoder.bias.copy_(dictionary.encoder_bias)
            decoder.weight.copy_(dictionary.decoder.T)
            decoder.bias.copy_(dictionary.decoder_bias)
        self.requires_grad_(False)

    @property
    def replaced(self) -> nn.Module:
        return self._replaced[0]

    @property
    def decoder(self) -> nn.Linear:
        return self.get_submodule(self.ending)  # pyright: ignore[reportReturnType]

    def codes(self, x: Float[Tensor, "*prompts d"]) -> Float[Tensor, "*prompts features"]:
        found = self.encoder(self.replaced(x) if self.behind else x).relu()
        least = self.threshold if self.k is None else found.topk(self.k + 1, -1).values[..., -1:]
        return found * (found > least)

    def forward(self, x: Float[Tensor, "*prompts d"]) -> Float[Tensor, "*prompts d"]:
        return self.replaced(x) if self.aside else self.decoder(self.codes(x))


def put_features(model: Model, sources: Mapping[int, str]) -> None:
    """Puts features in the place of the neurons of these blocks, in place: each from a folder in SAELens's format, or from a
    release as `release:sae_id`.

    Raises: UsageError for blocks that there are not, SAEs of another place or kind, or another width.
    """
    for block, source in sources.items():
        if not 0 <= block < model.depth:
            raise UsageError(f"--features names block {block}; {model.name} has 0 to {model.depth - 1}.")
        part, own = model.in_part(block)
        layer, path = part.blocks[own], part.anatomy.mlp
        try:
            found = load(source, part.width)
            is_transcoder = "transcoder" in found.cfg.architecture()
            _check_place(found.cfg.metadata.get("hook_name"), is_transcoder, source)
            dictionary = (transcoder_to_dictionary if is_transcoder else to_dictionary)(found)
        except SAEError as error:
            raise UsageError(f"--features {block}={source}: {error}") from error
        replaced = layer.get_submodule(path)
        ending = part.anatomy.down.removeprefix(f"{path}.")
        features = FeatureMlp(dictionary, replaced, ending, behind=not is_transcoder)
        setattr(layer, path, features.to(device=part.device, dtype=part.dtype))


def _check_place(hook: str | None, is_transcoder: bool, source: str) -> None:
    if hook is not None and (hook.endswith(BEFORE_NORM) if is_transcoder else not hook.endswith(WRITTEN_BY)):
        raise UsageError(
            "--features takes transcoders of what an MLP reads, after its norm, and SAEs on what it writes (hook_mlp_out); "
            f"{source} reads {hook}: choose another."
        )


def feature_blocks(model: Model) -> dict[int, FeatureMlp]:
    """The blocks that have features in the place of neurons."""
    found = {}
    for block in range(model.depth):
        part, own = model.in_part(block)
        module = part.blocks[own].get_submodule(part.anatomy.mlp)
        if isinstance(module, FeatureMlp):
            found[block] = module
    return found


@contextmanager
def as_trained(model: Model) -> Iterator[None]:
    """Inside, the model has its own neurons again; its components cannot be watched there."""
    modules = feature_blocks(model).values()
    for module in modules:
        module.aside = True
    try:
        yield
    finally:
        for module in modules:
            module.aside = False
