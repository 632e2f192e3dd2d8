"""The work of each stage of joining two models, counted from what the stages do.

Passes through models, products and updates of tables are counted. What is left, such as Python itself, is a few fixed seconds.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sae.schedule import batch_size_for, default_features, steps_for
from stitch.composite.costs import Costs, early
from stitch.config import CompleteSettings
from stitch.conversions.ngrams.work import TableText
from stitch.estimates import counts
from stitch.estimates.machine import Machine
from stitch.estimates.work import Work
from stitch.evaluation.racing import FIRST
from stitch.evaluation.scoring import CHOICE, LEAST_WINDOWS
from stitch.evaluation.trained import WINDOWS
from stitch.features.by_block import LENGTHS, TOKENS, sites_around
from stitch.frontier.work import Donor, cut, own_tables
from stitch.models.anatomy import blocks_before_last_part
from stitch.translation import rows as registry
from stitch.translation.available import earlier_sites
from stitch.translation.evidence import LEAST_SQUARES_TOKENS
from stitch.translation.routes import ROWS as ROUTE_ROWS

ADAM = 12 * 4  # bytes read and written per weight in a step of Adam with clipped gradients
CODES, CODES_MATCHED = 8, 12  # times that arrays of codes are read or written per token in training, and in matching
SPARSE = 16  # bytes moved per product of sparse codes
ASSIGNED = 64  # bytes moved per pair of features that may be matched
GATHERED = 24  # bytes moved per number of a table row that is looked up
SVD = 60  # FLOPs per cubed width
SPARSE_LIFTS = ("codes", "untrained", "random-topk", "exemplars")
# Seconds: importing SAELens, and what hardly depends on the text.
SAE_LENS, MATCHING, PAGE, WRITING = 6.0, 3.0, 2.5, 0.5


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What of two models decides what joining them costs: FLOPs per token of their parts, and widths.

    `early_a` are A's blocks before its site, `late_b` B's blocks from its site on and the head. `earlier` is the number of
    earlier sites of A that are read, `positions` the columns of learned positions. `sites_a` and `sites_b` are the numbers of
    sites that matched features are read at. `same`: A is B.
    """

    early_a: float
    whole_a: float
    early_b: float
    late_b: float
    width_a: int
    width_b: int
    earlier: int
    positions: int
    sites_a: int
    sites_b: int
    same: bool = False

    @classmethod
    def of(cls, costs: Costs, site: int, onto: int, positions: int) -> "Ends":
        a, b = costs.source, costs.target
        return cls(
            early_a=costs.early(site).flops, whole_a=costs.whole_source.flops,
            early_b=early(b, onto, costs.context).flops, late_b=costs.late(onto).flops,
            width_a=a.width_at(site), width_b=b.width, positions=positions, same=a is b,
            earlier=len(earlier_sites(site, blocks_before_last_part(a.config))),
            sites_a=len(sites_around(site, blocks_before_last_part(a.config), a.depth)),
            sites_b=len(sites_around(onto, blocks_before_last_part(b.config), b.depth)),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class JoinWork:
    """The work of joining two models with these settings. The machine knows them as "a" and "b".

    `fit` and `held_out` are tokens, `ids` those that occur. `missing` are the shares of A's and B's activations and of both SAEs
    ("a", "b", "sae-a", "sae-b") that no earlier run has left.
    """

    ends: Ends
    settings: CompleteSettings
    fit: int
    held_out: int
    ids: int
    machine: Machine
    missing: Mapping[str, float]

    def stages(self) -> dict[str, Work]:
        """Work by the name that the stage has in report.json."""
        return {
            "activations": self.activations(),
            "saes": self.saes(),
            "matching": self.matching(),
            "states": self.states(),
            "translations": self.translations(),
            "choice": self.choice(),
            "references": self.references(),
            "alternatives": self.alternatives(),
            "evaluation": self.evaluation(),
            "page": Work(seconds=PAGE),
            "writing": Work(seconds=WRITING),
        }

    def held(self) -> int:
        """Bytes of what stages leave to later ones: SAEs; of translations matrices by class of token, and tables."""
        wants, width = self.settings.wants, self.ends.width_b
        saes = sum(2 * one * self.features(one) for one in (self.ends.width_a, width))
        routed = sum(registry.leads_to(row, wants) for row in registry.made_by(registry.ROUTES))
        with_tables = sum(registry.leads_to(row, wants) for row in registry.made_by(registry.TABLES))
        return 4 * (saes + width * (ROUTE_ROWS * routed + (self.ids + self.settings.ngrams) * with_tables))

    def activations(self) -> Work:
        """`harvest_pair` for the three splits."""
        tokens, ends = self.fit + 2 * self.held_out, self.ends
        if ends.same:
            share = max(self.missing["a"], self.missing["b"])
            return self.machine.forward("a", tokens * share * max(ends.early_a, ends.early_b))
        early = {"a": ends.early_a, "b": ends.early_b}
        return sum((self.machine.forward(side, tokens * self.missing[side] * early[side]) for side in "ab"), Work())

    def saes(self) -> Work:
        """`sae.trainer.train_sites`, whose steps multiply densely only to encode, and `measure` on a held-out split."""
        total = Work(seconds=SAE_LENS)
        batch = batch_size_for(self.fit)
        steps = steps_for(self.fit, self.settings.sae_passes, batch)
        for side, width in (("a", self.ends.width_a), ("b", self.ends.width_b)):
            features = self.features(width)
            weights = 2 * width * features
            trained = self.machine.product(2.0 * weights * batch) + self.machine.moved(
                ADAM * weights + CODES * 4 * batch * features
            )
            total += steps * self.missing[f"sae-{side}"] * trained
            total += self.machine.product(2.0 * weights * self.held_out)
        return total

    def features(self, width: int) -> int:
        return self.settings.features or default_features(width, self.fit)

    def matching(self) -> Work:
        """`stitch.features.matching.match` and `explain`: codes of both sites, their products, an assignment, contexts.

        Then `by_block`: some tokens through both models, and encoded at every site.
        """
        a, b = (self.features(width) for width in (self.ends.width_a, self.ends.width_b))
        encoded = self.machine.product(2.0 * self.fit * (self.ends.width_a * a + self.ends.width_b * b))
        sparse = self.machine.moved(self.fit * (CODES_MATCHED * 4 * (a + b) + SPARSE * self.settings.k**2))
        total = encoded + sparse + self.machine.moved(ASSIGNED * a * b) + Work(seconds=MATCHING)
        return total if self.settings.brief else total + self.by_block()

    def by_block(self) -> Work:
        """`stitch.features.by_block.by_block`, which reads some tokens twice. Its passes end before the head, which is counted
        here all the same."""
        ends, tokens, total = self.ends, min(TOKENS, self.held_out), Work()
        for side, whole, width, sites in (
            ("a", ends.whole_a, ends.width_a, ends.sites_a),
            ("b", ends.early_b + ends.late_b, ends.width_b, ends.sites_b),
        ):
            features = self.features(width)
            total += self.machine.forward(side, (tokens + min(LENGTHS, tokens)) * whole)
            total += self.machine.product(2.0 * tokens * sites * width * features)
            total += self.machine.moved(CODES * 4 * tokens * sites * features)
        return total

    def states(self) -> Work:
        """`states_of_tokens`: every token that occurs, alone behind BOS, through B's early half."""
        return self.machine.forward("b", self.ids * self.ends.early_b)

    def translations(self) -> Work:
        """`translate_pair`: moments, ridges, closed forms, routes and tables."""
        wants = self.settings.wants
        reads = [self.there(row.reads) for row in registry.made_by(registry.RIDGE) if registry.leads_to(row, wants)]
        widest = self.features(self.ends.width_a) if any(set(one) & set(registry.LIFTS) for one in reads) else 0
        sample = min(self.fit, max(LEAST_SQUARES_TOKENS, 8 * widest)) + self.held_out
        total = self.moments(reads, sample) + sum((self.solved(one) for one in reads), Work())
        closed = [row for row in registry.closed_forms() if registry.leads_to(row, wants)]
        total += len(closed) * self.machine.product(SVD * max(self.ends.width_a, self.ends.width_b) ** 3, double=True)
        for row in registry.made_by(registry.ROUTES):
            if registry.leads_to(row, wants) and self.settings.routes != 0:
                total += self.residuals(row.reads) + self.routes(row.reads)
        for row in registry.made_by(registry.TABLES):
            if wants(row.name) and self.settings.ngrams:
                total += self.residuals(row.reads)
                total += counts.added_to_tables(self.machine, self.fit + self.held_out, 3, self.ends.width_b)
        return total

    def there(self, reads: Collection[str]) -> tuple[str, ...]:
        """Those inputs that these models have."""
        return tuple(name for name in reads if self.columns(name))

    def columns(self, name: str) -> int:
        """Columns of an input; 0 where these models do not have it."""
        ends = self.ends
        if name in registry.LIFTS:
            return self.features(ends.width_a)
        if name.startswith("earlier"):
            return ends.width_a if int(name.rpartition("-")[2]) <= ends.earlier else 0
        if name == "position":
            return ends.positions
        return ends.width_a if name in registry.STREAMS else ends.width_b

    def moments(self, reads: Collection[tuple[str, ...]], tokens: int) -> Work:
        """`accumulate`: products of all pairs of inputs that some row needs, those of streams in float64, of codes sparse."""
        pairs = {(min(one, other), max(one, other)) for names in reads for one in names for other in names}
        total = Work()
        for one, other in sorted(pairs):
            total += self._product(one, other, tokens)
        names = sorted({name for names in reads for name in names})
        for name in names:
            total += self._product(name, "target", tokens)
        return total + self.machine.moved(counts.CONVERTED * tokens * sum(map(self.columns, names)))

    def _product(self, one: str, other: str, tokens: int) -> Work:
        sparse = {one, other} & set(SPARSE_LIFTS)
        if sparse:
            k = self.settings.k
            per_token = k * k if sparse == {one, other} else k * min(self.columns(one), self.columns(other))
            return self.machine.moved(SPARSE * tokens * per_token)
        is_double = {one, other} <= {*registry.STREAMS, "target"}
        return self.machine.product(2.0 * tokens * self.columns(one) * self.columns(other), double=is_double)

    def solved(self, reads: Collection[str]) -> Work:
        is_lifted = bool(set(reads) & set(registry.LIFTS))
        return counts.ridge(self.machine, sum(map(self.columns, reads)), self.ends.width_b, apart=is_lifted)

    def residuals(self, reads: Collection[str]) -> Work:
        """`Applied` on all text: products with the streams, and a row of each table."""
        streams = sum(self.columns(name) for name in set(reads) & set(registry.STREAMS))
        looked_up = len(set(reads) & set(registry.LOOK_UPS)) * self.ends.width_b
        tokens = self.fit + self.held_out
        products = self.machine.product(2.0 * tokens * streams * self.ends.width_b)
        return products + self.machine.moved(GATHERED * tokens * (streams + looked_up))

    def routes(self, reads: Collection[str]) -> Work:
        """`fit_routes`: moments of every class of tokens, and a solution for some values of λ."""
        streams = sum(self.columns(name) for name in set(reads) & set(registry.STREAMS))
        classes = self.settings.routes or max(1, ROUTE_ROWS // max(1, streams))
        products = 2.0 * (self.fit + self.held_out) * streams * (streams + self.ends.width_b)
        each = streams**3 / 3 + 4 * streams**2 * self.ends.width_b
        return self.machine.product(products) + self.machine.product(4 * classes * each, double=True)

    def choice(self) -> Work:
        """`choose`: most candidates are dropped after the first part of the sweep split."""
        rows = [row for row in scored_rows() if row.kind == "translation" and self.settings.wants(row.name)]
        if self.settings.translation != "auto":
            return Work()
        tokens = min(self.held_out, CHOICE, FIRST)
        return counts.scored(self.machine, "b", len(rows) * tokens, self.ends.late_b)

    def references(self) -> Work:
        """`trained`: steps of gradient descent through B's late half."""
        tokens = self.settings.steps_of_reference * WINDOWS * self.settings.context
        return counts.trained(self.machine, "b", tokens, self.ends.late_b, frozen=True)

    def alternatives(self) -> Work:
        """`stitch.frontier.collect.alternatives`."""
        ends, total = self.ends, Work()
        whole_b = ends.early_b + ends.late_b
        a = Donor(
            name="a",
            early=ends.whole_a - ends.early_a,
            whole=ends.whole_a,
            width=ends.width_a,
            positions=ends.positions // 2,
        )
        b = Donor(name="b", early=ends.early_b, whole=whole_b, width=ends.width_b, positions=ends.positions // 2)
        text = TableText(fit=self.fit, held_out=self.held_out, ids=self.ids)
        made = {
            "reference:own-tables": lambda: own_tables(self.machine, b, text),
            "reference:a-own-tables": lambda: Work() if ends.same else own_tables(self.machine, a, text),
            "reference:b-shortened": lambda: cut(self.machine, b, text),
            "reference:a-exit": lambda: cut(self.machine, a, text),
            "reference:b-skip": lambda: Work() if ends.same else self.joined_again("b", ends.early_b),
            "null:untrained-a": lambda: (
                self.joined_again("a", ends.early_a) + self.machine.forward("b", text.fit * ends.early_b)
            ),
        }
        for name, make in made.items():
            total += make() if self.settings.wants(name) else Work()
        return total

    def joined_again(self, name: str, early: float) -> Work:
        """The composite's kind of translation again, from other first blocks, those of a model called `name` in the rates."""
        reads = self.there(registry.row("translation:affine+free+tables").reads)
        passes = self.machine.forward(name, (self.fit + self.held_out + self.ids) * early)
        sample = min(self.fit, LEAST_SQUARES_TOKENS) + self.held_out
        tables = counts.added_to_tables(self.machine, self.fit + self.held_out, 3, self.ends.width_b)
        return passes + self.moments([reads], sample) + self.solved(reads) + self.residuals(reads) + tables

    def evaluation(self) -> Work:
        """`evaluate_all`: rows that matter on all text, floors and nulls on its first part, translations on about half."""
        ends, wants, held = self.ends, self.settings.wants, self.held_out
        first = min(held, max(LEAST_WINDOWS * self.settings.context, FIRST))
        rivals = [
            row for row in registry.ROWS
            if row.alternative and ":" in row.name and wants(row.name) and not row.across_tokenizers
            and (ends.same or not row.one_model)
        ]  # fmt: skip
        others = [row for row in scored_rows() if wants(row.name) and not row.alternative]
        half = (first + held) / 2
        tokens = sum(held if row.headline else half if row.kind == "translation" else first for row in others)
        total = counts.scored(self.machine, "b", held, ends.early_b + ends.late_b)
        total += Work() if ends.same else counts.scored(self.machine, "a", held, ends.whole_a)
        total += (1 + len(rivals)) * counts.scored(self.machine, "b", held, ends.early_a + ends.late_b)
        return total + counts.scored(self.machine, "b", tokens, ends.late_b)


def scored_rows() -> list[registry.Row]:
    """Rows that B's late blocks are run for; not those of depth surgery."""
    without_fit = ("sae-a", "null:shuffled-matching", "reference:affine-trained")
    rows = [row for row in registry.ROWS if not row.across_tokenizers]
    return [row for row in rows if row.made_by or row.kind in ("floor", "ceiling") or row.name in without_fit]
