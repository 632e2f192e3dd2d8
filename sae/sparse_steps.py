"""Training steps of top-k SAEs whose matrix products involve active features only.

SAELens holds codes as a dense [batch, features] matrix, although only a share k / features of it is nonzero. It multiplies with
the whole matrix five times per step: to decode, and for the gradients of both weights, the codes and the input. Here only the
product with the encoder is dense. Losses and gradients are the same up to rounding. Of the SAE's hooks only that of the input
is called.
"""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int64
from sae_lens import BatchTopKTrainingSAE, TopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from sae.csr import csr

NEAR = 0.9  # share of the last batch's threshold above which the next threshold is searched


class _Pattern:
    """Positions of the nonzero entries of a [rows, columns] matrix, counted row by row, ascending."""

    def __init__(self, positions: Int64[Tensor, " active"], shape: torch.Size):
        self.shape = shape
        self.rows, self.columns = positions // shape[1], positions % shape[1]
        self._starts = _starts(self.rows, shape[0])
        self._by_column = self.columns.argsort(stable=True)
        self._starts_of_columns = _starts(self.columns[self._by_column], shape[1])

    def with_values(self, values: Float[Tensor, " active"]) -> Tensor:
        return csr(self._starts, self.columns, values, self.shape)

    def as_coo(self, values: Float[Tensor, " active"]) -> Tensor:
        indices = torch.stack([self.rows, self.columns])
        return torch.sparse_coo_tensor(indices, values, self.shape, is_coalesced=True, check_invariants=False)

    def transposed(self, values: Float[Tensor, " active"]) -> Tensor:
        columns, values = self.rows[self._by_column], values[self._by_column]
        return csr(self._starts_of_columns, columns, values, self.shape[::-1])

    def sums_by_column(self, values: Float[Tensor, " active"]) -> Float[Tensor, " columns"]:
        return values.new_zeros(self.shape[1]).index_add_(0, self.columns, values)

    def of_product(self, left: Float[Tensor, "rows d"], right: Float[Tensor, "d columns"]) -> Float[Tensor, " active"]:
        """The entries of left @ right that lie in the pattern; no other entry is computed."""
        zeros = self.with_values(left.new_zeros(len(self.columns)))
        return torch.sparse.sampled_addmm(zeros, left, right).values()


def _starts(ascending: Int64[Tensor, " active"], count: int) -> Int64[Tensor, " _"]:
    return torch.searchsorted(ascending, torch.arange(count + 1, device=ascending.device))


class _Encode(torch.autograd.Function):
    """Values and positions of the active pre-activations (x W + b) · norms. `centre` has already been subtracted from x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, centre: Tensor, weight: Tensor, bias: Tensor, norms: Tensor, choose: Any
    ) -> tuple[Tensor, _Pattern]:
        pre = torch.addmm(bias, x, weight).mul_(norms)
        pattern = _Pattern(choose(pre), pre.shape)
        values = pre[pattern.rows, pattern.columns]
        ctx.pattern = pattern
        ctx.save_for_backward(x, weight, norms, values)
        return values, pattern

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, Tensor, Tensor, Tensor, None]:
        x, weight, norms, values = ctx.saved_tensors
        pattern, of_values = ctx.pattern, gradients[0]
        inner = of_values * norms[pattern.columns]
        of_weight = (pattern.transposed(inner) @ x).T
        of_bias = pattern.sums_by_column(inner)
        of_norms = pattern.sums_by_column(of_values * values) / norms
        return None, -(weight @ of_bias), of_weight, of_bias, of_norms, None


class _Decode(torch.autograd.Function):
    """Codes times the decoder."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, decoder: Tensor, pattern: _Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(codes, decoder)
        return pattern.with_values(codes) @ decoder

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None]:
        codes, decoder = ctx.saved_tensors
        pattern, of_output = ctx.pattern, gradients[0].contiguous()
        return pattern.of_product(of_output, decoder.T), pattern.transposed(codes) @ of_output, None


class _SparseSteps(TopKTrainingSAE):
    """The training step of TopKTrainingSAE and its subclasses; `choose` selects which positive pre-activations are active."""

    @abstractmethod
    def choose(self, pre: Float[Tensor, "batch features"]) -> Int64[Tensor, " active"]:
        """Positions of the active features in the flattened `pre`, ascending."""

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        x = self.process_sae_in(step_input.sae_in)
        norms = self.W_dec.norm(dim=-1)
        centre = self.b_dec * self.cfg.apply_b_dec_to_input
        values, pattern = _Encode.apply(x.detach(), centre, self.W_enc, self.b_enc, norms, self.choose)
        sae_out = _Decode.apply(values / norms.index_select(0, pattern.columns), self.W_dec, pattern) + self.b_dec
        losses = {
            "mse_loss": self.mse_loss_fn(sae_out, step_input.sae_in).sum(dim=-1).mean(),
            "auxiliary_reconstruction_loss": self._dead_feature_loss(step_input, x, norms, sae_out),
        }
        loss = torch.stack(list(losses.values())).sum()
        codes = pattern.as_coo(values.detach())  # the form that SAETrainer counts
        return TrainStepOutput(step_input.sae_in, sae_out, codes, codes, loss, losses)

    def _dead_feature_loss(self, step_input: TrainStepInput, x: Tensor, norms: Tensor, sae_out: Tensor) -> Tensor:
        """The auxiliary loss of `calculate_topk_aux_loss`, computed with the columns of dead features only.

        It is the squared error that remains when the strongest dead features reconstruct the error of the SAE.
        """
        mask = step_input.dead_neuron_mask
        dead = x.new_zeros(0, dtype=torch.int64) if mask is None else mask.nonzero().squeeze(1)
        if not len(dead):
            return sae_out.new_tensor(0.0)
        error = (step_input.sae_in - sae_out).detach()
        most = x.shape[1] // 2
        pre = (x @ self.W_enc[:, dead] + self.b_enc[dead]) * norms[dead]
        strongest = pre.topk(min(most, len(dead)), sorted=False)
        codes = torch.zeros_like(pre).scatter(1, strongest.indices, strongest.values)
        remaining = (codes / norms[dead]) @ self.W_dec[dead] - error
        return self.cfg.aux_loss_coefficient * min(len(dead) / most, 1.0) * remaining.square().sum(-1).mean()


class TopK(_SparseSteps, TopKTrainingSAE):
    """k active features per token."""

    def choose(self, pre: Tensor) -> Tensor:
        columns = pre.topk(self.cfg.k, dim=-1, sorted=False).indices.sort().values
        positions = columns + torch.arange(len(pre), device=pre.device)[:, None] * pre.shape[1]
        return positions[pre.gather(1, columns) > 0]


class BatchTopK(_SparseSteps, BatchTopKTrainingSAE):
    """k active features per token on average over a batch."""

    _last = 0.0

    def choose(self, pre: Tensor) -> Tensor:
        """The k · batch largest entries of `pre`, searched among those near the last batch's threshold.

        Sorting all entries would take longer than the product with the encoder. Among equal entries the first are
        taken, so that the choice depends on `pre` alone.
        """
        flat, count = pre.flatten(), int(self.cfg.k * len(pre))
        near = (flat > NEAR * self._last).nonzero().squeeze(1)
        if len(near) < count:
            near = (flat > 0).nonzero().squeeze(1)
        if len(near) <= count:
            return near
        values = flat[near]
        least = values.topk(count, sorted=False).values.min()
        self._last = float(least)
        active = values > least
        equal = (values == least).nonzero().squeeze(1)
        active[equal[: count - int(active.sum())]] = True
        return near[active]

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        output = super().training_forward_pass(step_input)
        self.update_topk_threshold(output.feature_acts.values())
        output.metrics["topk_threshold"] = self.topk_threshold
        return output
