"""Trains SAEs at several sites in one pass over their activations, with SAELens's trainer."""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.atomic import PARTIAL, whole_folder
from sae.checksums import checksums
from sae.config import SAEConfig
from sae.errors import DamagedSnapshot, SAEError
from sae.messages import one_line

if TYPE_CHECKING:
    import sae_lens
    from sae_lens.training.sae_trainer import SAETrainer

Batch = dict[str, Float[Tensor, "batch _"]]
SAMPLE_BATCHES = 8  # 16 thousand tokens at the default batch size: enough for the mean and the mean norm to 1 %
RUN = "run.json"  # in a snapshot: its step, what is trained, and checksums of the other files
SNAPSHOT_FORMAT = 2  # to be raised when a step computes something else or the optimizer's state is laid out differently
REPORT_EVERY = 10  # steps between progress reports, since measuring the loss waits for the device


@torch.enable_grad()  # the caller may be reading activations under no_grad
def train_sites(
    configs: dict[str, SAEConfig],
    widths: dict[str, int],
    batches: Callable[[int], Iterator[Batch]],
    *,
    snapshots: Path | None = None,
    snapshot_every: int = 500,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int, dict], None] | None = None,
) -> dict[str, "sae_lens.SAE"]:
    """Trains one SAE per site on the same stream of activations; the input normalisation is folded into the weights.

    `batches(start)` yields one dict per training step, from step `start` on. It holds an activation matrix
    [batch_size, widths[site]] for every site, in any float dtype (training is in float32); row i is the same token at
    all sites. Every call must give the same batches: `batches(0)` is also read to estimate the activations' mean and
    mean norm, and at the end to set thresholds; after an interruption training continues with `batches(start)`.
    `device` is the device of the SAEs.

    With `snapshots`, training continues from the newest complete snapshot in that folder, and the result equals that of
    an uninterrupted run bit for bit. `progress(step, steps, {site: {"loss", "fvu", "dead"}})` is called after every
    tenth step and after the last. The loss is in units where the mean squared norm is about d, fvu is that of the batch,
    dead is a share. Nothing is printed.

    The loop corresponds to SAELens's MultiSAETrainer, whose sites must have the same learning rate; here each site has
    its own. SAELens's SAETrainer does each step: loss, gradient clipping, Adam, schedule, dead-feature counts. Only the
    threshold of batch top-k is set differently, once, at the end. A site's SAE does not depend on which other sites are
    trained in the same pass.

    Raises: SAEError when sites differ in steps or batch size, when a batch has the wrong sites or shape or holds NaN,
    when the stream ends early, and when the snapshot was made with other settings or by
    another version.
    """
    steps, batch_size = _check_request(configs, widths, snapshot_every)
    trainers = {site: new_trainer(configs[site], widths[site], device) for site in configs}

    def stream(start: int) -> Iterator[tuple[int, Batch]]:
        for step, batch in enumerate(_checked(batches(start), start, steps, batch_size, widths), start):
            yield step, {site: batch[site].to(device, torch.float32) for site in trainers}

    run = {
        "format": SNAPSHOT_FORMAT,
        "sites": {site: {"width": widths[site], **asdict(config)} for site, config in configs.items()},
    }
    start = _resume(snapshots, run, trainers) if snapshots else 0
    if start == 0:
        _centre_and_scale(trainers, stream(0))

    for step, batch in stream(start):
        outputs = {}
        for site, trainer in trainers.items():
            trainer.maybe_reset_sparsity()
            outputs[site] = trainer.step(batch[site])
            trainer.n_training_steps += 1
        done = step + 1
        if snapshots and (done % snapshot_every == 0 or done == steps):
            _snapshot(snapshots, done, run, trainers)
        if progress and (done % REPORT_EVERY == 0 or done == steps):
            progress(done, steps, {site: _report(trainers[site], outputs[site]) for site in trainers})

    _calibrate(trainers, stream(0))
    return {site: _finished(trainer) for site, trainer in trainers.items()}


def _check_request(configs: dict[str, SAEConfig], widths: dict[str, int], snapshot_every: int) -> tuple[int, int]:
    if not configs or set(configs) != set(widths):
        raise SAEError(
            f"each site needs a config and a width; got configs for {list(configs)} and widths for {list(widths)}."
        )
    schedules = {(config.steps, config.batch_size) for config in configs.values()}
    if len(schedules) > 1:
        raise SAEError(
            "sites trained in one pass must agree on steps and batch_size; got "
            + ", ".join(f"{site}: {config.steps} × {config.batch_size}" for site, config in configs.items())
            + ". Make them equal or train the sites separately."
        )
    for site, config in configs.items():
        if config.features < widths[site]:
            raise SAEError(
                f"features must be at least the width, {widths[site]} at {site}; got {config.features}. Raise `features`."
            )
    if snapshot_every < 1:
        raise SAEError(f"snapshot_every must be at least 1 step; got {snapshot_every}.")
    return schedules.pop()


def _checked(
    source: Iterator[Batch], start: int, steps: int, batch_size: int, widths: dict[str, int]
) -> Iterator[Batch]:
    """The batches of steps `start` to `steps` − 1."""
    for step in range(start, steps):
        batch = next(source, None)
        if batch is None:
            raise SAEError(
                f"training needs {steps} batches of {batch_size} tokens; the stream ended after {step}. "
                "Give more tokens or lower `steps`."
            )
        check_batch(batch, widths, batch_size, step)
        yield batch


def check_batch(batch: Batch, widths: dict[str, int], batch_size: int, step: int) -> None:
    for site, width in widths.items():
        if site not in batch:
            raise SAEError(f"batch {step} must hold every site; {site} is missing, it has {', '.join(batch)}.")
        if batch[site].shape != (batch_size, width):
            raise SAEError(f"batch {step} of {site} must be {(batch_size, width)}; got {tuple(batch[site].shape)}.")
        if not batch[site].isfinite().all():
            raise SAEError(
                f"activations must be finite; batch {step} of {site} is not. Run the model in float32 or bf16."
            )


def new_trainer(config: SAEConfig, width: int, device: str | torch.device) -> "SAETrainer[Any, Any]":
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    from sae.sparse_steps import SparseSteps, SparseTrainer

    schedule = SAETrainerConfig(
        total_training_samples=config.steps * config.batch_size,
        train_batch_size_samples=config.batch_size,
        lr=config.learning_rate,
        lr_end=config.learning_rate,
        lr_scheduler_name="constant",
        lr_warm_up_steps=config.warmup_steps,
        lr_decay_steps=config.decay_steps,
        device=str(device),
        dead_feature_window=min(1000, max(1, config.steps // 10)),
    )
    # SAELens draws initial weights from torch's global generator, here on the CPU so that they are the same on every
    # device. It draws nothing afterwards: steps are deterministic, so snapshots need no state of a generator.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        sae = _untrained_sae(config, width)
    kind = SparseTrainer if isinstance(sae, SparseSteps) else SAETrainer
    trainer = kind(cfg=schedule, sae=sae.to(device), data_provider=iter(()))
    for group in trainer.optimizer.param_groups:
        group["fused"] = True  # reads the weights once per step, a fifth of the time of torch's default on a CPU
    return trainer


def _untrained_sae(config: SAEConfig, width: int) -> "sae_lens.TrainingSAE":
    import sae_lens

    from sae.sparse_steps import BatchTopK, TopK

    shape = {"d_in": width, "d_sae": config.features, "normalize_activations": "expected_average_only_in"}
    if config.architecture == "standard":
        return sae_lens.StandardTrainingSAE(
            sae_lens.StandardTrainingSAEConfig(
                **shape, l1_coefficient=config.auxiliary, l1_warm_up_steps=config.warmup_steps
            )
        )
    if config.architecture == "jumprelu":
        return sae_lens.JumpReLUTrainingSAE(
            sae_lens.JumpReLUTrainingSAEConfig(
                **shape,
                jumprelu_sparsity_loss_mode="quadratic",  # the mode with a target L0, as in Gemma Scope 2
                target_l0=config.k,
                l0_coefficient=config.auxiliary,
                l0_warm_up_steps=config.warmup_steps,
            )
        )
    shape |= {"k": config.k, "aux_loss_coefficient": config.auxiliary}
    if config.architecture == "topk":
        return TopK(sae_lens.TopKTrainingSAEConfig(**shape))
    if config.architecture == "batchtopk":
        return BatchTopK(sae_lens.BatchTopKTrainingSAEConfig(**shape))
    levels = [config.features // 8, config.features // 4, config.features // 2, config.features]
    return sae_lens.MatryoshkaBatchTopKTrainingSAE(
        sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(**shape, matryoshka_widths=sorted({n for n in levels if n}))
    )


@torch.no_grad()
def _centre_and_scale(trainers: "dict[str, SAETrainer[Any, Any]]", stream: Iterator[tuple[int, Batch]]) -> None:
    """Scales activations to a mean norm of sqrt(d), and initialises the decoder bias with their mean.

    SAELens scales in the same way, but its ActivationScaler prints a progress bar. It initialises the bias with zero.
    Then the mean of a residual stream activates the same few features on every token, and the others die before Adam
    has moved the bias to the mean.
    """
    norms = dict.fromkeys(trainers, 0.0)
    sums = {site: torch.zeros_like(trainer.sae.b_dec, dtype=torch.float64) for site, trainer in trainers.items()}
    tokens = 0
    for _, batch in itertools.islice(stream, SAMPLE_BATCHES):
        for site, activations in batch.items():
            norms[site] += activations.norm(dim=-1).sum().item()
            sums[site] += activations.double().sum(dim=0)
        tokens += len(next(iter(batch.values())))
    for site, trainer in trainers.items():
        if not 0 < norms[site] < math.inf:
            size = "too large for float32" if norms[site] else "zero, or too small for float32"
            raise SAEError(
                f"activations must have a norm; those of {site} are {size}. Choose another site, or scale them."
            )
        scale = math.sqrt(trainer.sae.cfg.d_in) / (norms[site] / tokens)
        trainer.activation_scaler.scaling_factor = scale
        trainer.sae.b_dec.copy_(sums[site] / tokens * scale)


@torch.no_grad()
def _calibrate(trainers: "dict[str, SAETrainer[Any, Any]]", stream: Iterator[tuple[int, Batch]]) -> None:
    """Sets the threshold that replaces batch top-k after training, so that k features per token are active on average.

    SAELens keeps a running mean of the threshold over 100 steps, which starts at zero and lags behind the weights: with
    k = 32, the SAE of the embedded GPT-2 had 81 active features after 150 steps and 29 after 500.
    """
    thresholds: dict[str, list[Tensor]] = {
        site: [] for site, trainer in trainers.items() if hasattr(trainer.sae, "topk_threshold")
    }
    for _, batch in itertools.islice(stream, SAMPLE_BATCHES if thresholds else 0):
        for site, found in thresholds.items():
            trainer = trainers[site]
            active, _ = trainer.sae.encode_with_hidden_pre(trainer.activation_scaler(batch[site]))
            if not (active > 0).any():
                raise SAEError(
                    f"no feature of {site} is active after training: activations must vary, without single values that are far "
                    "larger than the rest. Look at them, or choose another site."
                )
            found.append(active[active > 0].min())
    for site, found in thresholds.items():
        trainers[site].sae.topk_threshold.fill_(torch.stack(found).mean())


def _finished(trainer: "SAETrainer[Any, Any]") -> "sae_lens.SAE":
    """The trained SAE with the scaling of its input folded into its weights."""
    trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.activation_scaler.scaling_factor = None
    trainer.set_final_sae_metadata()
    return trainer.sae.eval()


@torch.no_grad()
def _report(trainer: "SAETrainer[Any, Any]", output: Any) -> dict[str, float]:
    error = (output.sae_in - output.sae_out).pow(2).sum()
    variance = (output.sae_in - output.sae_in.mean(dim=0)).pow(2).sum()
    return {
        "loss": output.loss.item(),
        "fvu": (error / variance).item(),
        "dead": trainer.dead_neurons.float().mean().item(),
    }


def _snapshot(snapshots: Path, step: int, run: dict, trainers: "dict[str, SAETrainer[Any, Any]]") -> None:
    newest = snapshots / f"step-{step:08d}"
    with whole_folder(newest) as folder:
        for index, trainer in enumerate(
            trainers.values()
        ):  # the name of a site may not be valid as the name of a folder
            trainer.save_checkpoint(checkpoint_name=f"site-{index}", base_path=folder)
        (folder / RUN).write_text(json.dumps({"step": step, "sums": checksums(folder, RUN), **run}))
    for older in snapshots.glob("step-*"):
        if older != newest:
            shutil.rmtree(older)


def _resume(snapshots: Path, run: dict, trainers: "dict[str, SAETrainer[Any, Any]]") -> int:
    """Loads the newest snapshot into `trainers` and returns its number of steps, 0 without one; removes incomplete folders."""
    for partial in snapshots.glob(f"{PARTIAL}*"):
        shutil.rmtree(partial)
    complete = sorted(snapshots.glob("step-*"))
    if not complete:
        return 0
    newest = complete[-1]
    try:
        saved = json.loads((newest / RUN).read_text())
        step, written = saved.pop("step"), saved.pop("sums", None)  # none in one of an earlier version
        if written is not None and written != checksums(newest, RUN):
            raise ValueError("its files are not as they were written")
        if saved == run:
            for index, trainer in enumerate(trainers.values()):
                # SAELens uses torch's default of weights_only, True since 2.6, so trainer_state.pt cannot run code.
                trainer.load_trainer_state(newest / f"site-{index}")
                trainer.sae.load_weights_from_checkpoint(newest / f"site-{index}")
            return step
    except Exception as error:
        raise DamagedSnapshot(
            f"the snapshot {newest} cannot be read ({one_line(error)}). Delete it to start again."
        ) from error
    raise SAEError(
        f"the snapshot {newest} belongs to other sites, settings or another version. Delete it or give another folder."
    )
