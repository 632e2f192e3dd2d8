"""What is asked of a graft: behaviours of donors for a host; and how both are loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stitch.errors import UsageError
from stitch.grafts.fresh_host import read_host
from stitch.internals import weights
from stitch.internals.transcoders import feature_blocks, put_features
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import Source, resolve
from stitch.progress import Progress
from stitch.text.tokenizers import require_same_ids


@dataclass(frozen=True)
class GraftRequest:
    """A behaviour that the host should get from a donor.

    `circuit` is a file that names the components; None: they are looked for. `features` are transcoders by block, whose features
    replace the donor's neurons there.
    """

    donor: str
    behaviour: str
    circuit: Path | None = None
    features: Mapping[int, str] = field(default_factory=dict)


def load_donors(requests: Sequence[GraftRequest], **options: Any) -> list[tuple[Model, Source]]:
    """The donors with the requested features in place of their neurons.

    Raises: UsageError for features that cannot be grafted, and for donors whose tokenizers differ.
    """
    loaded = [_load(request.donor, "donor", **options) for request in requests]
    donors = [model for model, _ in loaded]
    for request, donor in zip(requests, donors, strict=True):
        put_features(donor, request.features)
        for block, module in feature_blocks(donor).items():
            if module.reads_output or module.k is not None:
                what = "an SAE on the MLP's output, behind the neurons" if module.reads_output else "a top-k dictionary"
                raise UsageError(
                    f"features to be grafted must be those of a transcoder without top-k; those of block {block} are of {what}: "
                    "choose others."
                )
    for donor in donors[1:]:
        require_same_ids(donors[0].tokenizer, donor.tokenizer, donors[0].name, donor.name)
    return loaded


def load_or_check_host(host: str, donor: Model, seed: int, **options: Any) -> tuple[tuple[Model, Source] | None, int]:
    """The trained host, or None for a config file, which is only checked here, before the search for circuits takes time; and the
    host's longest context."""
    if host.endswith(".json"):
        return None, read_host(Path(host), donor, seed).longest
    trained, source = _load(host, "host", **options)
    require_same_ids(donor.tokenizer, trained.tokenizer, donor.name, trained.name)
    return (trained, source), trained.longest


def _load(
    name: str, role: str, *, device: torch.device, trust_remote_code: bool, progress: Progress | None
) -> tuple[Model, Source]:
    """A donor or a trained host in fp32. Raises UsageError for a model whose weights cannot be read or written head by head."""
    source = resolve(name, trust_remote_code=trust_remote_code, progress=progress)
    model = load(
        source.folder, name=name, dtype=torch.float32, device=device, trust_remote_code=trust_remote_code, progress=progress
    )  # fmt: skip
    weights.check(model, f"the {role} of a graft")
    if role == "host" and model.config.model_type not in weights.FAMILIES:
        raise UsageError(
            f"the host of a graft must have room for more key heads; {name} is a GPTBigCode, which has one: choose a model of "
            f"one of {', '.join(weights.FAMILIES)}."
        )
    return model, source
