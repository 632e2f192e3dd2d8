"""What the residual stream is like at every site."""

import pytest
import torch

import stitch
import tiny
from jobs import write_text
from stitch.layers.moments import Moments, rotation
from stitch.layers.sites import measure_sites, reader_of
from stitch.layers.sites_report import _listed
from stitch.text.windows import Windows


def moments(x: torch.Tensor) -> Moments:
    found = Moments(rotation(x.shape[1], 0))
    for part in x.split(300):
        found.add(part)
    return found


def test_moments_in_parts_are_those_of_all():
    x = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7) + 5
    found = moments(x)
    assert torch.allclose(found.covariance, torch.cov(x.double().T, correction=0), atol=1e-9)
    centred = x.double() - x.double().mean(0)
    assert found.kurtosis == pytest.approx(float(centred.pow(4).mean() / centred.pow(2).mean() ** 2), rel=1e-9)


def test_a_rotation_hides_an_outlier_channel_but_not_an_outlier_token():
    x = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    plain = moments(x)
    channel, token = x.clone(), x.clone()
    channel[:, 3] *= 10
    token[::500] *= 30
    assert plain.kurtosis == pytest.approx(3, abs=0.1) and plain.kurtosis_turned == pytest.approx(3, abs=0.1)
    assert moments(channel).kurtosis > 30 and moments(channel).kurtosis_turned < 10
    assert moments(token).kurtosis > 50 and moments(token).kurtosis_turned > 50


def test_planted_outliers_are_found_where_they_are():
    model = tiny.model("llama")
    ids = torch.cat([torch.zeros(6, 1, dtype=torch.long), tiny.ids(6, 40)], 1)
    windows = Windows(ids.int(), torch.zeros_like(ids).int())
    before = measure_sites(model, windows, [2, 3])

    def plant(module: torch.nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[..., 7] *= 40
        output[:, 0] *= 1000
        return output

    handle = model.blocks[2].register_forward_hook(plant, with_kwargs=True)
    after = measure_sites(model, windows, [2, 3])
    handle.remove()
    assert after[0] == before[0]
    assert after[1]["top_channel"] == 7 and after[1]["top_share"] > 0.9 > before[1]["top_share"]
    assert after[1]["first_token"] > 100 > before[1]["first_token"]
    assert after[1]["effective_rank"] < 2 < before[1]["effective_rank"]


@torch.no_grad()
def test_the_head_reads_the_directions_that_change_its_logits():
    model = tiny.model("llama", tie_word_embeddings=False)
    model.head.weight[:, 5:] = 0  # pyright: ignore
    reader = reader_of(model)
    assert reader.directions.shape[1] <= 5 and reader.by_chance <= 5 / model.width
    read, unread = torch.zeros(2, model.width, model.width, dtype=torch.float64)
    read[:5, :5], unread[5:, 5:] = torch.eye(5), torch.eye(model.width - 5)
    assert reader.share(read) > 0.75 and reader.share(unread) < 1e-9


def test_the_report_has_every_site(tmp_path):
    found = stitch.inspect("demo:gpt2", sites=True, text=write_text(tmp_path), tokens=512, context=64, quiet=True)
    assert [one["site"] for one in found.report["sites"]] == list(range(7))
    text = str(found)
    assert "no site with an outlier channel" in text and "effective rank" in text


@pytest.mark.parametrize(
    "sites, words", [([3], "site 3"), ([3, 4, 5, 9], "sites 3 to 5 and 9"), ([1, 3, 5], "sites 1, 3 and 5")]
)
def test_sites_are_listed_as_one_would_say_them(sites, words):
    assert _listed([{"site": site} for site in sites]) == words
