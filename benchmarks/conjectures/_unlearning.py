"""Ways to learn and to unlearn a document, for `traces.py`; each starts from weights and returns weights."""

import torch
from conversions_consolidate import CONTEXT, LENGTH, QUERIES
from jaxtyping import Float, Int
from torch import Tensor, nn

from stitch.conversions.consolidation.arms import ModelAndText, fit, queries_about
from stitch.conversions.consolidation.slow_weights import apply_edit
from stitch.evaluation.relearning import STEPS, in_pieces, learn, restored
from stitch.evaluation.scores import evaluate, whole_model
from stitch.text.documents import read, select
from stitch.text.tokenizers import bos_of

LEARN, LEARN_RATE = 8, 3e-4
RELEARN_RATE, OTHER_RATE = 1e-4, 3e-4
UNLEARN_RATE, BETA, MOST = 1e-4, 0.1, 100  # of NPO: rate, temperature, steps at most
RETAIN, RETAINED = 10.0, 1  # weight of the KL on other text, and its windows per step
NOISE = 0.1  # standard deviation of the noise, in units of each tensor's own
DISTIL, DISTIL_RATE, WINDOWS = 40, 3e-4, 2  # steps, and windows of 256 tokens per step
AGAINST, AGAINST_RATE = 80, 3e-4  # steps of training against relearning
COST_TOKENS = 2_048
SETTINGS = {name: value for name, value in globals().items() if name.isupper()}  # of all arms, also those imported
Weights = list[Tensor]


def documents(setup: ModelAndText, count: int) -> list[Int[Tensor, " tokens"]]:
    """Long enough documents of the report split of which nothing is in the text that costs are measured on."""
    used, found = set(setup.windows["report"].first(COST_TOKENS).document.unique().tolist()), []
    for place, (_, text) in enumerate(select(read("docs"), "report")):
        ids = setup.model.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        if place not in used and len(ids) >= CONTEXT + QUERIES * LENGTH:
            found.append(torch.tensor(ids[: CONTEXT + QUERIES * LENGTH]))
        if len(found) == count:
            break
    return found


class Workbench:
    """One model whose weights are set, trained and measured; other text for retaining and for costs."""

    def __init__(self, setup: ModelAndText) -> None:
        self.setup, self.net = setup, setup.model.net
        self.other = setup.windows["fit"].ids.long()
        self.cost_text = setup.windows["report"].first(COST_TOKENS)
        self.never = self.weights()
        self.before = self.ce(self.cost_text)

    def weights(self) -> Weights:
        return [one.detach().clone() for one in self.net.parameters()]

    @torch.no_grad()
    def set(self, weights: Weights) -> None:
        for one, value in zip(self.net.parameters(), weights, strict=True):
            one.copy_(value)

    def pieces(self, ids: Int[Tensor, " tokens"]) -> list[Tensor]:
        return in_pieces(ids, bos_of(self.setup.model.tokenizer), self.setup.model.longest)

    def log_probabilities(self, ids: Int[Tensor, "windows length"]) -> Float[Tensor, "windows length vocabulary"]:
        return self.net(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)

    @torch.no_grad()
    def ce_on(self, ids: Int[Tensor, " tokens"]) -> float:
        (piece,) = self.pieces(ids)
        found = self.log_probabilities(piece)[0, :-1]
        return float(-found.gather(1, piece[0, 1:, None]).mean())

    def ce(self, windows) -> float:
        row = {"model": whole_model(self.net)}
        return evaluate(row, windows, vocabulary=self.setup.model.vocabulary)["model"].ce

    @torch.no_grad()
    def ce_of_queries(self, ids: Int[Tensor, " tokens"]) -> float:
        """On the tokens behind the document, as many as fit into the context with it; nothing was trained on them."""
        (whole,) = self.pieces(ids[: self.setup.model.longest - 1])
        found = self.log_probabilities(whole)[0, :-1]
        return float(-found.gather(1, whole[0, 1:, None])[CONTEXT:].mean())

    def measured(self, weights: Weights, ids: Tensor, another: Tensor) -> dict:
        """Relearning curves on the document and on another one, at both rates, and the cost of the weights on other text."""
        self.set(weights)
        found: dict = {"queries": self.ce_of_queries(ids), "cost": self.ce(self.cost_text) - self.before}
        for rate, kind in ((RELEARN_RATE, ""), (OTHER_RATE, ", other rate")):
            for name, document in (("document", ids), ("another", another)):
                with restored(self.net):
                    found[name + kind] = learn(self.net, self.pieces(document[:CONTEXT]), rate).tolist()
                    if name + kind == "document":
                        found["queries_after"] = self.ce_of_queries(ids)
        return found

    def learned(self, ids: Tensor) -> Weights:
        self.set(self.never)
        for one in self.net.parameters():
            one.requires_grad_(True)
        learn(self.net, self.pieces(ids), LEARN_RATE, LEARN)
        return self.weights()

    def unlearned(
        self, learned: Weights, ids: Tensor, target: float, generator: torch.Generator
    ) -> tuple[Weights, int]:
        """NPO until the cross-entropy on `ids` is `target`, the last step shortened; and the number of steps."""
        self.set(learned)
        (piece,) = self.pieces(ids)
        optimiser = torch.optim.AdamW(self.net.parameters(), lr=UNLEARN_RATE, weight_decay=0)
        reference = -self.ce_on(ids) * len(ids)  # log-probability of the document under the learned model
        for step in range(1, MOST + 1):
            last = self.weights()
            retain = self.kl_on_other_text(last, learned, generator)
            optimiser.zero_grad()
            own = self.log_probabilities(piece)[0, :-1].gather(1, piece[0, 1:, None]).sum()
            forget = -2 / BETA * nn.functional.logsigmoid(-BETA * (own - reference) / len(ids))
            (forget + RETAIN * retain).backward()
            optimiser.step()
            if self.ce_on(ids) >= target:
                return self.between(last, self.weights(), ids, target), step
        raise SystemExit(f"not unlearned in {MOST} steps: {self.ce_on(ids):.3f} of {target:.3f} nats")

    def kl_on_other_text(self, weights: Weights, learned: Weights, generator: torch.Generator) -> Float[Tensor, ""]:
        """Of `weights`, which are set, to `learned`, on windows that are drawn."""
        some = self.other[torch.randint(len(self.other), (RETAINED,), generator=generator)]
        self.set(learned)
        with torch.no_grad():
            wanted = self.log_probabilities(some)
        self.set(weights)
        return (wanted.exp() * (wanted - self.log_probabilities(some))).sum(-1).mean()

    def against_relearning(
        self, unlearned: Weights, learned: Weights, ids: Tensor, curve: list[float], generator: torch.Generator
    ) -> Weights:
        """Trained so that after some steps of relearning, as many as are drawn, the cross-entropy on `ids` is that of `curve`.

        The gradient is taken behind these steps and applied before them (first-order MAML, arXiv 1803.02999), as defences
        against tampering are trained (arXiv 2408.00761); the KL on other text is that of unlearning.
        """
        self.set(unlearned)
        (piece,) = pieces = self.pieces(ids)
        parameters = list(self.net.parameters())
        optimiser = torch.optim.AdamW(parameters, lr=AGAINST_RATE, weight_decay=0)
        for _ in range(AGAINST):
            now, steps = self.weights(), int(torch.randint(STEPS + 1, (1,), generator=generator))
            with restored(self.net):
                learn(self.net, pieces, RELEARN_RATE, steps)
                own = self.log_probabilities(piece)[0, :-1].gather(1, piece[0, 1:, None])
                forget = torch.autograd.grad(0.5 * (-own.mean() - curve[steps]) ** 2, parameters)
            retain = torch.autograd.grad(RETAIN * self.kl_on_other_text(now, learned, generator), parameters)
            for one, first, second in zip(parameters, forget, retain, strict=True):
                one.grad = first + second
            optimiser.step()
        return self.weights()

    def between(self, low: Weights, high: Weights, ids: Tensor, target: float) -> Weights:
        """The weights on the line from `low` to `high` with that cross-entropy, by bisection."""
        start, stop, found = 0.0, 1.0, high
        for _ in range(20):
            share = (start + stop) / 2
            found = [torch.lerp(a, b, share) for a, b in zip(low, high, strict=True)]
            self.set(found)
            off = self.ce_on(ids) - target
            if abs(off) < 1e-3:
                break
            start, stop = (start, share) if off > 0 else (share, stop)
        return found

    def distilled(self, weights: Weights, teacher: Weights, seed: int) -> Weights:
        """The weights with noise, then trained to predict other text as the teacher does."""
        generator = torch.Generator().manual_seed(seed)
        self.set(teacher)
        batches = [self.other[torch.randint(len(self.other), (WINDOWS,), generator=generator)] for _ in range(DISTIL)]
        with torch.no_grad():
            wanted = [self.log_probabilities(some) for some in batches]
        spread = [NOISE * one.std() if one.numel() > 1 else torch.zeros(()) for one in weights]
        noise = [torch.randn(one.shape, generator=generator) for one in weights]
        self.set([one + size * drawn for one, size, drawn in zip(weights, spread, noise, strict=True)])
        optimiser = torch.optim.AdamW(self.net.parameters(), lr=DISTIL_RATE, weight_decay=0)
        for number, (some, goal) in enumerate(zip(batches, wanted, strict=True)):
            for group in optimiser.param_groups:
                group["lr"] = DISTIL_RATE * (1 - number / DISTIL)
            optimiser.zero_grad()
            (goal.exp() * (goal - self.log_probabilities(some))).sum(-1).mean().backward()
            optimiser.step()
        return self.weights()

    def consolidated(self, ids: Tensor, seed: int) -> tuple[Weights, Weights]:
        """A document written in, and taken out again."""
        self.set(self.never)
        self.net.requires_grad_(False)
        edit = fit(self.setup, queries_about(self.setup.model, ids, seed), 0.02, seed)
        replaced = apply_edit(self.setup.model, edit)
        written = self.weights()
        own = dict(self.net.named_parameters())
        with torch.no_grad():
            for name, value in replaced.items():
                own[name].copy_(value)
        self.net.requires_grad_(True)
        return written, self.weights()
