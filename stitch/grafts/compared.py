"""A grafted host beside its donor and hosts that should not have the behaviour; a trained one also beside itself before."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from stitch.activations import Progress
from stitch.circuits.circuit import WITH_FEATURES, Chosen
from stitch.circuits.components import replaced
from stitch.circuits.score import Logits, answered, divergence
from stitch.circuits.transcoders import as_trained, feature_blocks
from stitch.compare import report_windows
from stitch.evaluate import evaluate, whole_model
from stitch.grafts import controls
from stitch.grafts.plan import Plan
from stitch.grafts.write import write
from stitch.models import Model
from stitch.stages import LONGEST_CONTEXT


@dataclass(frozen=True)
class Graft:
    """A planned one, with what it is compared with."""

    donor: Model
    chosen: Chosen
    plan: Plan

    def compared(self, host: Model, tests: Mapping[str, Callable[[], Model]], progress: Progress | None) -> list[dict]:
        """Rows of the report, on prompts that nothing was chosen or fitted on."""
        of, donor = self.chosen.other, _logits(self.donor)

        shallow = self.chosen.shallow

        def alone(ids: torch.Tensor) -> torch.Tensor:
            if shallow is not None:
                return shallow.logits(ids)
            with replaced(self.donor, self.chosen.kept, self.chosen.means):
                return donor(ids)

        def row(name: str, logits: Logits) -> dict:
            return {"name": name, **answered(logits, of.clean, of), "kl": divergence(alone, logits, of)}

        with as_trained(self.donor):
            rows = [row("donor", donor)]
        if feature_blocks(self.donor):
            rows.append(row(WITH_FEATURES, donor))
        if shallow is not None:
            rows.append(
                row(f"all of it in {len(shallow.arrangement.groups)} blocks", replace(shallow, kept=None).logits)
            )
        rows += [row("its circuit alone", alone), row("host, grafted", _logits(host))]
        rows.append({"name": "host on corrupt prompts", **answered(_logits(host), of.corrupt, of)})
        for number, (name, make) in enumerate(tests.items(), 1):
            rows.append(row(name, _logits(make())))
            if progress:
                progress("controls", number, len(tests))
        return rows

    def controls(self, bare: Callable[[], Model], seed: int) -> dict[str, Callable[[], Model]]:
        """Hosts that should not have the behaviour, by name; `bare` is one without a graft."""
        plan, blocks = self.plan, sorted(set(self.plan.layers.values()))
        found: dict[str, Callable[[], Model]] = {"host without the graft": bare}
        found["noise of the same norm"] = lambda: with_plan(bare(), controls.randomised(plan, seed))
        if len(blocks) > 1:
            found["blocks in opposite order"] = lambda: with_plan(bare(), controls.shuffled(plan))
        for block in dict.fromkeys((blocks[0], blocks[-1])):
            found[f"without block {block}"] = lambda block=block: with_plan(bare(), controls.without(plan, block))
        return found


def on_text(before: Model, after: Model, text: str, tokens: int, progress: Progress | None) -> dict:
    """Cross-entropy and perplexity of a trained host on the report split, as it was and with its grafts."""
    windows = report_windows(text, tokens, before.tokenizer, min(before.longest, LONGEST_CONTEXT))
    rows = {"as it was": whole_model(before.net), "grafted": whole_model(after.net)}
    scores = evaluate(rows, windows, vocabulary=before.config.vocab_size, progress=progress)
    return {"tokens": windows.tokens, "results": [score.row(name) for name, score in scores.items()]}


def with_plan(host: Model, plan: Plan) -> Model:
    write(host, [plan])
    return host


def _logits(model: Model) -> Logits:
    return lambda ids: model.net(input_ids=ids.to(model.device), use_cache=False).logits.cpu()
