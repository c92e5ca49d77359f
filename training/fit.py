"""Fitting a scale network to a profile: seconds on one core, without the model, for every lambda at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from ..models import schedule
from ..models.errors import AnnealingError
from ..models.scale_model import PATHS, ScaleInfo
from ..models.scale_network import NetworkConfig, ScaleNetwork
from .knots import Tabulated
from .profile import Entries, Profile, steps_of_grid

LossBalance = Literal["auto", "none", "ratio"]
LARGEST_RATIO = 1e4  # the follow-up's cap
CHECK_EVERY = 100  # steps between two checks on the held-out pictures
TYPICAL_ENTRIES = 8  # a step with fewer entries also uses those of its neighbours
CHECKED_LAMBDAS = tuple(k / 10 for k in range(11))


@dataclass(frozen=True)
class FitSettings:
    """How a scale network is fitted.

    loss_balance: "none" is the paper's loss. "ratio" multiplies the second term by the ratio of the two terms' means, as the
        follow-up does for flow models, where the second is far smaller. "auto": ratio for flow models, none for the others.
    gap_divisor: a number (5.0 in the paper), or "p95" for the 95th percentile of the profile's gap norms.
    hidden_width, depth: of the network. steps, batch_size, learning_rate, weight_decay: of AdamW; its rate falls to zero
        along a cosine. held_out: the share of the pictures that only the early stopping uses. patience: the fit ends after
        this many checks (every 100 steps) without a new best.
    """

    loss_balance: LossBalance = "auto"
    gap_divisor: float | Literal["p95"] = "p95"
    hidden_width: int = 128
    depth: int = 3
    steps: int = 2000
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    held_out: float = 0.15
    patience: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Check:
    """One check during the fit: the mean loss since the last check, and on the held-out pictures at lambda 0, 0.1 .. 1."""

    step: int
    training_loss: float
    held_out_loss: float


@dataclass(frozen=True)
class Fit:
    """A fitted network (the best of all checks), how it got there, and what it has to beat.

    constant_loss: held-out loss of the best constant scale for each lambda, the constants chosen on the training pictures.
    """

    network: ScaleNetwork
    history: list[Check]
    held_out_loss: float
    constant_loss: float


Progress = Callable[[int, int, list[Check]], None]  # step, steps, history


class ProfileLoss:
    """The training loss of entries of a profile as a function of their scales.

    ratio: what the second term is multiplied by.
    """

    def __init__(self, entries: Entries, knots: tuple[float, ...], ratio: float):
        self.entries, self.ratio = entries, ratio
        self.second = Tabulated(knots, entries.second)

    def __call__(
        self, scale: torch.Tensor, guidance_lambda: torch.Tensor, rows: torch.Tensor | slice = slice(None)
    ) -> torch.Tensor:
        """(1 - lambda) first + lambda ratio second of the entries `rows`, each at its own scale and lambda: [B].

        Beyond the knots' range it is the loss at the nearest knot plus a rising parabola, which leads the fit back.
        """
        inside = scale.clamp(self.second.low, self.second.high)
        a, b, c = self.entries.first[rows].unbind(1)
        first = a + b * inside + c * inside**2
        second = self.ratio * self.second(inside, rows)
        return (1 - guidance_lambda) * first + guidance_lambda * second + a * (scale - inside) ** 2


def fit(
    profile: Profile,
    settings: FitSettings,
    name: str,
    trained_on: str,
    source: str,
    licence: str,
    progress: Progress | None = None,
    fingerprint: str | None = None,
) -> Fit:
    """Fit a scale network to a profile. The same profile and settings give the same network.

    name, trained_on, source, licence, fingerprint: for the network's ScaleInfo. progress: called with (step, steps, history) at
    every check; an exception from it ends the fit. AnnealingError for an unusable profile or impossible settings.
    """
    profile.require_usable()
    _require_settings(settings)
    # ComfyUI executes nodes in inference mode, whose tensors cannot have gradients.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        entries = Entries(*(tensor.clone() for tensor in vars(profile.entries).values()))
        training_rows, held_out_rows = _split(entries.picture, settings)
        ratio = loss_ratio(entries[training_rows], profile, settings)
        training = ProfileLoss(entries[training_rows], profile.settings.knots, ratio)
        held_out = ProfileLoss(entries[held_out_rows], profile.settings.knots, ratio)
        made = f"Annealing Guidance, fitted to {len(entries)} entries of {len(entries.picture.unique())} pictures"
        info = ScaleInfo(
            name=name,
            prediction=profile.kind,
            reference_numel=profile.reference_numel,
            training_grid=profile.settings.training_grid,
            trained_on=trained_on,
            source=source,
            licence=licence,
            created_with=made,
            typical_gaps=typical_gaps(profile),
            projection=profile.settings.projection,
            fingerprint=fingerprint,
        )
        config = _config(entries, profile, settings)
        # Unbounded while it learns, as a clamped scale has no gradient. The loss itself keeps it in range.
        learner = ScaleNetwork(info, replace(config, min_scale=-torch.inf, max_scale=torch.inf))
        history = _train(learner, training, held_out, settings, progress)
        network = ScaleNetwork(info, config)
        network.load_state_dict(learner.state_dict())
        best = min(check.held_out_loss for check in history)
        return Fit(network.eval(), history, best, best_constant_loss(training, held_out))


def typical_gaps(profile: Profile) -> tuple[float, ...]:
    """For ScaleInfo: the median gap norm at each step of the training grid, of the entries nearest to it in time.

    At the last step, which no profile measures, that is the median of the step before.
    """
    path = PATHS[profile.kind]
    nsr, next_nsr = steps_of_grid(path, profile.settings.training_grid)
    timesteps = schedule.timestep_of_nsr(path, torch.cat([nsr, next_nsr[-1:]]))
    gaps = []
    for timestep in timesteps:
        away = profile.entries.timestep - timestep
        nearest = away.abs() <= away.abs().kthvalue(min(TYPICAL_ENTRIES, len(away))).values + 0.5  # whole steps
        away, norms = away[nearest], profile.entries.gap_norm[nearest]
        centred, logs = away - away.mean(), norms.clamp(min=1e-12).log()
        # At the ends all neighbours are on one side, so their median is moved along their own trend.
        trend = (centred * logs).sum() / (centred * centred).sum().clamp(min=1e-6)
        gaps.append(float(f"{(norms * torch.exp(-trend * away)).quantile(0.5):.5g}"))
    return tuple(gaps)


def _require_settings(settings: FitSettings) -> None:
    if settings.loss_balance not in get_args(LossBalance):
        raise AnnealingError(f'loss_balance is "{settings.loss_balance}". Choose one of: {", ".join(get_args(LossBalance))}.')
    if settings.gap_divisor != "p95" and not (isinstance(settings.gap_divisor, int | float) and settings.gap_divisor > 0):
        raise AnnealingError(f'gap_divisor is {settings.gap_divisor!r}. Give a number above 0, or "p95".')
    if not 0 < settings.held_out < 1:
        raise AnnealingError(f"held_out is {settings.held_out}. Give a share between 0 and 1: 0.15 is usual.")


def _split(picture: torch.Tensor, settings: FitSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """(training rows, held-out rows): whole pictures, never entries of one picture on both sides."""
    pictures = picture.unique()
    order = pictures[torch.randperm(len(pictures))]
    count = min(max(round(settings.held_out * len(pictures)), 1), len(pictures) - 1)
    held_out = torch.isin(picture, order[:count])
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)


def loss_ratio(entries: Entries, profile: Profile, settings: FitSettings) -> float:
    """What the second term is multiplied by.

    The follow-up uses running means of both terms while the scale changes. Here they are the means over the profile at scale 1,
    where the follow-up's scale begins. So the loss does not change during the fit, and held-out losses can be compared.
    """
    balanced = settings.loss_balance == "ratio" or (settings.loss_balance == "auto" and profile.kind == "velocity")
    if not balanced:
        return 1.0
    one = torch.ones(len(entries))
    second = float(Tabulated(profile.settings.knots, entries.second)(one).mean())
    first = float(entries.first.sum(1).mean())
    return min(first / second, LARGEST_RATIO) if second > 0 else LARGEST_RATIO


def _config(entries: Entries, profile: Profile, settings: FitSettings) -> NetworkConfig:
    """Sizes, and bounds that keep the network within the profile's gap norms and scales."""
    divisor = settings.gap_divisor
    return NetworkConfig(
        hidden_width=settings.hidden_width,
        depth=settings.depth,
        gap_divisor=float(entries.gap_norm.quantile(0.95) if divisor == "p95" else divisor),
        max_gap_norm=float(entries.gap_norm.max()),
        min_scale=profile.settings.knots[0],
        max_scale=profile.settings.knots[-1],
    )


def _train(
    network: ScaleNetwork,
    training: ProfileLoss,
    held_out: ProfileLoss,
    settings: FitSettings,
    progress: Progress | None,
) -> list[Check]:
    """AdamW on random entries, each time with a new lambda ~ U[0, 1]. Restores the network of the best check."""
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    history: list[Check] = []
    best, best_state, losses = torch.inf, copy.deepcopy(network.state_dict()), []
    for step in range(1, settings.steps + 1):
        rows = torch.randint(len(training.entries), (settings.batch_size,))
        guidance_lambda = torch.rand(settings.batch_size)
        scale = network(training.entries.timestep[rows], training.entries.gap_norm[rows], guidance_lambda)
        loss = training(scale, guidance_lambda, rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if step % CHECK_EVERY and step != settings.steps:
            continue
        check = Check(step, float(torch.stack(losses).mean()), mean_loss(network, held_out))
        history.append(check)
        losses = []
        if check.held_out_loss < best:
            best, best_state = check.held_out_loss, copy.deepcopy(network.state_dict())
        if progress is not None:
            progress(step, settings.steps, history)
        if min(recent.held_out_loss for recent in history[-settings.patience :]) > best:
            break
    network.load_state_dict(best_state)
    return history


@torch.no_grad()
def mean_loss(network: ScaleNetwork, held_out: ProfileLoss) -> float:
    """Of a network, the mean over lambda 0, 0.1 .. 1 and all entries."""
    entries, losses = held_out.entries, []
    for value in CHECKED_LAMBDAS:
        scale = network(entries.timestep, entries.gap_norm, value)
        losses.append(held_out(scale, torch.full_like(scale, value)).mean())
    return float(torch.stack(losses).mean())


@torch.no_grad()
def best_constant_loss(training: ProfileLoss, held_out: ProfileLoss, candidates: int = 101) -> float:
    """The same of constant scales, one for each lambda: those that are best on the training pictures."""
    losses = []
    for value in CHECKED_LAMBDAS:
        scales = torch.linspace(training.second.low, training.second.high, candidates)

        def loss_at(terms: ProfileLoss, scale: torch.Tensor, value: float = value) -> torch.Tensor:
            everywhere = scale.expand(len(terms.entries))
            return terms(everywhere, torch.full_like(everywhere, value)).mean()

        best = min(scales, key=lambda scale: float(loss_at(training, scale)))
        losses.append(loss_at(held_out, best))
    return float(torch.stack(losses).mean())
