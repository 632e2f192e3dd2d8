"""A grafted host beside its donor, and random controls that should not have the behaviour."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from stitch.circuits.components import replaced
from stitch.circuits.find import WITH_FEATURES, ChosenCircuit
from stitch.circuits.score import Logits, answered, divergence
from stitch.evaluation.scores import evaluate, whole_model
from stitch.grafts.heads import Head
from stitch.grafts.neurons import Neurons
from stitch.grafts.plan import Plan
from stitch.grafts.write import write
from stitch.internals.transcoders import as_trained, feature_blocks
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.windows import LONGEST_CONTEXT, report_windows


@dataclass(frozen=True)
class PlannedGraft:
    """A planned one, with what it is compared with."""

    donor: Model
    chosen: ChosenCircuit
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
        found["noise of the same norm"] = lambda: with_plan(bare(), randomised(plan, seed))
        if len(blocks) > 1:
            found["blocks in opposite order"] = lambda: with_plan(bare(), shuffled(plan))
        for block in dict.fromkeys((blocks[0], blocks[-1])):
            found[f"without block {block}"] = lambda block=block: with_plan(bare(), without(plan, block))
        return found


def text_scores(before: Model, after: Model, text: str, tokens: int, progress: Progress | None) -> dict:
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


def randomised(plan: Plan, seed: int) -> Plan:
    """Every map of its heads and neurons is noise of the same norm; embeddings and unembedding stay."""
    generator = torch.Generator().manual_seed(seed)

    def noise(value: Tensor) -> Tensor:
        drawn = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        return drawn * value.norm() / drawn.norm()

    def drawn(maps: Head | Neurons) -> Any:
        values = {one.name: getattr(maps, one.name) for one in fields(maps)}
        return replace(maps, **{name: None if value is None else noise(value) for name, value in values.items()})

    return replace(
        plan,
        heads=[replace(placed, maps=drawn(placed.maps)) for placed in plan.heads],
        neurons=[replace(placed, maps=drawn(placed.maps)) for placed in plan.neurons],
    )


def shuffled(plan: Plan) -> Plan:
    """The blocks of the circuit in the opposite order."""
    blocks = sorted(set(plan.layers.values()))
    other = dict(zip(blocks, reversed(blocks), strict=True))

    def moved(spot: tuple) -> tuple:
        return spot if spot[0] == "final" else (spot[0], other[spot[1]])

    return replace(
        plan,
        heads=[replace(placed, host_block=other[placed.host_block]) for placed in plan.heads],
        neurons=[replace(placed, host_block=other[placed.host_block]) for placed in plan.neurons],
        constants={moved(spot): value for spot, value in plan.constants.items()},
        targets={moved(spot): value for spot, value in plan.targets.items()},
        spares={other[block]: neuron for block, neuron in plan.spares.items()},
    )


def without(plan: Plan, block: int) -> Plan:
    """What is in this block of the host is left out."""
    return replace(
        plan,
        heads=[placed for placed in plan.heads if placed.host_block != block],
        neurons=[placed for placed in plan.neurons if placed.host_block != block],
    )
