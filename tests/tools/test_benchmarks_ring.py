"""The 2-D benchmark: its denoisers are the posterior means they claim to be, and a small run measures what it says."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("comfy.model_base", reason="needs a ComfyUI: run python tools/dev.py test, or set COMFYUI_PATH")

import comfy.samplers
import ring
from common import ring_model

UP = torch.tensor([[0.0, 1.0]])


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("wrong", [0.0, 0.4])
def test_the_denoiser_is_the_posterior_mean(sigma, wrong):
    """Against the sum over all places where x0 may be, each as likely as the data's density there and x's noise say."""
    weights, line = ring_model.mode_weights(UP, wrong), torch.linspace(-1.9, 1.9, 191)
    places = torch.cartesian_prod(line, line)
    density = (
        torch.exp(-torch.cdist(places, ring_model.RADIUS * ring_model.AXES).square() / (2 * ring_model.BLUR**2)) @ weights[0]
    )
    x = torch.tensor([[0.0, 1.5], [1.0, 1.1], [0.9, -0.9], [0.2, 0.1], [-2.0, 0.3]])
    chance = torch.softmax(-torch.cdist(x, places).square() / (2 * sigma**2) + density.log(), dim=1)
    found = ring_model.denoised(x, torch.full((5, 1), sigma), weights.expand(5, -1))
    torch.testing.assert_close(found, chance @ places, atol=5e-4, rtol=0)


def test_the_exact_scale_repairs_wrong_captions():
    sigma = torch.tensor([0.05, 0.3, 1.0, 3.0, 14.0])[:, None]
    x = 2.0 * torch.randn(5, 2, generator=torch.Generator().manual_seed(1))

    def denoised(wrong):
        return ring_model.denoised(x, sigma, ring_model.mode_weights(UP, wrong).expand(5, -1))

    scale = ring_model.exact_scale(x, sigma, UP, 0.4)[:, None]
    assert (scale[:-1].std() > 0.01) and (scale >= 1).all()
    # A point far from the class has a huge scale and a tiny gap.
    known = scale < 1e3
    guided = denoised(1.0) + scale * (denoised(0.4) - denoised(1.0))
    torch.testing.assert_close(guided[known[:, 0]], denoised(0.0)[known[:, 0]], atol=2e-3, rtol=1e-3)
    assert known.sum() >= 3


def test_comfyui_samples_the_class_from_the_model_of_right_captions():
    """Which also says that the captions are read right, and that the measures are."""
    points = ring.Ring(1024, wrong=0.4)
    unfailing = points.cfg(1.0, points.unfailing)
    sampler = comfy.samplers.sampler_object("euler")
    good = points.measure(points.sample(unfailing, sampler, 20))
    unguided = points.measure(points.sample(points.cfg(1.0), sampler, 20))
    assert good["aligned"] > 0.93 and good["coverage"] > 0.9 and abs(good["distance"]) < 0.01
    # 60% right captions, and a quarter of the others right by chance
    assert unguided["aligned"] == pytest.approx(0.7, abs=0.06) and unguided["distance"] > 0.1


def test_the_measures_tell_collapse_and_leaving_the_ring():
    points = ring.Ring(1024, wrong=0.4)
    own = points.measure(points.own_data.flip(0) * torch.tensor([-1.0, 1.0]))  # its mirror image: the same distribution
    one_spot = points.measure(ring_model.RADIUS * UP + 0.02 * points.noise.flatten(1))
    outside = points.measure(1.2 * points.own_data)
    assert own["aligned"] > 0.93 and own["coverage"] > 0.95 and abs(own["distance"]) < 0.01
    assert one_spot["aligned"] == 1 and one_spot["coverage"] < 0.1 and one_spot["distance"] > 0.3
    assert outside["off_ring"] == pytest.approx(0.2 * ring_model.RADIUS, abs=0.02) and outside["coverage"] > 0.95


def test_a_scale_learned_on_the_ring_follows_the_prompt_more_than_no_guidance(monkeypatch):
    monkeypatch.setattr(ring, "PICTURES", 24)
    monkeypatch.setattr(ring, "FIT_STEPS", 100)
    points = ring.Ring(256, wrong=0.4)
    network = points.train(ring.GRIDS[ring.CHOSEN])
    methods = {(name, setting): run for name, setting, *run in points.methods({ring.CHOSEN: network})}
    unguided = points.measure(points.sample(*methods["CFG", 1.0], 10))
    learned = points.measure(points.sample(*methods[f"annealing, trained for {ring.CHOSEN}", 0.4], 10))
    assert learned["aligned"] > unguided["aligned"] + 0.1
    assert all(torch.isfinite(torch.tensor(value)) for value in learned.values())
