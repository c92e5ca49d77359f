"""The table's loss and its gradient against autograd through the frozen model, and the reference trainer that uses the latter."""

from __future__ import annotations

import dataclasses

import comfy.patcher_extension
import pytest
import reference_trainer
import torch
from annealing_guidance_pack.guidance import coordinates
from annealing_guidance_pack.models.scale_model import PREDICTIONS, ScaleInfo
from annealing_guidance_pack.models.scale_network import NetworkConfig, ScaleNetwork
from annealing_guidance_pack.training import bundled_scales
from annealing_guidance_pack.training.fit import ProfileLoss
from annealing_guidance_pack.training.measure import measure_picture
from annealing_guidance_pack.training.profile import Entries, Profile, ProfileSettings, steps_of_grid
from annealing_guidance_pack.training.training_grid import training_grid
from reference_trainer import ReferenceTrainer, Samples

PICTURES, SAMPLES = 12, 4
RATIO = {"epsilon": 1.0, "velocity": 20.0}  # as large as the balanced loss of the flow model makes it


class Recorder:
    """What the model is asked while a profile is measured: the noised pictures, their sigma and the perturbed embeddings."""

    def __init__(self) -> None:
        self.asked = []

    def __call__(self, executor, model, conds, x, sigma, model_options):
        embeddings = conds[0][0]["model_conds"]["c_crossattn"].cond
        if len(embeddings) == SAMPLES:  # one for each entry: the perturbed ones
            self.asked.append((x.clone(), sigma.clone(), embeddings.clone()))
        return executor(model, conds, x, sigma, model_options)


def measured_samples(variant: str, steps: int) -> tuple:
    """(model, negative, profile, the very samples that it was measured on, with a lambda each)."""
    model, clip, vae = bundled_scales.load_shapes(variant)
    model_sampling = model.get_model_object("model_sampling")
    pictures = bundled_scales.training_pictures(clip, vae, PICTURES, seed=3)
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    settings = ProfileSettings(training_grid(model_sampling, steps), samples=SAMPLES)
    recorder, watched = Recorder(), model.clone()
    watched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "recorder", recorder)
    entries = Entries.joined([measure_picture(watched, picture, negative, settings, SAMPLES)[0] for picture in pictures])
    path = coordinates.path_of(model_sampling)

    x, sigma, perturbed = (torch.cat(column) for column in zip(*recorder.asked, strict=True))
    latents, captions = zip(*(picture.make() for picture in pictures for _ in range(SAMPLES)), strict=True)
    x0, share = torch.stack(latents), sigma.view(-1, 1, 1, 1)
    levels = [coordinates.sigma_of_nsr(model_sampling, nsr) for nsr in steps_of_grid(path, settings.training_grid)]
    samples = Samples(
        x0=x0,
        noise=(x - ((1 - share) if path == "flow" else 1.0) * x0) / share,
        timestep=entries.timestep,
        sigma=sigma,
        next_sigma=levels[1][(levels[0] - sigma[:, None]).abs().argmin(1)],
        guidance_lambda=torch.rand(len(x), generator=torch.Generator().manual_seed(0)),
        perturbed=[[perturbed, {}]],
        clean=reference_trainer.stacked(captions),
    )
    return model, negative, Profile(PREDICTIONS[path], x0[0].numel(), settings, entries), samples


@pytest.fixture(scope="module", params=[("epsilon", 20), ("flow", 28), ("epsilon", 10), ("flow", 14)], ids=str)
def measured(request):
    return measured_samples(*request.param)


def scale_network(profile: Profile, output_gain: float = 1.0) -> ScaleNetwork:
    """An unbounded network with random weights; an output gain of 60 gives scales from about 2 to 3."""
    info = ScaleInfo("", profile.kind, profile.reference_numel, profile.settings.training_grid, "", "", "", "")
    config = NetworkConfig(gap_divisor=float(profile.entries.gap_norm.quantile(0.95)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = reference_trainer.learner(info, config)
    network.layers[-1].weight.data *= output_gain
    return network


def gradient_of(network: ScaleNetwork, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])


@pytest.mark.parametrize("output_gain", [1.0, 60.0])
def test_the_tables_loss_has_the_gradient_of_autograd_through_the_frozen_model(measured, output_gain):
    model, negative, profile, samples = measured
    network, entries, guidance_lambda = scale_network(profile, output_gain), profile.entries, samples.guidance_lambda
    scale = network(entries.timestep, entries.gap_norm, guidance_lambda)
    first, second = reference_trainer.terms(model, network, samples, negative)
    ratio = RATIO[profile.kind]
    table = ProfileLoss(entries, profile.settings.knots, ratio)(scale, guidance_lambda)
    direct = (1 - guidance_lambda) * first + guidance_lambda * ratio * second

    a, b, c = entries.first.unbind(1)
    torch.testing.assert_close(a + b * scale + c * scale**2, first, rtol=1e-5, atol=0)  # so they are the same samples
    torch.testing.assert_close(table.mean(), direct.mean(), rtol=5e-3, atol=0)
    own, reference = gradient_of(network, table.mean()), gradient_of(network, direct.mean())
    assert torch.nn.functional.cosine_similarity(own, reference, dim=0) > 0.999
    torch.testing.assert_close(own.norm(), reference.norm(), rtol=0.02, atol=0)


def test_it_learns_and_leaves_the_model_alone(measured):
    model, negative, profile, samples = measured
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    trainer = ReferenceTrainer(model, negative, scale_network(profile), balanced=False)
    aligned = dataclasses.replace(samples, guidance_lambda=torch.ones_like(samples.sigma))

    def gap_left() -> float:
        with torch.no_grad():
            return float(reference_trainer.terms(model, trainer.network, aligned, negative)[1].mean())

    at_first = gap_left()
    for _ in range(3):
        trainer.step(aligned)
    assert gap_left() < at_first
    for key, value in model.model.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_the_ratio_is_that_of_the_terms_running_means(measured):
    model, negative, profile, samples = measured
    trainer = ReferenceTrainer(model, negative, scale_network(profile), balanced=True)
    with torch.no_grad():
        first, second = reference_trainer.terms(model, trainer.network, samples, negative).mean(1)
    trainer.step(samples)
    assert trainer.ratio == pytest.approx(float(first / second), rel=1e-4)  # no memory of a start at 0
