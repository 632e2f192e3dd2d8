"""The scripts of conjectures that train small networks: they compute what their heads say, and give verdicts by their rules."""

import ledger
import output_null
import pytest
import random_routing
import spectral
import torch

import tiny


@torch.no_grad()
@pytest.mark.parametrize("inside", [True, False])
def test_a_diagonal_recurrence_is_what_it_is_step_by_step(inside):
    torch.manual_seed(0)
    net = spectral.Diagonal(inside)
    inputs, _ = spectral.sequences(2, 10, torch.Generator().manual_seed(1))
    entered = inputs.to(torch.complex64) @ torch.view_as_complex(net.enter).T * net.scale
    state, found = torch.zeros(2, spectral.STATES, dtype=torch.complex64), net(inputs)
    for time in range(inputs.shape[1]):
        state = state @ net.matrix().T + entered[:, time]
        torch.testing.assert_close(found[:, time], torch.cat([state.real, state.imag], -1), rtol=1e-3, atol=1e-4)
    assert (net.matrix().diagonal().abs() < 1).all()


def test_what_grows_and_what_swells_for_a_while_is_told_apart():
    turn = torch.linalg.qr(tiny.noise(8, 8))[0]
    calm = spectral.stability(0.99 * turn)
    assert calm["growth"] < 2 and calm["transient"] == 1.0
    assert spectral.stability(1.2 * turn)["growth"] == float("inf")
    swelling = torch.diag(torch.full((8,), 0.5)) + torch.diag(torch.full((7,), 20.0), 1)
    assert torch.linalg.eigvals(swelling).abs().max() < 1 and spectral.stability(swelling)["transient"] > 1000


def test_a_dense_matrix_is_kept_inside_the_circle():
    torch.manual_seed(0)
    net = spectral.Dense(inside=True)
    with torch.no_grad():
        net.weight.mul_(3.0)
    net.constrain()
    assert float(torch.linalg.eigvals(net.matrix().detach()).abs().max()) == pytest.approx(spectral.INSIDE, rel=1e-4)


@pytest.mark.parametrize(
    ("inside", "free", "wanted"), [(1.1, 50.0, "holds"), (1.1, 1.1, "not needed"), (50.0, 50.0, "refuted")]
)
def test_the_verdict_on_eigenvalues_follows_its_rule(inside, free, wanted):
    rows = {f"dense, {place}": [{"growth": 1.0, "transient": 1.0}, {"growth": growth, "transient": 1.0}]
            for place, growth in (("inside", inside), ("free", free))}  # fmt: skip
    assert spectral.verdict(rows) == wanted


def test_directions_that_tell_answers_apart():
    rows = tiny.noise(9, 20)
    basis = output_null.potent(rows)
    torch.testing.assert_close(basis.T @ basis, torch.eye(8), atol=1e-5, rtol=0)
    differences = rows[1:] - rows[:1]
    torch.testing.assert_close(differences @ basis @ basis.T, differences, atol=1e-4, rtol=0)
    # What all answers share tells none apart.
    assert output_null.potent(rows + 100.0 * tiny.noise(1, 20)).shape == (20, 8)


def test_a_network_that_waits_in_the_readout_is_seen_to_do_so():
    """The state is the cue itself, in directions that the readout reads, or in others."""

    class Waiting(output_null.Network):
        width = 32

        def forward(self, inputs, start=None):
            cue = inputs[:, :1, : output_null.CUES] if start is None else start[:, None, : output_null.CUES]
            state = torch.zeros(len(inputs), 1, self.width)
            state[..., : output_null.CUES] = cue
            return state.expand(-1, inputs.shape[1], -1)

    readout = torch.nn.Linear(32, output_null.CUES + 1)
    for first, read in ((0, 1.0), (16, 0.0)):
        with torch.no_grad():
            readout.weight.zero_()
            readout.weight[: output_null.CUES, first : first + output_null.CUES] = torch.eye(output_null.CUES)
        assert output_null.numbers(Waiting(), readout, 0)["read"] == pytest.approx(read, abs=1e-4)


@pytest.mark.parametrize(
    ("read", "hidden", "wanted"), [(0.05, 0.2, "holds"), (0.05, 0.9, "partly"), (0.12, 0.2, "refuted")]
)
def test_the_verdict_on_what_is_hidden_follows_its_rule(read, hidden, wanted):
    seeds = [{"read": read + 0.001 * n, "chance": 0.12, "potent": 0.8, "hidden": hidden} for n in range(5)]
    assert output_null.verdict(seeds) == wanted


def test_routes_are_those_of_the_arm():
    torch.manual_seed(0)
    ids, x = tiny.ids(2, 16) % 50, tiny.noise(2, 16, random_routing.WIDTH)
    by_token = random_routing.Experts("random", 50).routes(x, ids)[1]
    assert all(len(by_token[ids == token].unique()) == 1 for token in ids.unique()) and len(by_token.unique()) > 1
    by_place = random_routing.Experts("null:position", 50).routes(x, ids)[1]
    assert torch.equal(by_place[0], torch.arange(16) % 8) and torch.equal(by_place[0], by_place[1])
    learned = random_routing.Experts("learned", 50)
    assert (
        torch.equal(learned.routes(x, ids)[1], learned.router(x).argmax(-1))
        and float(learned.imbalance.detach()) >= 0.9
    )
    dense = random_routing.Experts("dense", 50)
    assert len(dense.enter) == 1 and dense(x, ids).shape == x.shape


@pytest.mark.parametrize(
    ("dense", "learned", "position", "wanted"),
    [
        (-0.1, -0.1, -0.1, "holds"),
        (-0.1, 0.1, -0.1, "partly"),
        (-0.1, -0.1, 0.0, "partly"),
        (0.0, -0.1, -0.1, "refuted"),
    ],
)
def test_the_verdict_on_routing_follows_its_rule(dense, learned, position, wanted):
    told = {"dense": dense, "learned": learned, "null:position": position}
    assert random_routing.verdict({name: [value, value - 0.05, value + 0.05] for name, value in told.items()}) == wanted


def test_the_ledger_is_made_from_what_pages_and_results_say_now(capsys):
    ledger.main()
    assert capsys.readouterr().out == (ledger.RESULTS / "ledger.jsonl").read_text()
