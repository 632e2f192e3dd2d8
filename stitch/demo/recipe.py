"""How the embedded models were made: `python -m stitch.demo.recipe gpt2|llama|induction --work DIR --out DIR`.

Two small causal language models of different architecture, width and depth, one tokenizer, trained on the fit split of the
docstring corpus on one CPU core each; and a two-layer donor that has learned to repeat what came before, from random tokens in
half of every batch. Interrupt it at will: it continues from its last snapshot and ends with the same weights.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from stitch.models.anatomy import ANATOMIES
from stitch.models.model import Model
from stitch.text.corpus import cached_documents
from stitch.text.documents import select
from stitch.text.windows import pack

VOCABULARY = 4096
CONTEXT = 256
SNAPSHOT_EVERY, LOG_EVERY = 250, 50  # steps
BOS, PAD = "<|endoftext|>", "<|pad|>"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Steps of `batch` windows; Muon for the matrices inside blocks, AdamW for everything else.

    `rates` are points (step, share of the peak rate), joined by straight lines and flat before the first, after `warmup` steps.
    """

    family: str
    shape: dict
    steps: int
    rates: tuple[tuple[int, float], ...]
    batch: int = 16
    warmup: int = 60
    rate_matrices: float = 0.02
    rate_others: float = 0.003
    seed: int = 0
    repeats: int = 0  # windows of a batch that are random tokens, part of which come twice, and no text

    def hash(self) -> str:
        content = asdict(self)
        if not self.repeats:  # recipes that are older than this
            del content["repeats"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


RECIPES = {
    "gpt2": Recipe(
        family="gpt2",
        steps=1775,
        rates=((1200, 1.0), (1750, 650 / 1200), (1775, 0.0)),
        shape=dict(
            n_layer=6, n_embd=160, n_head=5, n_positions=CONTEXT, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        ),
    ),
    "llama": Recipe(
        family="llama",
        steps=1950,
        rates=((999, 1.0), (1000, 900 / 950), (1500, 400 / 950), (1750, 400 / 950 * 400 / 650), (1950, 0.0)),
        shape=dict(
            num_hidden_layers=8,
            hidden_size=192,
            num_attention_heads=6,
            num_key_value_heads=2,
            intermediate_size=512,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
        ),
    ),
    "induction": Recipe(
        family="gpt2",
        steps=1500,
        rates=((1000, 1.0), (1500, 0.0)),
        repeats=8,
        shape=dict(
            n_layer=2, n_embd=128, n_head=4, n_positions=CONTEXT, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        ),
    ),
    "induction-llama": Recipe(
        family="llama",
        steps=1500,
        rates=((1000, 1.0), (1500, 0.0)),
        repeats=8,
        shape=dict(
            num_hidden_layers=2,
            hidden_size=128,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=256,
            max_position_embeddings=CONTEXT,
            attention_bias=True,
            tie_word_embeddings=True,
        ),
    ),
}


def train_tokenizer(texts: list[str]):
    """Byte-level BPE with 4,096 entries, two of them special; BOS is put before a text as it was in training."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=CONTEXT,
    )


def build(recipe: Recipe) -> PreTrainedModel:
    torch.manual_seed(recipe.seed)
    config = AutoConfig.for_model(
        recipe.family,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        use_cache=False,
        **recipe.shape,
    )
    net = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if recipe.repeats:
        plant(net)
    return net


@torch.no_grad()
def plant(net: PreTrainedModel) -> None:
    """Head 0.0 starts as one that looks one token back: random attention takes long to become one. Training may change it."""
    from stitch.grafts import heads
    from stitch.internals import weights
    from stitch.internals.positions import code_frequencies, offset_head, position_codes

    model = Model("planted", net, None, ANATOMIES[net.config.model_type], Path())
    attention, table = weights.attention(model, 0), weights.positions(model)
    frequencies = weights.frequencies(model) if table is None else code_frequencies(12, CONTEXT)
    width, size = attention.q.shape[0], attention.q.shape[2]
    blank = torch.zeros(width, size, dtype=torch.float64)
    nothing = heads.Head(blank, blank[0], blank, blank[0], blank, blank[0], blank.T)
    head = heads.looking_back(
        nothing, offset_head(frequencies, 1, CONTEXT), size, attention.scale, coded=table is not None, steady=True
    )
    if table is None:
        assert attention.q_bias is not None and attention.k_bias is not None
        attention.q_bias[0], attention.k_bias[0] = head.q_bias, head.k_bias
        attention.q[:, 0] = attention.k[:, 0] = 0
        return
    assert head.q_codes is not None and head.k_codes is not None
    model.embedding.weight.mul_(5)  # longer, so that the first steps of the optimiser do not turn positions round
    lanes = torch.linalg.qr(torch.randn(width, len(head.q_codes), dtype=torch.float64)).Q.T
    spread = model.embedding.weight.std() * width**0.5
    table.copy_(spread * position_codes(frequencies, CONTEXT) @ lanes)
    seen = (width / 2) ** 0.5  # of a code, once positions and tokens, equally long, are normalised
    attention.q[:, 0], attention.k[:, 0] = lanes.T @ head.q_codes / seen, lanes.T @ head.k_codes / seen


def optimisers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inside_a_block = ".h." in name or ".layers." in name
        (matrices if inside_a_block and parameter.ndim == 2 else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=recipe.rate_matrices, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.rate_others, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_at(step: int, recipe: Recipe) -> float:
    steps, shares = zip(*recipe.rates, strict=True)
    return min((step + 1) / recipe.warmup, float(np.interp(step, steps, shares)))


def loss_of(model: Callable[..., Any], ids: Tensor, known: Tensor | None = None) -> Tensor:
    """Of all tokens but the first, or of those that are `known` from what is before them."""
    logits, answers = model(input_ids=ids).logits[:, :-1], ids[:, 1:]
    if known is not None:
        answers = answers.where(known[:, 1:], -100)
    return nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten())


def repeated(count: int, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Windows of random tokens in which a sequence of 8 to 64 comes again and again, others between; and which tokens are known
    from the time before."""
    generator = torch.Generator().manual_seed(seed + 1_000_003 * (step + 1))

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    ids = torch.randint(2, VOCABULARY, (count, CONTEXT), generator=generator)
    ids[:, 0] = 0
    known = torch.zeros_like(ids, dtype=torch.bool)
    for row, drawn in enumerate(ids.clone()):
        length = draw(8, 65)
        place = 1 + draw(0, 16)
        first = place
        while (place := place + length + draw(0, 16)) + length <= CONTEXT:
            ids[row, place : place + length] = drawn[first : first + length]
            known[row, place + 1 : place + length] = True
    return ids, known


@torch.no_grad()
def held_out(model: nn.Module, ids: Tensor, batch: int = 16) -> float:
    losses = [(loss_of(model, part).item(), len(part)) for part in ids.split(batch)]
    return sum(loss * size for loss, size in losses) / sum(size for _, size in losses)


def batch_indices(step: int, windows: int, recipe: Recipe) -> Tensor:
    """Window indices of a step: a fresh permutation every epoch, a pure function of the step so that resuming is exact."""
    positions = range(step * recipe.batch, (step + 1) * recipe.batch)
    epochs = {position // windows for position in positions}
    order = {
        epoch: torch.randperm(windows, generator=torch.Generator().manual_seed(recipe.seed + epoch)) for epoch in epochs
    }
    return torch.stack([order[position // windows][position % windows] for position in positions])


def batch(step: int, fit: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor | None]:
    """Windows of a step, and which of their tokens count."""
    text = fit[batch_indices(step, len(fit), recipe)]
    if not recipe.repeats:
        return text, None
    ids, known = repeated(recipe.repeats, step, recipe.seed)
    text = text[recipe.repeats :]
    return torch.cat([text, ids]), torch.cat([torch.ones_like(text, dtype=torch.bool), known])


def train(recipe: Recipe, work: Path, log=print) -> tuple[PreTrainedModel, list[dict]]:
    """Trains from the newest snapshot in `work` (or from scratch) to the last step. Returns the model and the loss curve."""
    work.mkdir(parents=True, exist_ok=True)
    corpus = cached_documents()
    if not (work / "tokenizer").exists():
        shipped = Path(__file__).parent / "gpt2"  # what comes later has the pair's
        if (shipped / "tokenizer.json").exists():
            load_tokenizer(shipped).save_pretrained(work / "tokenizer")
        else:
            train_tokenizer([text for _, text in select(corpus, "fit")]).save_pretrained(work / "tokenizer")
    tokenizer = load_tokenizer(work / "tokenizer")
    fit = pack(select(corpus, "fit"), tokenizer, CONTEXT).ids.long()
    sweep = pack(select(corpus, "sweep"), tokenizer, CONTEXT).ids.long()[:128]
    log(f"{fit.numel():,} training tokens, {len(fit) // recipe.batch} steps an epoch")

    model = build(recipe)
    optimizers = optimisers(model, recipe)
    snapshot = work / "snapshot.pt"
    curve, start = [], 0
    if snapshot.exists():
        saved = torch.load(snapshot, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        curve, start = saved["curve"], saved["step"]
    peak_rates = (recipe.rate_matrices, recipe.rate_others)
    compiled = torch.compile(model)  # a fifth faster on a CPU
    running, clock = [], time.perf_counter()
    for step in range(start, recipe.steps):
        for optimizer, peak in zip(optimizers, peak_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate_at(step, recipe)
        loss = loss_of(compiled, *batch(step, fit, recipe))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running.append(loss.item())
        if not math.isfinite(running[-1]):
            raise FloatingPointError(f"loss is {running[-1]} at step {step}")
        pause = (step + 1) % SNAPSHOT_EVERY == 0 or step + 1 == recipe.steps
        if pause or (step + 1) % LOG_EVERY == 0:
            speed = len(running) * recipe.batch * CONTEXT / (time.perf_counter() - clock)
            entry = {"step": step + 1, "train": round(sum(running) / len(running), 4)}
            if pause:
                entry["sweep"] = round(held_out(model, sweep), 4)
                _save(snapshot, model, optimizers, [*curve, entry], step + 1)
            curve.append(entry)
            log(f"{entry} {speed:,.0f} tokens/s")
            running, clock = [], time.perf_counter()
    return model, curve


def _save(path: Path, model: nn.Module, optimizers: list, curve: list, step: int) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "curve": curve,
        "step": step,
    }
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def ship(name: str, recipe: Recipe, model: PreTrainedModel, curve: list[dict], tokenizer: Path, out: Path) -> dict:
    """Writes the model as it is shipped: bf16 safetensors, tokenizer, and a card with the recipe, the loss curve and the score.

    The score is taken after rounding to bf16, on the whole report split, which no step of training has seen.
    """
    from stitch.evaluation.scores import evaluate, whole_model
    from stitch.text.documents import select

    shipped: PreTrainedModel = model.to(torch.bfloat16).float()  # pyright: ignore[reportArgumentType, reportCallIssue]
    shipped.config.use_cache = True
    shipped.generation_config.use_cache = True
    text = pack(select(cached_documents(), "report"), load_tokenizer(tokenizer), CONTEXT)
    score = evaluate({name: whole_model(shipped)}, text, vocabulary=VOCABULARY)[name].row(name)
    out.mkdir(parents=True, exist_ok=True)
    shipped.to(torch.bfloat16).save_pretrained(out)  # pyright: ignore[reportArgumentType, reportCallIssue]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / file, out / file)
    card = {
        "name": f"demo:{name}",
        "parameters": sum(parameter.numel() for parameter in shipped.parameters()),
        "recipe": asdict(recipe),
        "recipe_hash": recipe.hash(),
        "report": {"tokens": text.tokens, "ce": score["ce"], "low": score["ce_low"], "high": score["ce_high"]},
        "curve": curve,
    }
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    return card


def load_tokenizer(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--work", type=Path, required=True, help="snapshots go here")
    parser.add_argument("--out", type=Path, required=True, help="the finished model goes here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = RECIPES[arguments.name]
    model, curve = train(recipe, arguments.work, log=lambda line: print(line, flush=True))
    card = ship(arguments.name, recipe, model, curve, arguments.work / "tokenizer", arguments.out)
    print(
        f"{card['name']}: {card['parameters']:,} parameters, cross-entropy {card['report']['ce']:.3f} on the report split"
    )


if __name__ == "__main__":
    main()
