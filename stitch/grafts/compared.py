"""Scores of a grafted host beside its donor and controls: hosts that should not have the behaviour, and a trained host's text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from stitch.circuits.components import replaced
from stitch.circuits.find import WITH_FEATURES, ChosenCircuit
from stitch.circuits.score import Logits, Reference, logits_of, score
from stitch.evaluation.scores import evaluate, whole_model
from stitch.files.store import Store
from stitch.grafts.heads import Head
from stitch.grafts.neurons import Neurons
from stitch.grafts.plan import Plan
from stitch.grafts.write import write
from stitch.internals.transcoders import as_trained, feature_blocks
from stitch.internals.weights import Spot
from stitch.models.model import Model
from stitch.models.writer import Writer
from stitch.progress import Progress
from stitch.text.windows import CONTEXT, report_windows, require_rows

# Scores of a graft


@dataclass(frozen=True)
class PlannedGraft:
    """A circuit of a donor and the plan that writes it into a host."""

    donor: Model
    chosen: ChosenCircuit
    plan: Plan

    def compared(
        self, host: Model, controls: Mapping[str, Callable[[], Model]], progress: Progress | None
    ) -> list[dict]:
        """The report's rows for the donor, its circuit alone, the grafted host and the controls.

        All are scored on prompts on which nothing was chosen or fitted. `kl` is KL(circuit alone ‖ row) in nats per answer.
        """
        prompts, shallow = self.chosen.other, self.chosen.shallow
        donor, alone, grafted = logits_of(self.donor.net), self._circuit_alone(), logits_of(host.net)

        def trained(ids: Tensor) -> Tensor:
            with as_trained(self.donor):  # the circuit alone, which rows are compared with, runs outside
                return donor(ids)

        reference = Reference(alone, prompts)

        def row(name: str, logits: Logits) -> dict:
            return {**score(logits, prompts, reference=reference)[0], "name": name}

        rows = [row("donor", trained)]
        if feature_blocks(self.donor):
            rows.append(row(WITH_FEATURES, donor))
        if shallow is not None:
            rows.append(
                row(f"all of it in {len(shallow.arrangement.groups)} blocks", replace(shallow, kept=None).logits)
            )
        rows.append(row("its circuit alone", alone))
        clean, corrupt = score(grafted, prompts, reference=reference)
        rows += [{**clean, "name": "host, grafted"}, {**corrupt, "name": "host on corrupt prompts"}]
        for number, (name, make) in enumerate(controls.items(), 1):
            rows.append(row(name, logits_of(make().net)))
            if progress:
                progress("controls", number, len(controls))
        return rows

    def _circuit_alone(self) -> Logits:
        """The donor with only its circuit running, all other components giving their means."""
        if self.chosen.shallow is not None:
            return self.chosen.shallow.logits
        donor = logits_of(self.donor.net)

        def alone(ids: Tensor) -> Tensor:
            with replaced(self.donor, self.chosen.kept, self.chosen.means):
                return donor(ids)

        return alone

    def controls(self, bare: Callable[[], Model], seed: int) -> dict[str, Callable[[], Model]]:
        """Hosts that should not have the behaviour, by name; `bare` makes a host without a graft."""
        plan, blocks = self.plan, sorted(set(self.plan.layers.values()))
        controls: dict[str, Callable[[], Model]] = {"host without the graft": bare}
        controls["noise of the same norm"] = lambda: with_plans(bare(), [randomised(plan, seed)])
        if len(blocks) > 1:
            controls["blocks in opposite order"] = lambda: with_plans(bare(), [reversed_blocks(plan)])
        for block in dict.fromkeys((blocks[0], blocks[-1])):
            controls[f"without block {block}"] = lambda block=block: with_plans(bare(), [without(plan, block)])
        return controls


def with_plans(host: Model, plans: Sequence[Plan]) -> Model:
    """The host after the plans are written into it, in place."""
    write(host, plans)
    return host


# Plans for controls


def randomised(plan: Plan, seed: int) -> Plan:
    """The plan with noise of the same norm in place of every map of its heads and neurons; embeddings and unembedding stay."""
    generator = torch.Generator().manual_seed(seed)

    def noise(value: Tensor) -> Tensor:
        drawn = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        return drawn * value.norm() / drawn.norm()

    def drawn(maps: Head | Neurons) -> Any:
        values = {field.name: getattr(maps, field.name) for field in fields(maps)}
        return replace(maps, **{name: None if value is None else noise(value) for name, value in values.items()})

    return replace(
        plan,
        heads=[replace(placed, maps=drawn(placed.maps)) for placed in plan.heads],
        neurons=[replace(placed, maps=drawn(placed.maps)) for placed in plan.neurons],
    )


def reversed_blocks(plan: Plan) -> Plan:
    """The plan with the circuit's blocks in the opposite order."""
    blocks = sorted(set(plan.layers.values()))
    opposite = dict(zip(blocks, reversed(blocks), strict=True))

    def moved(spot: Spot) -> Spot:
        return spot if spot[0] == "final" else (spot[0], opposite[spot[1]])

    return replace(
        plan,
        heads=[replace(placed, host_block=opposite[placed.host_block]) for placed in plan.heads],
        neurons=[replace(placed, host_block=opposite[placed.host_block]) for placed in plan.neurons],
        constants={moved(spot): value for spot, value in plan.constants.items()},
        targets={moved(spot): value for spot, value in plan.targets.items()},
        constant_heads={opposite[block]: group for block, group in plan.constant_heads.items()},
        spares={opposite[block]: neuron for block, neuron in plan.spares.items()},
    )


def without(plan: Plan, block: int) -> Plan:
    """The plan without the heads and neurons in this block of the host."""
    return replace(
        plan,
        heads=[placed for placed in plan.heads if placed.host_block != block],
        neurons=[placed for placed in plan.neurons if placed.host_block != block],
    )


# Text


def text_scores(before: Model, after: Model, text: str, tokens: int, seed: int, progress: Progress | None) -> dict:
    """Cross-entropy and perplexity of a trained host on at most `tokens` tokens of the report split, before and after
    grafting. Text `self` is written by the host as it was, from `seed`."""
    windows = report_windows(
        text, tokens, before.tokenizer, min(before.longest, CONTEXT), writer=Writer.of(before, seed), store=Store(),
        progress=progress,
    )  # fmt: skip
    require_rows(windows, before.vocabulary, before.name)
    rows = {"as it was": whole_model(before.net), "grafted": whole_model(after.net)}
    scores = evaluate(rows, windows, vocabulary=before.vocabulary, progress=progress)
    results = [score.row(name) for name, score in scores.items()]
    return {"tokens": windows.tokens, "results": results, **windows.provenance}
