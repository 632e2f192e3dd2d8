"""SAE features in the place of a block's neurons: those of a transcoder, or of an SAE on the MLP's output.

A transcoder predicts an MLP's output from its input (Dunefsky, Chlenski & Nanda 2024, arXiv:2406.11944). Its features are neurons
of a wider MLP with a threshold. An SAE reads the MLP's output, so the neurons stay in front of its features.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.convert import to_dictionary, transcoder_to_dictionary
from sae.errors import SAEError
from sae.types import Dictionary
from stitch.errors import UsageError
from stitch.models.model import Model
from stitch.models.published_saes import load

WRITTEN_BY = ("mlp_out", ".mlp")  # endings of hook names for an MLP's output
BEFORE_NORM = ("hook_resid_mid", "hook_mlp_in")  # endings of hook names for the stream that the MLP's norm reads


class FeatureMlp(nn.Module):
    """decode(JumpReLU(encode(x))), where x is the MLP's input, or its output if `reads_output`. Of a top-k dictionary
    the `k` largest features of a token are kept, fewer where fewer are positive.

    `replaced` is the MLP that stood here; it is no submodule, so its parameters are not this module's. The decoder is called
    `ending`, the name that the family gives an MLP's last projection.
    """

    def __init__(self, dictionary: Dictionary, replaced: nn.Module, ending: str, *, reads_output: bool) -> None:
        super().__init__()
        width, features = dictionary.encoder.shape
        self.encoder, decoder = nn.Linear(width, features), nn.Linear(features, width)
        self.add_module(ending, decoder)
        self.ending, self.reads_output, self.k, self.bypassed = ending, reads_output, dictionary.k, False
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
        """The features' activations for the MLP's input `x`."""
        activations = self.encoder(self.replaced(x) if self.reads_output else x).relu()
        if self.k is None:
            return activations * (activations > self.threshold)
        largest = activations.topk(self.k, -1)
        return torch.zeros_like(activations).scatter(-1, largest.indices, largest.values)

    def forward(self, x: Float[Tensor, "*prompts d"]) -> Float[Tensor, "*prompts d"]:
        return self.replaced(x) if self.bypassed else self.decoder(self.codes(x))


def put_features(model: Model, sources: Mapping[int, str]) -> None:
    """Replaces the neurons of these blocks by features, in place. `sources` are by block: a folder in SAELens's format, or
    `release:sae_id`.

    Raises: UsageError for a block that the model does not have, and for an SAE of another hook point, kind or width.
    """
    for block, source in sources.items():
        if not 0 <= block < model.depth:
            raise UsageError(f"features must be for blocks 0 to {model.depth - 1} of {model.name}; got block {block}.")
        part, own = model.in_part(block)
        layer, path = part.blocks[own], part.anatomy.mlp
        try:
            found = load(source, part.width)
            is_transcoder = "transcoder" in found.cfg.architecture()
            _check_place(found.cfg.metadata.get("hook_name"), is_transcoder, source)
            dictionary = (transcoder_to_dictionary if is_transcoder else to_dictionary)(found)
        except SAEError as error:
            raise UsageError(f"features of block {block} from {source}: {error}") from error
        replaced = layer.get_submodule(path)
        ending = part.anatomy.down.removeprefix(f"{path}.")
        features = FeatureMlp(dictionary, replaced, ending, reads_output=not is_transcoder)
        setattr(layer, path, features.to(device=part.device, dtype=part.dtype))


def _check_place(hook: str | None, is_transcoder: bool, source: str) -> None:
    if hook is not None and (hook.endswith(BEFORE_NORM) if is_transcoder else not hook.endswith(WRITTEN_BY)):
        raise UsageError(
            "features must be of a transcoder that reads the MLP's input after its norm, or of an SAE on its output "
            f"(hook_mlp_out); {source} reads {hook}: choose another."
        )


def feature_blocks(model: Model) -> dict[int, FeatureMlp]:
    """The modules of the blocks that have features in the place of neurons, by block."""
    found = {}
    for block in range(model.depth):
        part, own = model.in_part(block)
        module = part.blocks[own].get_submodule(part.anatomy.mlp)
        if isinstance(module, FeatureMlp):
            found[block] = module
    return found


@contextmanager
def as_trained(model: Model) -> Iterator[None]:
    """Inside, the model uses its own neurons again. Components must not be watched or replaced there."""
    modules = feature_blocks(model).values()
    for module in modules:
        module.bypassed = True
    try:
        yield
    finally:
        for module in modules:
            module.bypassed = False
