"""Both models of a job, loaded."""

from stitch.composite.compose import check_target
from stitch.config import AnySettings
from stitch.models.device import torch_device, torch_dtype
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import Check, Source, resolve_all
from stitch.progress import Progress
from stitch.text.tokenizers import require_same_ids


def load_pair(
    settings: AnySettings, progress: Progress | None = None, check: Check | None = None
) -> tuple[Model, Model, dict[str, Source]]:
    """Both models and their sources by side. If both are the same folder, it is loaded once. `check` is called before.

    Raises: UsageError when they do not read the same token ids, and when the second is a composite.
    """
    a, b, sources = load_any_pair(settings, progress, check)
    require_same_ids(a.tokenizer, b.tokenizer, a.name, b.name)
    return a, b, sources


def load_any_pair(
    settings: AnySettings, progress: Progress | None = None, check: Check | None = None
) -> tuple[Model, Model, dict[str, Source]]:
    """The same of models whose tokenizers may differ. Raises: UsageError when the second is a composite."""
    dtype, device = torch_dtype(settings.dtype), torch_device(settings.device)
    both = [settings.model_a, settings.model_b]
    found = resolve_all(both, check=check, trust_remote_code=settings.trust_remote_code, progress=progress)
    sources = dict(zip("ab", found, strict=True))
    arguments = {
        "dtype": dtype,
        "device": device,
        "trust_remote_code": settings.trust_remote_code,
        "progress": progress,
    }
    a = load(sources["a"].folder, name=sources["a"].name, **arguments)
    same = sources["a"].folder.resolve() == sources["b"].folder.resolve()
    b = a if same else load(sources["b"].folder, name=sources["b"].name, **arguments)
    check_target(b.config, b.name)
    return a, b, sources
