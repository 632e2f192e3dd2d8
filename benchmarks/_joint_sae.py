"""One sparse code for several residual streams: the universal SAE and the crosscoder.

SAELens 6.54 has neither. Its BatchTopK SAE on the concatenated streams is a crosscoder, though: the code is computed
from the sum of all encoders and reconstructs all streams. With all streams but one hidden, a random one in each step,
it is a universal SAE. So SAELens's trainer trains both, including its auxiliary loss for dead features, exactly as it
trains the SAEs that they are compared with. With a single stream the result is an ordinary SAE.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sae.config import SAEConfig
from sae.convert import to_dictionary
from sae.errors import SAEError
from sae.trainer import REPORT_EVERY, SAMPLE_BATCHES, Batch, check_batch, new_trainer
from sae.types import Dictionary


@dataclass(frozen=True)
class SharedCode:
    """A code c of `features` numbers that can be encoded from every stream and decoded to every stream.

    streams: by name, the SAE that reads and writes this stream alone. As in every Dictionary its decoder rows have unit
    norm, so its codes are z = c · norms[name], in the units of the stream.

    norms: by name, the norm of every feature's direction in that stream. The norms over all streams, each divided by
    the stream's scale, form unit vectors: a feature with a norm near zero in a stream is not shared with that stream.

    joint: the SAE that reads and writes the concatenation of all raw streams, in the order of `streams`; its codes are
    c · √(Σ norms²).
    """

    streams: dict[str, Dictionary]
    norms: dict[str, Float[Tensor, " features"]]
    joint: Dictionary

    def onto(self, source: str, target: str) -> Float[Tensor, "features d_target"]:
        """The vectors that one unit of each code of `source` adds to `target`."""
        ratio = self.norms[target] / self.norms[source]
        return ratio[:, None] * self.streams[target].decoder


def universal_sae(
    config: SAEConfig,
    widths: dict[str, int],
    batches: Callable[[int], Iterator[Batch]],
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> SharedCode:
    """A code that can be computed from any single stream. In each step the code of one stream, drawn at random,
    reconstructs all streams.

    `batches(start)` is as for `sae.trainer.train_sites`: dicts of [batch_size, widths[name]], where row i is the same token in
    all streams. Streams are first centred and scaled to the same mean square, so that each has the same weight in the
    loss whatever its width and norm. The result depends only on config and batches. `progress(step, steps)` is called
    after every tenth step and the last.

    The encoders share one bias. Each stream has its own threshold, at which k features are active on average.

    Raises: SAEError as `sae.trainer.train_sites` does, and for an architecture other than batchtopk.
    Source: Thasarathan et al. 2025, arXiv 2502.03714, with BatchTopK (Bussmann et al. 2024, arXiv 2412.06410) instead
    of TopK.
    """
    draws = torch.randint(len(widths), (config.steps,), generator=torch.Generator().manual_seed(config.seed)).tolist()
    return _train(config, widths, batches, draws, device, progress)


def crosscoder(
    config: SAEConfig,
    widths: dict[str, int],
    batches: Callable[[int], Iterator[Batch]],
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> SharedCode:
    """A code from the sum of all encoders, which reconstructs all streams. Parameters and errors as for
    `universal_sae`.

    Training reads all N streams, but each SAE in `streams` of the result reads one: its stream is weighted by N to make
    up for the missing ones.

    Source: Lindsey et al. 2024, transformer-circuits.pub/2024/crosscoders, with BatchTopK instead of an L1 penalty.
    """
    return _train(config, widths, batches, [None] * config.steps, device, progress)


@torch.enable_grad()
def _train(
    config: SAEConfig,
    widths: dict[str, int],
    batches: Callable[[int], Iterator[Batch]],
    draws: list[int] | list[None],
    device: str | torch.device,
    progress: Callable[[int, int], None] | None,
) -> SharedCode:
    if config.architecture != "batchtopk":
        raise SAEError(f"architecture must be batchtopk for a shared code; got {config.architecture!r}.")
    if not widths or config.features < max(widths.values()):
        raise SAEError(f"features must be at least the width of every stream, {widths}; got {config.features}.")
    units = _Units(list(widths), *_statistics(widths, batches, config.batch_size), list(widths.values()), device)
    trainer = new_trainer(config, sum(widths.values()), device)
    trainer.sae.cfg.apply_b_dec_to_input = False  # streams are centred, and the bias of a hidden stream must not enter
    drawn: list[int | None] = [None]
    trainer.sae.hook_sae_input.register_forward_hook(lambda _module, _arguments, x: units.alone(x, drawn[0]))
    source = batches(0)
    for step, draw in enumerate(draws):
        batch = next(source, None)
        if batch is None:
            raise SAEError(f"training needs {config.steps} batches; the stream ended after {step}. Give more tokens.")
        check_batch(batch, widths, config.batch_size, step)
        drawn[0] = draw
        trainer.step(units.standardised(batch))
        trainer.n_training_steps += 1
        if progress and ((step + 1) % REPORT_EVERY == 0 or step + 1 == len(draws)):
            progress(step + 1, len(draws))
    trainer.sae.fold_activation_norm_scaling_factor(1.0)  # records that the input needs no further scaling
    trained = to_dictionary(trainer.sae.eval())
    sample = [units.standardised(batch) for batch in itertools.islice(batches(0), SAMPLE_BATCHES)]
    return _in_raw_units(trained, units, sample, config.k)


@dataclass(frozen=True)
class _Units:
    """Standardises the concatenated streams: each is centred, and the columns of the whole have a mean square of 1."""

    names: list[str]
    means: list[Tensor]
    scales: list[float]
    widths: list[int]
    device: str | torch.device

    def standardised(self, batch: Batch) -> Float[Tensor, "tokens width"]:
        parts = zip(self.names, self.means, self.scales, strict=True)
        return torch.cat([((batch[name].float() - mean) / scale) for name, mean, scale in parts], 1).to(self.device)

    def alone(self, x: Float[Tensor, "tokens width"], index: int | None) -> Float[Tensor, "tokens width"]:
        """Sets all streams but one to their mean, which is zero. The remaining one is scaled up so that the codes
        keep their size.
        """
        if index is None:
            return x
        shown = torch.zeros_like(x)
        start = sum(self.widths[:index])
        stream = slice(start, start + self.widths[index])
        shown[:, stream] = len(self.names) * x[:, stream]
        return shown


def _statistics(
    widths: dict[str, int], batches: Callable[[int], Iterator[Batch]], batch_size: int
) -> tuple[list[Tensor], list[float]]:
    """The mean of every stream, and the divisor that gives it a mean squared norm of (sum of widths) / (number of
    streams).
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in widths}
    for step, batch in enumerate(itertools.islice(batches(0), SAMPLE_BATCHES)):
        check_batch(batch, widths, batch_size, step)
        for name in widths:
            seen[name].append(batch[name].double())
    means, scales = [], []
    for name, parts in seen.items():
        if not parts:
            raise SAEError("a shared code needs batches of activations; the stream was empty.")
        rows = torch.cat(parts)
        spread = float((rows - rows.mean(0)).square().sum(1).mean())
        if spread == 0:
            raise SAEError(f"activations must vary; those of {name} do not. Choose another site.")
        means.append(rows.mean(0).float())
        scales.append(math.sqrt(spread * len(widths) / sum(widths.values())))
    return means, scales


@torch.no_grad()
def _in_raw_units(trained: Dictionary, units: _Units, sample: list[Tensor], k: int) -> SharedCode:
    """Converts `trained`, the code of standardised streams, to dictionaries of raw streams with thresholds for k
    features.
    """
    scale = torch.cat([torch.full((d,), s) for d, s in zip(units.widths, units.scales, strict=True)]).to(units.device)
    mean = torch.cat(units.means).to(units.device)

    def raw(stream: slice, weight: int, index: int | None) -> tuple[Dictionary, Tensor]:
        """The part that reads and writes `stream`, with its input multiplied by `weight`, and the norms of its
        decoder rows.
        """
        encoder = trained.encoder[stream] * weight
        cuts = []
        for batch in sample:
            pre = units.alone(batch, index) @ trained.encoder + trained.encoder_bias
            active = min(k * len(pre), pre.numel())
            cuts.append(pre.flatten().topk(active, sorted=False).values.min().clamp(min=0))
        threshold = torch.stack(cuts).mean().expand(len(trained.encoder_bias))
        decoder = trained.decoder[:, stream] * scale[stream]
        norms = decoder.norm(dim=1).clamp(min=1e-8)
        encoder = encoder / scale[stream][:, None]
        found = replace(
            trained,
            encoder=encoder * norms,
            encoder_bias=(trained.encoder_bias - mean[stream] @ encoder) * norms,
            threshold=threshold * norms,
            decoder=decoder / norms[:, None],
            decoder_bias=trained.decoder_bias[stream] * scale[stream] + mean[stream],
        )
        return found, norms

    streams, norms, start = {}, {}, 0
    for index, (name, width) in enumerate(zip(units.names, units.widths, strict=True)):
        streams[name], norms[name] = raw(slice(start, start + width), len(units.names), index)
        start += width
    joint, _ = raw(slice(None), 1, None)
    return SharedCode(streams, norms, joint)
