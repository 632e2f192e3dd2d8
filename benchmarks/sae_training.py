"""Training SAEs of two sites in one pass, against SAELens's own runner for one site after the other. One JSON line.

With `--before FOLDER`, an earlier checkout of this repository, one SAE instead against training as that checkout does
it, on the streams of `--sites` side by side, each scaled to the same mean norm. Rounds are interleaved, each with its
own seed; harvesting is not timed.

Model, text, widths, k, batches, steps and learning rates are the same, and both sides are timed from the model to the
finished SAEs. Each side is a process of its own with the same number of threads. Quality is measured on the same
held-out tokens. SAELens estimates norms on 8 batches here, as stitch does (its default of 1,000 would take longer than
the training).
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from _processes import last_line
from safetensors.torch import load_file, save_file

from sae.config import SAEConfig
from sae.convert import to_dictionary
from sae.metrics import measure
from sae.trainer import SAMPLE_BATCHES, train_sites
from stitch.activations.harvest import harvest
from stitch.activations.paired import Paired, pair, without_sinks
from stitch.config import Settings
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.text import read_windows
from stitch.models.model import Model
from stitch.text.windows import Windows


def prepared(given: argparse.Namespace) -> tuple[Model, dict[str, Windows], SAEConfig]:
    settings = Settings(
        model_a=given.model, model_b=given.model, layer=given.sites[0], layer_b=given.sites[-1], tokens=given.tokens,
        held_out=given.held_out, context=256,
    )  # fmt: skip
    a, b, _ = load_pair(settings)
    windows = {str(split): found for split, found in read_windows(settings, a, b).items()}
    batch = 2048
    steps = int(given.passes * windows["fit"].tokens) // batch
    return a, windows, SAEConfig(features=given.features, steps=steps, batch_size=batch)


def by_stitch(model: Model, windows: Windows, sites: list[int], config: SAEConfig, work: Path) -> dict:
    found = harvest(model, windows, sites, work)
    paired = pair(found, found, *sites)

    def batches(start: int) -> Iterator[dict[str, torch.Tensor]]:
        for rows in paired.batches(config.batch_size, seed=0, group=4, start=start):
            yield dict(zip(map(str, sites), rows, strict=True))

    widths = {str(site): model.width for site in sites}
    return train_sites(dict.fromkeys(widths, config), widths, batches, device=model.device)


def by_saelens(model: Model, windows: Windows, sites: list[int], config: SAEConfig, work: Path) -> dict:
    import datasets
    import sae_lens
    from sae_lens.load_model import HookedProxyLM

    rows = windows.ids.tolist()
    text = datasets.Dataset.from_dict(
        {"input_ids": rows * (-(-config.steps * config.batch_size // windows.ids.numel()) + 2)}
    )
    saes = {}
    for site in sites:
        name = next(name for name, module in model.net.named_modules() if module is model.blocks[site - 1])
        settings = sae_lens.LanguageModelSAERunnerConfig(
            sae=sae_lens.BatchTopKTrainingSAEConfig(
                d_in=model.width, d_sae=config.features, k=config.k, normalize_activations="expected_average_only_in"
            ),
            model_name=model.name, model_class_name="AutoModelForCausalLM", hook_name=name, dataset_path="",
            is_dataset_tokenized=True, streaming=False, context_size=windows.context, prepend_bos=False,
            training_tokens=config.steps * config.batch_size, train_batch_size_tokens=config.batch_size,
            store_batch_size_prompts=16, n_batches_in_buffer=16, n_batches_for_norm_estimate=SAMPLE_BATCHES,
            lr=config.learning_rate, lr_end=config.learning_rate, lr_warm_up_steps=config.warmup_steps,
            lr_decay_steps=config.decay_steps, dead_feature_window=max(1, config.steps // 10), n_eval_batches=0,
            logger=sae_lens.LoggingConfig(log_to_wandb=False), output_path=None, checkpoint_path=str(work),
            verbose=False, seed=config.seed, device="cpu",
        )  # fmt: skip
        proxy = HookedProxyLM(model.net, model.tokenizer, hook_names=[name])
        runner = sae_lens.LanguageModelSAETrainingRunner(settings, override_dataset=text, override_model=proxy)
        saes[str(site)] = runner.run().eval()
    return saes


def one_side(given: argparse.Namespace) -> None:
    model, windows, config = prepared(given)
    with tempfile.TemporaryDirectory() as work:
        start, start_cpu = time.perf_counter(), time.process_time()
        make = {"stitch": by_stitch, "saelens": by_saelens}[given.side]
        saes = make(model, windows["fit"], given.sites, config, Path(work) / "fit")
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        found = harvest(model, windows["report"], given.sites, Path(work) / "report")
        held_out: Paired = pair(found, found, *given.sites)
        quality = {
            site: measure(to_dictionary(sae), (rows[place] for rows in held_out.chunks()))
            for place, (site, sae) in enumerate(saes.items())
        }
    print(json.dumps({
        "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "steps": config.steps,
        "fvu": {site: found.fvu for site, found in quality.items()}, "l0": {site: found.l0 for site, found in quality.items()},
    }))  # fmt: skip


def side_by_side(given: argparse.Namespace, work: Path) -> Path:
    """A file with the streams of all sites in the columns of one matrix, for the fit and for the report split."""
    model, windows, _ = prepared(given)
    scales, joined = {}, {}
    for split in ("fit", "report"):
        found = harvest(model, windows[split], given.sites, work / split)
        keep = without_sinks(found, given.sites)
        columns = []
        for site in given.sites:
            stream = torch.cat([x.float() for x, _, _ in Paired(found, found, site, site, keep).chunks()])
            scales.setdefault(site, stream.norm(dim=1).mean())  # of the fit split, which comes first
            columns.append(stream / scales[site])
        joined[split] = torch.cat(columns, dim=1)[:, : given.width].contiguous()
    save_file(joined, work / "streams.safetensors")
    return work / "streams.safetensors"


def one_wide_side(given: argparse.Namespace) -> None:
    streams = load_file(given.side)
    fit = streams["fit"]
    batch = 1024 if len(fit) >= 64 * 1024 else 256  # as `stitch` chooses it
    steps, per_pass = int(given.passes * len(fit)) // batch, len(fit) // batch

    def batches(start: int) -> Iterator[dict[str, torch.Tensor]]:
        for step in range(start, steps):
            order = torch.randperm(len(fit), generator=torch.Generator().manual_seed(step // per_pass))
            yield {"site": fit[order.split(batch)[step % per_pass]]}

    config = SAEConfig(
        architecture=given.architecture, features=given.features, steps=steps, batch_size=batch, seed=given.seed
    )
    start, start_cpu = time.perf_counter(), time.process_time()
    sae = train_sites({"site": config}, {"site": fit.shape[1]}, batches)["site"]
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    quality = measure(to_dictionary(sae), streams["report"].split(2048))
    print(json.dumps({
        "seconds": seconds, "cpu_seconds": cpu, "fvu": quality.fvu, "l0": quality.l0, "dead": quality.dead, "steps": steps,
        "batch": batch, "width": fit.shape[1], "tokens": len(fit), "threads": torch.get_num_threads(),
    }))  # fmt: skip


def against_before(given: argparse.Namespace) -> dict:
    now = Path(__file__).resolve().parent.parent
    rounds: dict[str, list[dict]] = {"before": [], "now": []}
    with tempfile.TemporaryDirectory() as work:
        file = side_by_side(given, Path(work))
        for seed in range(given.rounds):
            for side, folder in (("before", given.before), ("now", now)):
                environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
                command = [sys.executable, *sys.argv, "--seed", seed, "--side", file]
                rounds[side].append(last_line(command, env=environment))
                print(side, json.dumps(rounds[side][-1]), file=sys.stderr, flush=True)
    setting = {name: getattr(given, name) for name in ("model", "sites", "features", "architecture", "rounds")}
    return {**setting, **compared(rounds["before"], rounds["now"])}


def compared(before: list[dict], now: list[dict]) -> dict:
    """Medians over the rounds of either side and of the ratio within a round, with the ranges over rounds."""
    names = ("seconds", "cpu_seconds", "fvu", "l0", "dead")
    sides = {
        side: {name: statistics.median(one[name] for one in found) for name in names}
        for side, found in (("before", before), ("now", now))
    }
    pairs = list(zip(before, now, strict=True))
    ratios = {name: sorted(new[name] / old[name] for old, new in pairs) for name in ("seconds", "cpu_seconds")}
    differences = {name: sorted(new[name] - old[name] for old, new in pairs) for name in ("fvu", "dead")}
    return {
        **{name: now[0][name] for name in ("tokens", "width", "batch", "steps", "threads")},
        **sides,
        "ratio": {name: statistics.median(found) for name, found in ratios.items()},
        "range": {name: [found[0], found[-1]] for name, found in ratios.items()},
        "difference": {name: [found[0], found[-1]] for name, found in differences.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo:llama")
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 4], help="two; with --before any number")
    parser.add_argument("--features", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--passes", type=float, default=2.0)
    parser.add_argument("--held-out", type=int, default=16_384)
    parser.add_argument("--before", type=Path, help="an earlier checkout of this repository")
    parser.add_argument("--rounds", type=int, default=5, help="with --before")
    parser.add_argument("--width", type=int, default=1536, help="columns of the streams, at most; with --before")
    parser.add_argument("--architecture", default="batchtopk", help="with --before")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        (one_wide_side if given.before else one_side)(given)
        return
    if given.before:
        print(json.dumps({"benchmark": "sae_steps", **against_before(given)}))
        return
    sides = {}
    for side in ("stitch", "saelens"):
        sides[side] = last_line([sys.executable, *sys.argv, "--side", side])
    ratio = {name: round(sides["stitch"][name] / sides["saelens"][name], 3) for name in ("seconds", "cpu_seconds")}
    setting = {name: getattr(given, name) for name in ("model", "sites", "features", "tokens", "passes")}
    print(json.dumps({"benchmark": "sae_training", **setting, **sides, "ratio": ratio}))


if __name__ == "__main__":
    main()
