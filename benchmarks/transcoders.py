"""Trains transcoders for a model's MLPs, for the `--features` option of `stitch circuit` and `stitch graft`.

They use batch top-k in training and JumpReLU in use, in SAELens's format. Half of the windows are documentation, half
random tokens, like prompts for induction. One JSON line per block: share of unexplained variance, active features per
token, share of dead features. `python benchmarks/transcoders.py demo:induction --out transcoders`.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sae.storage import save
from stitch.models.device import torch_device
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve
from stitch.text.corpus import cached_documents
from stitch.text.documents import select
from stitch.text.tokenizers import bos_of
from stitch.text.windows import pack

WINDOWS, RATE, WARM_UP = 16, 2e-3, 50  # windows per batch; Adam's learning rate and its warm-up steps
HELD_OUT = 16  # batches for the reported scores, after those for training


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--active", type=int, default=16, help="Active features per token, on average.")
    parser.add_argument("--steps", type=int, default=1500, help="Training steps of 16 windows.")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    source = resolve(given.model)
    model = load(source.folder, name=source.name, dtype=torch.float32, device=torch_device(given.device))
    torch.manual_seed(given.seed)
    ids = windows(model, (given.steps + HELD_OUT) * WINDOWS, given.context, given.seed)
    found = [Transcoder(model.width, given.features, given.active).to(model.device) for _ in range(model.depth)]
    train(model, found, ids[: given.steps * WINDOWS], given.steps)
    held = list(inner(model, ids[given.steps * WINDOWS :]))
    for block, one in enumerate(found):
        pairs = [batch[block] for batch in held]
        said = {"model": given.model, "block": block, "features": given.features, **one.measured(pairs)}
        provenance = {**vars(given), "out": str(given.out), **said}
        save(one.as_jumprelu(f"blocks.{block}.ln2.hook_normalized"), given.out / str(block), provenance)
        print(json.dumps(said), flush=True)


def windows(model: Model, count: int, context: int, seed: int) -> Tensor:
    """Half documentation, half random tokens after BOS, shuffled."""
    bos, generator = bos_of(model.tokenizer), torch.Generator().manual_seed(seed)
    text = pack(select(cached_documents(), "fit"), model.tokenizer, context, count // 2 * context).ids
    drawn = torch.randint(len(model.embedding.weight), (count - len(text), context), generator=generator)
    drawn[:, 0] = bos
    both = torch.cat([text.long(), drawn])
    return both[torch.randperm(len(both), generator=generator)]


@torch.no_grad()
def inner(model: Model, ids: Tensor) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """By batch and block: input and output of the MLP, token by token."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def watch(block: int):
        def hook(module, args, output) -> None:
            seen[block] = (args[0].flatten(0, 1), output.flatten(0, 1))

        return hook

    places = [model.blocks[block].get_submodule(model.anatomy.mlp) for block in range(model.depth)]
    handles = [place.register_forward_hook(watch(block)) for block, place in enumerate(places)]
    for part in ids.split(WINDOWS):
        model.net(input_ids=part.to(model.device), use_cache=False)
        yield [seen[block] for block in range(model.depth)]
    for handle in handles:
        handle.remove()


class Transcoder(torch.nn.Module):
    def __init__(self, width: int, features: int, active: int) -> None:
        super().__init__()
        decoder = torch.randn(features, width)
        decoder /= decoder.norm(dim=1, keepdim=True)
        self.decoder, self.encoder = torch.nn.Parameter(decoder), torch.nn.Parameter(decoder.T.clone())
        self.encoder_bias = torch.nn.Parameter(torch.zeros(features))
        self.decoder_bias = torch.nn.Parameter(torch.zeros(width))
        self.active = active
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        codes = (x @ self.encoder + self.encoder_bias).relu()
        least = codes.flatten().topk(self.active * len(x)).values[-1]
        # The threshold in use is a running mean of the smallest code that is kept.
        self.threshold = least.detach() if not self.threshold else torch.lerp(self.threshold, least.detach(), 0.02)
        return (codes * (codes >= least)) @ self.decoder + self.decoder_bias

    def codes(self, x: Tensor) -> Tensor:
        found = (x @ self.encoder + self.encoder_bias).relu()
        return found * (found > self.threshold)

    @torch.no_grad()
    def measured(self, pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        x, y = (torch.cat(side) for side in zip(*pairs, strict=True))
        codes = self.codes(x)
        missed = (y - codes @ self.decoder - self.decoder_bias).square().sum()
        return {
            "fvu": float(missed / (y - y.mean(0)).square().sum()),
            "l0": float((codes > 0).float().sum(1).mean()),
            "dead": float((codes == 0).all(0).float().mean()),
        }

    @torch.no_grad()
    def as_jumprelu(self, hook: str):
        from sae_lens import JumpReLUTranscoder, JumpReLUTranscoderConfig
        from sae_lens.saes.sae import SAEMetadata

        features, width = self.decoder.shape
        config = JumpReLUTranscoderConfig(
            d_in=width, d_sae=features, d_out=width, apply_b_dec_to_input=False, metadata=SAEMetadata(hook_name=hook)
        )
        found = JumpReLUTranscoder(config)
        found.load_state_dict({
            "W_enc": self.encoder.cpu(), "b_enc": self.encoder_bias.cpu(), "W_dec": self.decoder.cpu(),
            "b_dec": self.decoder_bias.cpu(), "threshold": self.threshold.cpu().expand(features).clone(),
        })  # fmt: skip
        return found


def train(model: Model, found: list[Transcoder], ids: Tensor, steps: int) -> None:
    """Trains all blocks at once. The loss is the squared error divided by the variance of the MLP's output."""
    optimiser = torch.optim.Adam([value for one in found for value in one.parameters()], lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / WARM_UP, 5 * (1 - step / steps), 1.0)
    )
    for number, batch in enumerate(inner(model, ids)):
        losses = []
        for one, (x, y) in zip(found, batch, strict=True):
            if number == 0:
                one.decoder_bias.data.copy_(y.mean(0))
            losses.append((one(x) - y).square().sum() / (y - y.mean(0)).square().sum())
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        optimiser.step()
        schedule.step()
        if number % 100 == 0:
            print(
                f"step {number} of {steps}: {[round(loss.item(), 4) for loss in losses]}", file=sys.stderr, flush=True
            )


if __name__ == "__main__":
    main()
