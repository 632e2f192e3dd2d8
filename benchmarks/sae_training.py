"""Training SAEs of two sites in one pass, against SAELens's own runner for one site after the other. One JSON line.

Model, text, widths, k, batches, steps and learning rates are the same, and both sides are timed from the model to the
finished SAEs. Each side is a process of its own with the same number of threads. Quality is measured on the same
held-out tokens. SAELens estimates norms on 8 batches here, as stitch does (its default of 1,000 would take longer than
the training).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from _processes import last_line

from sae.config import SAEConfig
from sae.convert import to_dictionary
from sae.metrics import measure
from sae.train import SAMPLE_BATCHES, train
from stitch.activations.harvest import harvest
from stitch.activations.paired import Paired, pair
from stitch.config import Settings
from stitch.jobs import stages
from stitch.models.model import Model
from stitch.text.windows import Windows


def prepared(given: argparse.Namespace) -> tuple[Model, dict[str, Windows], SAEConfig]:
    settings = Settings(
        model_a=given.model, model_b=given.model, layer=given.sites[0], layer_b=given.sites[1], tokens=given.tokens,
        held_out=16_384, context=256,
    )  # fmt: skip
    a, b, _ = stages.load_pair(settings)
    windows = {str(split): found for split, found in stages.read_windows(settings, a, b).items()}
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
    return train(dict.fromkeys(widths, config), widths, batches, device=model.device)


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo:llama")
    parser.add_argument("--sites", type=int, nargs=2, default=[3, 4])
    parser.add_argument("--features", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--passes", type=float, default=2.0)
    parser.add_argument("--side", choices=["stitch", "saelens"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        one_side(given)
        return
    sides = {}
    for side in ("stitch", "saelens"):
        sides[side] = last_line([sys.executable, *sys.argv, "--side", side])
    ratio = {name: round(sides["stitch"][name] / sides["saelens"][name], 3) for name in ("seconds", "cpu_seconds")}
    setting = {name: getattr(given, name) for name in ("model", "sites", "features", "tokens", "passes")}
    print(json.dumps({"benchmark": "sae_training", **setting, **sides, "ratio": ratio}))


if __name__ == "__main__":
    main()
