"""The profile: its two terms against direct evaluation of FACTS' formulae, its file, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import two_points
from annealing_guidance_pack.models import schedule
from annealing_guidance_pack.models.scale_model import PATHS, ScaleInfo
from annealing_guidance_pack.training.knots import Tabulated, spread_knots
from annealing_guidance_pack.training.pictures import given_pictures, picture_seed
from annealing_guidance_pack.training.profile import Profile, ProfileSettings, steps_of_grid
from annealing_guidance_pack.training.shards import measure
from closed_form import conditioning

FLOW_GRID = tuple((k / 20) for k in range(20, -1, -1))
GRIDS = {"epsilon": 20, "velocity": FLOW_GRID}


def settings_for(kind: str, **changes) -> ProfileSettings:
    return ProfileSettings(GRIDS[kind], **{"samples": 8, **changes})


PICTURES = 12


def pictures(count: int) -> list:
    latents, captions = two_points.pictures(count)
    return given_pictures({"samples": torch.stack(latents)}, captions)


def measured(kind: str, count: int = PICTURES, **changes) -> Profile:
    return measure(two_points.two_point_model(kind), pictures(count), two_points.NEGATIVE, settings_for(kind, **changes))


class Direct:
    """The loss terms of one entry by the formulae of the paper (epsilon, on z) or of the flow path, in float64.

    The entry's noise is drawn as `measure` draws it: the grid's order first, then the noise. Without perturbation.
    """

    def __init__(self, kind: str, number: int, index: int, settings: ProfileSettings):
        latents, captions = two_points.pictures(PICTURES)
        self.identity = pictures(PICTURES)[number].identity
        nsr, next_nsr = steps_of_grid(PATHS[kind], settings.training_grid)
        levels, next_levels = (nsr, next_nsr) if kind == "epsilon" else (nsr / (1 + nsr), next_nsr / (1 + next_nsr))
        generator = torch.Generator().manual_seed(picture_seed(settings.seed, self.identity))
        step = torch.randperm(len(levels), generator=generator)[index]
        noise = torch.randn(settings.samples, *two_points.SHAPE, generator=generator)
        self.kind, self.x0, self.eps = kind, latents[number].double(), noise[index].double()
        self.level, self.next_level = levels[step], next_levels[step]
        self.blurs, self.points = [], []
        for caption in (captions[number], two_points.NEGATIVE):
            values = caption[0][0].double().flatten()
            self.blurs.append(values[0])
            self.points.append(values[1:].view(two_points.SHAPE))

    def terms(self, scale: float, projection: bool = False) -> tuple[float, float]:
        if projection:
            return self._projected_terms(scale)
        return self._epsilon_terms(scale) if self.kind == "epsilon" else self._velocity_terms(scale)

    def _epsilon_terms(self, scale: float) -> tuple[float, float]:
        abar, next_abar = 1 / (1 + self.level**2), 1 / (1 + self.next_level**2)
        z = abar.sqrt() * self.x0 + (1 - abar).sqrt() * self.eps
        eps_c, eps_u = self._noise_predictions(z, abar)
        eps_w = eps_u + scale * (eps_c - eps_u)
        x0_w = (z - (1 - abar).sqrt() * eps_w) / abar.sqrt()
        next_z = next_abar.sqrt() * x0_w + (1 - next_abar).sqrt() * eps_u
        next_c, next_u = self._noise_predictions(next_z, next_abar)
        return float(((eps_w - self.eps) ** 2).mean()), float(((next_c - next_u) ** 2).mean())

    def _noise_predictions(self, z, abar):
        x, sigma = z / abar.sqrt(), ((1 - abar) / abar).sqrt()
        pairs = zip(self.points, self.blurs, strict=True)
        return [(x - two_points.ve_denoised(x, sigma, points, blur)) / sigma for points, blur in pairs]

    def _velocity_terms(self, scale: float) -> tuple[float, float]:
        s, next_s = self.level, self.next_level
        z = (1 - s) * self.x0 + s * self.eps
        v_c, v_u = self._velocities(z, s)
        v_w = v_u + scale * (v_c - v_u)
        x0_w, eps_u = z - s * v_w, z + (1 - s) * v_u
        next_c, next_u = self._velocities((1 - next_s) * x0_w + next_s * eps_u, next_s)
        return float(((v_w - (self.eps - self.x0)) ** 2).mean()), float(((next_c - next_u) ** 2).mean())

    def _projected_terms(self, scale: float) -> tuple[float, float]:
        """As an ordinary step from x = x0 + n eps or (1 - s) x0 + s eps, guided by CFG k w across the conditional prediction."""
        level, following, denoised = self.level, self.next_level, two_points.ve_denoised
        x, k = self.x0 + level * self.eps, 1 / (1 - following / level)
        if self.kind == "velocity":
            denoised = two_points.flow_denoised
            x = (1 - level) * self.x0 + level * self.eps
            k = 1 / (1 - following / (1 - following) * (1 - level) / level) if level < 1 else torch.tensor(1.0)

        def pair(x, level):
            cond, uncond = (denoised(x, level, *side) for side in zip(self.points, self.blurs, strict=True))
            delta = cond - uncond
            return cond, delta - (delta * cond).sum() / (cond * cond).sum() * cond

        cond, across = pair(x, level)
        guided = cond + (k * scale - 1) * across
        _, next_across = pair(x + (following - level) * (x - guided) / level, following)
        error = (cond + (scale - 1) * across - self.x0) / level
        return float(error.square().mean()), float((next_across / following).square().mean())

    def _velocities(self, z, s):
        pairs = zip(self.points, self.blurs, strict=True)
        return [(z - two_points.flow_denoised(z, s, points, blur)) / s for points, blur in pairs]


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
def test_both_terms_are_those_of_direct_evaluation_at_any_scale(kind, projection):
    settings = settings_for(kind, perturb=False, projection=projection)
    profile = measured(kind, perturb=False, projection=projection)
    second = Tabulated(settings.knots, profile.entries.second)
    scales = settings.knots[0] + torch.rand(len(profile.entries), generator=torch.Generator().manual_seed(1)) * 4.0
    table = second(scales)
    numbers = {picture.identity: number for number, picture in enumerate(pictures(PICTURES))}
    first_errors, second_errors = [], []
    for row, scale in enumerate(scales.tolist()):
        number = numbers[int(profile.entries.picture[row])]
        first, gap = Direct(kind, number, row % settings.samples, settings).terms(scale, projection)
        a, b, c = profile.entries.first[row].double().tolist()
        first_errors.append(abs(a + b * scale + c * scale**2 - first) / first)
        second_errors.append(abs(float(table[row]) - gap) / gap)
    assert max(first_errors) < 1e-5
    assert max(second_errors) < 0.02


@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
def test_the_same_seed_gives_the_same_table_whatever_the_batch_size(kind):
    few = pictures(3)
    settings, model = settings_for(kind), two_points.two_point_model(kind)
    one = measure(model, few, two_points.NEGATIVE, settings)
    again = measure(model, few, two_points.NEGATIVE, settings)
    chunked = measure(model, few, two_points.NEGATIVE, settings, batch_size=3)
    other = measure(model, few, two_points.NEGATIVE, dataclasses.replace(settings, seed=1))
    for name, tensor in vars(one.entries).items():
        assert torch.equal(tensor, getattr(again.entries, name))
        torch.testing.assert_close(tensor, getattr(chunked.entries, name), rtol=1e-5, atol=1e-6)
    assert not torch.equal(one.entries.gap_norm, other.entries.gap_norm)


def test_only_forward_passes_are_made_as_many_as_the_knots_say_on_average():
    few = pictures(8)
    for knots in (5, 9, 33):
        model, settings = two_points.two_point_model("epsilon"), settings_for("epsilon", knots=spread_knots(0.0, 4.0, knots))
        measure(model, few, two_points.NEGATIVE, settings)
        points = model.model.diffusion_model.rows / (2 * len(few) * settings.samples) - 1
        assert 5 <= points < 1.7 * knots


def test_entries_of_a_picture_lie_on_different_steps_of_the_grid_and_never_on_the_last():
    profile = measured("epsilon", count=2, samples=49)
    assert profile.entries.timestep[:49].round().sort().values.tolist() == [20.0 * k for k in range(1, 50)]


def test_gap_norms_of_smaller_latents_are_given_for_the_usual_size():
    latents, captions = two_points.pictures(1)
    big = latents[0].repeat(1, 2, 2)
    big_caption = conditioning(captions[0][0][0][0, 0, 1:].view(1, *two_points.SHAPE).repeat(1, 1, 2, 2), 0.2)
    negative = [[torch.tensor([0.3]).expand(1, 1, 1 + big.numel()), {}]]  # of either size's length, by the model's slicing

    class AnySize(two_points.TwoPointDenoiser):
        def forward(self, x, timestep, context=None, **kwargs):
            return super().forward(x, timestep, context=context[..., : 1 + x[0].numel()], **kwargs)

    model = two_points.two_point_model("epsilon")
    denoiser = AnySize()
    denoiser.model_sampling = model.model.model_sampling
    model.model.diffusion_model = denoiser
    settings = settings_for("epsilon", perturb=False, samples=49)
    both = given_pictures([{"samples": latents[0][None]}, {"samples": big[None]}], [captions[0], big_caption])
    mixed = measure(model, both, negative, settings)
    of_picture = [mixed.entries[mixed.entries.picture == picture.identity] for picture in both]
    small_norms, big_norms = (entries.gap_norm[entries.timestep.argsort()] for entries in of_picture)
    assert mixed.reference_numel == big.numel()
    torch.testing.assert_close(small_norms, big_norms, rtol=0.25, atol=0.05)


@pytest.mark.parametrize(("kind", "grid"), [("epsilon", 20), ("velocity", 20), ("velocity", FLOW_GRID), ("epsilon", 33)])
def test_the_next_level_is_the_one_that_sampling_matches(kind, grid):
    nsr, next_nsr = steps_of_grid(PATHS[kind], grid)
    info = ScaleInfo("", kind, None, grid, "", "", "", "")
    torch.testing.assert_close(schedule.next_on_training_grid(nsr, info), next_nsr)
    assert (next_nsr > 0).all()


def test_a_raise_in_the_progress_callback_ends_the_measuring_and_leaves_the_model_usable():
    few = pictures(4)
    model, seen = two_points.two_point_model("epsilon"), []

    def progress(done, total):
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, few, two_points.NEGATIVE, settings_for("epsilon"), progress=progress)
    assert seen == [(0, 4), (1, 4), (2, 4)]
    assert len(measure(model, few, two_points.NEGATIVE, settings_for("epsilon")).entries) == 32


def test_it_measures_in_inference_mode_as_nodes_run():
    with torch.inference_mode():
        inside = measured("epsilon", count=2)
    assert torch.equal(inside.entries.second, measured("epsilon", count=2).entries.second)
