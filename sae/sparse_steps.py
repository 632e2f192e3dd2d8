"""Training steps of top-k SAEs whose products, except that with the encoder, cost what is active.

SAELens holds codes as a dense [batch, features] matrix, although only a share k / features of it is nonzero. It multiplies with
the whole matrix five times per step: to decode, and for the gradients of both weights, the codes and the input. Its gradients
are new matrices of the size of the weights at every step, and writing to new memory costs more than the arithmetic. Here only
the product with the encoder is dense, gradients are computed for active features only, and they are written into matrices that
stay. Losses and gradients are the same up to rounding. Of the SAE's hooks only that of the input is called.
"""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from sae_lens import BatchTopKTrainingSAE, TopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae.csr import csr

NEAR = 0.9  # share of the last batch's threshold above which the next threshold is searched


class _Pattern:
    """Positions of the nonzero entries of a [rows, columns] matrix, counted row by row, ascending.

    `used` are the columns that have an entry, `counts` the entries of each of these.
    """

    def __init__(self, positions: Int64[Tensor, " active"], shape: torch.Size):
        self.shape = shape
        self.rows, self.columns = positions // shape[1], positions % shape[1]
        self._starts = torch.searchsorted(self.rows, torch.arange(shape[0] + 1, device=positions.device))
        self._by_column = self.columns.argsort(stable=True)
        self.used, self.counts = self.columns[self._by_column].unique_consecutive(return_counts=True)
        self._starts_of_used = torch.cat([self.counts.new_zeros(1), self.counts.cumsum(0)])

    def times(self, values: Float[Tensor, " active"], right: Float[Tensor, "columns d"]) -> Float[Tensor, "rows d"]:
        """The matrix with these `values`, times `right`."""
        return _sums(self.columns, self._starts, values, right)

    def used_transposed_times(
        self, values: Float[Tensor, " active"], right: Float[Tensor, "rows d"]
    ) -> Float[Tensor, "used d"]:
        """The rows `used` of the transposed matrix, times `right`. Its other rows are zero."""
        return _sums(self.rows[self._by_column], self._starts_of_used, values[self._by_column], right)

    def used_sums(self, values: Float[Tensor, " active"]) -> Float[Tensor, " used"]:
        """The sums of the columns `used`."""
        return self.used_transposed_times(values, values.new_ones(self.shape[0], 1)).squeeze(1)

    def of_product(self, left: Float[Tensor, "rows d"], right: Float[Tensor, "d columns"]) -> Float[Tensor, " active"]:
        """The entries of left @ right that lie in the pattern; no other entry is computed."""
        zeros = csr(self._starts, self.columns, left.new_zeros(len(self.columns)), self.shape)
        return torch.sparse.sampled_addmm(zeros, left, right).values()

    def as_coo(self, values: Float[Tensor, " active"]) -> Tensor:
        indices = torch.stack([self.rows, self.columns])
        return torch.sparse_coo_tensor(indices, values, self.shape, is_coalesced=True, check_invariants=False)


def _sums(
    rows: Int64[Tensor, " active"],
    starts: Int64[Tensor, " _"],
    weights: Float[Tensor, " active"],
    matrix: Float[Tensor, "_ d"],
) -> Float[Tensor, "_ d"]:
    """Row i is the sum of `weights` times `rows` of `matrix` from starts[i] to starts[i + 1] − 1."""
    return torch.nn.functional.embedding_bag(
        rows, matrix, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def _gradient(weight: Tensor) -> Tensor:
    """The gradient of `weight`, laid out as `weight` is; its memory stays from step to step."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


class SparseSteps(TopKTrainingSAE):
    """The training step of TopKTrainingSAE and its subclasses; `choose` selects which positive pre-activations are active.

    In memory the weights of a feature lie side by side in the encoder, as they do in the decoder.
    """

    def __init__(self, cfg: Any, use_error_term: bool = False):
        super().__init__(cfg, use_error_term)
        self.W_enc.data = self.W_enc.data.T.contiguous().T

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()

    @abstractmethod
    def choose(self, pre: Float[Tensor, "batch features"]) -> Int64[Tensor, " active"]:
        """Positions of the active features in the flattened `pre`, ascending."""

    @torch.no_grad()
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """The losses, whose gradients are already in the `grad` of the weights: SparseTrainer calls no `backward`."""
        x = self.process_sae_in(step_input.sae_in)
        norms = self.W_dec.norm(dim=-1)
        pre = torch.addmm(self.b_enc, x, self.W_enc).mul_(norms)
        pattern = _Pattern(self.choose(pre), pre.shape)
        values = pre[pattern.rows, pattern.columns]
        codes = values / norms[pattern.columns]  # so the loss does not depend on the norms, only the choice does
        sae_out = pattern.times(codes, self.W_dec) + self.b_dec
        error = sae_out - step_input.sae_in

        encoder, encoder_bias, decoder, centre = self._gradients()
        of_output = error * (2 / len(x))
        of_codes = pattern.of_product(of_output, self.W_dec.T)
        encoder[pattern.used] = pattern.used_transposed_times(of_codes, x)
        encoder_bias[pattern.used] = pattern.used_sums(of_codes)
        decoder[pattern.used] = pattern.used_transposed_times(codes, of_output)
        losses = {
            "mse_loss": error.square().sum(dim=-1).mean(),
            "auxiliary_reconstruction_loss": self._dead_feature_loss(step_input.dead_neuron_mask, x, pre, norms, error),
        }
        centre += of_output.sum(dim=0)
        if self.cfg.apply_b_dec_to_input:
            centre -= self.W_enc @ encoder_bias  # of both losses: any pre-activation sees the bias through x

        loss = torch.stack(list(losses.values())).sum()
        active = pattern.as_coo(values)
        return TrainStepOutput(step_input.sae_in, sae_out, active, active, loss, losses)

    def _gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Those of the encoder, transposed, of its bias, of the decoder and of its bias."""
        return _gradient(self.W_enc).T, _gradient(self.b_enc), _gradient(self.W_dec), _gradient(self.b_dec)

    def _dead_feature_loss(
        self,
        mask: Bool[Tensor, " features"] | None,
        x: Float[Tensor, "batch d"],
        pre: Float[Tensor, "batch features"],
        norms: Float[Tensor, " features"],
        error: Float[Tensor, "batch d"],
    ) -> Float[Tensor, ""]:
        """The auxiliary loss of `calculate_topk_aux_loss`; its gradients are added to those of the features in `mask`.

        It is the squared error that remains when the strongest dead features reconstruct the error of the SAE. That of
        the decoder's bias is left to the caller.
        """
        dead = pre.new_zeros(0, dtype=torch.int64) if mask is None else mask.nonzero().squeeze(1)
        if not len(dead):
            return error.new_tensor(0.0)
        most = x.shape[1] // 2
        scale = self.cfg.aux_loss_coefficient * min(len(dead) / most, 1.0)
        values, strongest = pre[:, dead].topk(min(most, len(dead)), sorted=False)
        none = values.new_zeros(len(x), len(dead))
        codes = none.scatter(1, strongest, values / norms[dead][strongest])
        directions = self.W_dec[dead]
        remaining = torch.addmm(error, codes, directions)

        of_remaining = remaining * (2 * scale / len(x))
        of_codes = none.scatter_(1, strongest, (of_remaining @ directions.T).gather(1, strongest))
        encoder, encoder_bias, decoder, _ = self._gradients()
        encoder.index_add_(0, dead, of_codes.T @ x)
        encoder_bias.index_add_(0, dead, of_codes.sum(dim=0))
        decoder.index_add_(0, dead, codes.T @ of_remaining)
        return scale * remaining.square().sum(dim=-1).mean()


class TopK(SparseSteps, TopKTrainingSAE):
    """k active features per token."""

    def choose(self, pre: Tensor) -> Tensor:
        columns = pre.topk(self.cfg.k, dim=-1, sorted=False).indices.sort().values
        positions = columns + torch.arange(len(pre), device=pre.device)[:, None] * pre.shape[1]
        return positions[pre.gather(1, columns) > 0]


class BatchTopK(SparseSteps, BatchTopKTrainingSAE):
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


class SparseTrainer(SAETrainer[Any, Any]):
    """SAETrainer for SparseSteps: the SAE computes its gradients, and firing is counted without dense codes."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        # The optimizer gets the encoder's memory as a contiguous matrix. It would copy the transposed one in every step.
        self._encoder = torch.nn.Parameter(self.sae.W_enc.data.T)
        group = self.optimizer.param_groups[0]
        group["params"] = [self._encoder if weight is self.sae.W_enc else weight for weight in group["params"]]

    def _train_step(self, sae: SparseSteps, sae_in: Float[Tensor, "batch d"]) -> TrainStepOutput:
        self.optimizer.zero_grad(set_to_none=False)  # writing to newly allocated memory costs more than Adam does
        output = sae.train().training_forward_pass(
            TrainStepInput(
                sae_in=sae_in,
                dead_neuron_mask=self.dead_neurons,
                coefficients=self.get_coefficients(),
                n_training_steps=self.n_training_steps,
                is_logging_step=False,
            )
        )
        self._encoder.grad = _gradient(sae.W_enc).T
        active = output.feature_acts
        fired = active.indices()[1][active.values() > 0].bincount(minlength=sae.cfg.d_sae)
        self.n_forward_passes_since_fired += 1
        self.n_forward_passes_since_fired[fired > 0] = 0
        self.act_freq_scores += fired
        self.n_frac_active_samples += len(sae_in)

        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        self.optimizer.step()
        self.lr_scheduler.step()
        return output
