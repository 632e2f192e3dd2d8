"""A sparse step equals SAELens's dense one: codes, losses, gradients and weights after training agree up to
rounding.
"""

from dataclasses import replace

import pytest
import sae_lens
import torch
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer

from sae import sparse_steps
from sae.config import ARCHITECTURES, SAEConfig
from sae.trainer import new_trainer

pytestmark = pytest.mark.numeric

WIDTH, FEATURES, BATCH = 12, 40, 64
DENSE = {"topk": sae_lens.TopKTrainingSAE, "batchtopk": sae_lens.BatchTopKTrainingSAE}
DEAD = {"none dead": 0, "few dead": 3, "most dead": 30}


def batch(seed: int = 0, size: int = BATCH) -> torch.Tensor:
    return torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def pair(architecture: str, **changes):
    """A trainer of this package and a dense SAE of SAELens with the same weights: decoder rows of different norms,
    and two features that fire only once the auxiliary loss revives them.
    """
    config = replace(
        SAEConfig(architecture=architecture, features=FEATURES, k=4, steps=40, batch_size=BATCH), **changes
    )
    trainer = new_trainer(config, WIDTH, "cpu")
    with torch.no_grad():
        trainer.sae.W_dec *= torch.linspace(0.3, 2, FEATURES)[:, None]
        trainer.sae.b_dec += 0.5
        trainer.sae.b_enc[-2:] -= 20
    dense = DENSE[architecture](trainer.sae.cfg)
    dense.load_state_dict(trainer.sae.state_dict())
    return trainer, dense


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((got - expected).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1e-3))


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("architecture", DENSE)
def test_losses_codes_and_gradients_equal_those_of_the_dense_step(architecture, dead):
    trainer, dense = pair(architecture)
    mask = torch.arange(FEATURES) < DEAD[dead]
    step = TrainStepInput(batch(), coefficients={}, dead_neuron_mask=mask, n_training_steps=0, is_logging_step=False)
    ours, theirs = trainer.sae.training_forward_pass(step), dense.training_forward_pass(step)
    assert ours.losses.keys() == theirs.losses.keys()
    for name, loss in theirs.losses.items():
        assert close(ours.losses[name], loss) and (loss > 0 or not DEAD[dead])
    assert close(ours.feature_acts.to_dense(), theirs.feature_acts) and close(ours.sae_out, theirs.sae_out)
    theirs.loss.backward()
    for (name, weight), other in zip(trainer.sae.named_parameters(), dense.parameters(), strict=True):
        assert weight.grad is not None and other.grad is not None and other.grad.abs().max() > 0, name
        assert close(weight.grad, other.grad), name


@pytest.mark.parametrize("architecture", DENSE)
def test_forty_steps_give_the_weights_of_dense_steps(architecture):
    trainer, dense = pair(architecture)
    other = SAETrainer(cfg=trainer.cfg, sae=dense, data_provider=iter(()))
    for one in (trainer, other):
        one.activation_scaler.scaling_factor = 1.0
        for step in range(40):
            one.step(batch(step))
            one.n_training_steps += 1
    assert (trainer.dead_neurons == other.dead_neurons).all() and trainer.dead_neurons.any()
    assert torch.equal(trainer.act_freq_scores, other.act_freq_scores)
    for name, weight in other.sae.state_dict().items():
        assert torch.allclose(trainer.sae.state_dict()[name], weight, atol=1e-4), name


def test_batch_top_k_takes_the_largest_for_any_earlier_threshold():
    sae = pair("batchtopk")[0].sae
    pre = torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(1))
    expected = pre.flatten().topk(4 * BATCH).indices.sort().values
    for scale in (1.0, 1.0, 0.1, 0.1, 30.0):  # the threshold of an earlier batch may be too high, too low, or right
        assert torch.equal(sae.choose(scale * pre), expected)
    few = torch.where(torch.arange(FEATURES) < 2, pre, -1.0)
    assert torch.equal(sae.choose(few), (few.flatten() > 0).nonzero().squeeze(1))


def test_top_k_leaves_out_values_that_are_not_positive():
    sae = pair("topk")[0].sae
    pre = -torch.ones(2, FEATURES)
    pre[0, 5], pre[1, :6] = 1.0, torch.arange(6.0)
    assert sae.choose(pre).tolist() == [5, *(FEATURES + column for column in (2, 3, 4, 5))]


def test_of_equal_activations_the_first_are_taken():
    sae = pair("batchtopk")[0].sae
    pre = torch.zeros(2, FEATURES)
    pre[0, 3], pre[1, 5:15] = 2.0, 1.0
    for _ in range(2):
        assert sae.choose(pre).tolist() == [3, *(FEATURES + 5 + i for i in range(7))]


def test_products_with_a_sparsity_pattern():
    dense = torch.randn(5, 7, generator=torch.Generator().manual_seed(2)) * (torch.rand(5, 7) < 0.4)
    dense[2] = 0
    dense[:, 4] = 0
    positions = dense.flatten().nonzero().squeeze(1)
    pattern = sparse_steps._Pattern(positions, dense.shape)
    values = dense.flatten()[positions]
    assert pattern.used.tolist() == [column for column in range(7) if dense[:, column].any()]
    assert torch.allclose(pattern.used_sums(values), dense.sum(0)[pattern.used])
    left, right = torch.randn(5, 3), torch.randn(3, 7)
    assert torch.allclose(pattern.times(values, right.T), dense @ right.T)
    assert torch.allclose(pattern.used_transposed_times(values, left), (dense.T @ left)[pattern.used])
    assert torch.allclose(pattern.of_product(left, right), (left @ right).flatten()[positions], atol=1e-6)


@pytest.mark.parametrize("architecture", DENSE)
def test_gradients_keep_their_memory_and_hold_nothing_of_the_last_step(architecture):
    """New matrices of the size of the weights at every step would cost more than the products."""
    trainer, _ = pair(architecture)
    trainer.activation_scaler.scaling_factor = 1.0
    trainer.step(batch())
    places = [weight.grad.data_ptr() for weight in trainer.sae.parameters()]
    assert trainer.sae.W_enc.grad.T.is_contiguous() and trainer.sae.W_enc.T.is_contiguous()
    lonely = torch.zeros(BATCH, WIDTH)
    trainer.step(lonely + trainer.sae.W_dec[0].detach())
    assert [weight.grad.data_ptr() for weight in trainer.sae.parameters()] == places
    active = trainer.n_forward_passes_since_fired == 0
    assert 0 < active.sum() < FEATURES / 2
    assert (trainer.sae.W_dec.grad[~active] == 0).all() and (trainer.sae.W_enc.grad.T[~active] == 0).all()


def test_one_pass_over_the_weights_applies_adam():
    for architecture in ARCHITECTURES:
        config = SAEConfig(architecture=architecture, features=FEATURES, k=4, steps=40, batch_size=BATCH)
        assert all(group["fused"] for group in new_trainer(config, WIDTH, "cpu").optimizer.param_groups)
