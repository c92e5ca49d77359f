"""How solvers weigh earlier predictions, step by step. guidance/delivery.py inverts these weights for a guided displacement.

A multistep solver steps with b_0 D_i + b_1 D_{i-1} + ... in place of D_i, where the b_j add up to 1. So it extrapolates the
guidance too. But strong guidance uses up the gap within a few steps, so that a line through two calls does not predict the next.
The guided displacement f = guided - D_c shall therefore count in its own step alone, while D_c keeps the solver's full order. So
the solver gets D_c + v with

    b_0 v_i + sum_j b_j v_{i-j} = f        (exact, value by value)

Solvers that extrapolate the slope (x - D)/sigma have b_j = beta_j sigma_i / sigma_{i-j}, with the beta_j adding up to 1.

Each function here gives one step's weights, newest first. `levels`: the sampler's own, falling; i: the step from levels[i] to
levels[i + 1] > 0. The formulae are those of the solvers' papers, in the variants of ComfyUI's k_diffusion/sampling.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import comfy.k_diffusion.deis
import comfy.k_diffusion.sa_solver
import numpy as np
import torch

from .host_types import Options
from .sampler_facts import er_sde_noise

Weights = list[float]
UNIPC_END = 0.001  # ComfyUI's UniPC steps to this level instead of 0
MOST = 4  # predictions that count, the newest included


def weights_of(name: str, levels: list[float], log_snr: list[float], options: Options) -> list[Weights]:
    """The weights of every step of a run: [1.0] for a step that uses its own prediction alone.

    levels: ComfyUI's sigmas; log_snr: -log nsr of each; both [N + 1]. options: the sampler's, and "tau", SA-Solver's share of
    fresh noise as a function of the level that a step leads to.
    """
    steps = len(levels) - 1
    if name not in _WEIGHTS:
        return [[1.0]] * steps
    if name.startswith("unipc") and levels[-1] <= 0:
        levels = [*levels[:-1], UNIPC_END]
    weigh = _WEIGHTS[name](levels, log_snr, options)
    last = steps - 1 if levels[-1] <= 0 else steps  # every solver's step to the picture uses the prediction alone
    return [_checked(weigh, i) if i < last and levels[i] > levels[i + 1] else [1.0] for i in range(steps)]


Weigher = Callable[[int], Weights]


def _checked(weigh: Weigher, i: int) -> Weights:
    """Next to an empty step the solver's own weights are infinite: [1.0] there."""
    try:
        with np.errstate(all="ignore"):
            weights = weigh(i)
    except (ArithmeticError, np.linalg.LinAlgError, RuntimeError):
        return [1.0]
    return [float(weight) for weight in weights] if np.isfinite(weights).all() and abs(weights[0]) > 1e-3 else [1.0]


def _two_step(ratio: Callable[[int], float]) -> Weigher:
    """(1 + c) D_i - c D_{i-1} with c = ratio(i)."""
    return lambda i: [1.0 + ratio(i), -ratio(i)] if i else [1.0]


def _dpmpp_2m(levels: list[float], log_snr: list[float], options: Options) -> Weigher:
    """DPM-Solver++(2M), arXiv 2211.01095, in log sigma whatever the model."""
    t = [-math.log(level) if level > 0 else math.inf for level in levels]
    return _two_step(lambda i: (t[i + 1] - t[i]) / (2 * (t[i] - t[i - 1])))


def _dpmpp_2m_sde(levels: list[float], log_snr: list[float], options: Options) -> Weigher:
    eta, heun = float(options.get("eta", 1.0)), options.get("solver_type") == "heun"

    def ratio(i: int) -> float:
        h, h_last = log_snr[i + 1] - log_snr[i], log_snr[i] - log_snr[i - 1]
        taken = -math.expm1(-h * (1 + eta))
        return ((1 - taken / (h * (1 + eta))) / taken if heun else 0.5) * h / h_last

    return _two_step(ratio)


def _dpmpp_3m_sde(levels: list[float], log_snr: list[float], options: Options) -> Weigher:
    eta = float(options.get("eta", 1.0))

    def weigh(i: int) -> Weights:
        if not i:
            return [1.0]
        h = log_snr[i + 1] - log_snr[i]
        taken, r0 = -math.expm1(-h * (1 + eta)), (log_snr[i] - log_snr[i - 1]) / h
        phi_2 = 1 - taken / (h * (1 + eta))
        if i == 1:
            return [1 + phi_2 / r0 / taken, -phi_2 / r0 / taken]
        r1, phi_3 = (log_snr[i - 1] - log_snr[i - 2]) / h, phi_2 / (h * (1 + eta)) - 0.5
        newer, older = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
        first = newer + (newer - older) * r0 / (r0 + r1)
        second = (newer - older) / (r0 + r1)
        return list(np.array([1.0, 0.0, 0.0]) + (phi_2 * first - phi_3 * second) / taken)

    return weigh


def _res_multistep(levels: list[float], log_snr: list[float], options: Options) -> Weigher:
    """arXiv 2308.02157, second order."""
    eta = float(options.get("eta", 0.0))

    def down(i: int) -> float:
        ratio = levels[i + 1] / levels[i]
        return levels[i + 1] * math.sqrt(max(0.0, 1 - eta**2 * (1 - ratio**2)))

    def ratio(i: int) -> float:
        h = math.log(levels[i] / down(i))
        # ComfyUI's c_2 uses the level before noise was added in the last step but one.
        c_2 = math.log(down(i - 1) / levels[i - 1]) / h
        taken = -math.expm1(-h)
        return -(1 - taken / h) / c_2 / taken

    return _two_step(ratio)


def _slopes(levels: list[float], betas: Callable[[int], Weights]) -> Weigher:
    """b_j = beta_j sigma_i / sigma_{i-j}."""
    return lambda i: [beta * levels[i] / levels[i - j] for j, beta in enumerate(betas(i))]


def _gradient_estimation(levels: list[float], log_snr: list[float], options: Options) -> Weigher:
    gamma = float(options.get("ge_gamma", 2.0))
    return _slopes(levels, lambda i: [gamma, 1 - gamma] if i else [1.0])


_ADAMS_BASHFORTH = ([1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


def _ipndm(levels: list[float], log_snr: list[float], options: Options) -> Weigher:
    order = int(options.get("max_order", 4))
    return _slopes(levels, lambda i: _ADAMS_BASHFORTH[min(order, i + 1) - 1])


def _ipndm_v(levels: list[float], log_snr: list[float], options: Options) -> Weigher:
    order = int(options.get("max_order", 4))
    steps = np.diff(levels)

    def betas(i: int) -> Weights:
        used = min(order, i + 1)
        if used == 1:
            return [1.0]
        h, h1 = steps[i], steps[i - 1]
        weights = np.array([1 + h / h1 / 2, -h / h1 / 2, 0.0, 0.0])
        if used > 2:
            h2 = steps[i - 2]
            third = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
            weights += third * np.array([1.0, -(1 + h1 / h2), h1 / h2, 0.0])
        if used > 3:
            h3 = steps[i - 3]
            both = h1 * (h1 + h2) / (h2 * (h2 + h3))
            fourth = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
            fourth *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
            weights += fourth * np.array([1.0, -(1 + h1 / h2 + both), h1 / h2 + both * (1 + h2 / h3), -both * h1 / h2])
        return list(weights[:used])

    return _slopes(levels, betas)


def _lms(levels: list[float], log_snr: list[float], options: Options) -> Weigher:
    order = int(options.get("order", 4))

    def betas(i: int) -> Weights:
        nodes = [levels[i - j] for j in range(min(order, i + 1))]
        return [_lagrange_mean(nodes, j, levels[i], levels[i + 1]) for j in range(len(nodes))]

    return _slopes(levels, betas)


def _lagrange_mean(nodes: list[float], j: int, start: float, end: float) -> float:
    """The mean from start to end of the polynomial that is 1 at node j and 0 at the others."""
    others = [node for k, node in enumerate(nodes) if k != j]
    polynomial = np.poly1d(others, r=True) / np.prod([nodes[j] - node for node in others])
    integral = polynomial.integ()
    return float((integral(end) - integral(start)) / (end - start))


def _deis(levels: list[float], log_snr: list[float], options: Options) -> Weigher:
    mode, order = options.get("deis_mode", "tab"), int(options.get("max_order", 3))
    table = comfy.k_diffusion.deis.get_deis_coeff_list(torch.tensor(levels), order, deis_mode=mode)

    def betas(i: int) -> Weights:
        return [float(weight) / (levels[i + 1] - levels[i]) for weight in table[i]] or [1.0]

    return _slopes(levels, betas)


def _er_sde(levels: list[float], log_snr: list[float], options: Options) -> Weigher:
    """ER-SDE-Solver-3, arXiv 2309.06169, with ComfyUI's 200 points for its integrals."""
    scaler, stages = options.get("noise_scaler") or er_sde_noise, int(options.get("max_stage", 3))
    nsr = [math.exp(-value) for value in log_snr]

    def weigh(i: int) -> Weights:
        if min(stages, i + 1) < 2:
            return [1.0]
        n, target = nsr[i], nsr[i + 1]
        size = (n - target) / 200
        points = target + torch.arange(200, dtype=torch.float64) * size
        scaled, at_target = scaler(points), float(scaler(torch.tensor(target, dtype=torch.float64)))
        taken = 1 - at_target / float(scaler(torch.tensor(n, dtype=torch.float64)))
        slope = (target - n) + float((1 / scaled).sum()) * size * at_target
        newest = np.array([1, -1, 0]) / (n - nsr[i - 1])
        weights = np.array([1.0, 0.0, 0.0]) + slope * newest / taken
        if min(stages, i + 1) > 2:
            curve = (target - n) ** 2 / 2 + float(((points - n) / scaled).sum()) * size * at_target
            before = np.array([0, 1, -1]) / (nsr[i - 1] - nsr[i - 2])
            weights += curve * (newest - before) / ((n - nsr[i - 2]) / 2) / taken
        return list(weights)

    return weigh


def _unipc(variant: str) -> Callable[[list[float], list[float], Options], Weigher]:
    """UniPC-p with data prediction, arXiv 2302.04867: the corrector of the step before, then the predictor of this one."""

    def of_run(levels: list[float], log_snr: list[float], options: Options) -> Weigher:
        steps = len(levels) - 1
        order = max(1, min(3, steps - 1))
        t = [-math.log(level) if level > 0 else math.inf for level in levels]

        def order_to(i: int) -> int:
            return i if i < order else min(order, steps + 1 - i)

        def weigh(i: int) -> Weights:
            predicted = _unipc_step(t, i, order_to(i + 1), variant)[0]
            if i == 0:
                return list(predicted)
            before, corrected = _unipc_step(t, i - 1, order_to(i), variant)
            change = corrected - np.append(0.0, before)[: len(corrected)]
            ratio = math.exp(t[i] - t[i + 1])
            weights = np.zeros(MOST)
            weights[: len(predicted)] += predicted
            weights[: len(change)] += change * -math.expm1(t[i - 1] - t[i]) * ratio / (1 - ratio)
            return list(weights)

        return weigh

    return of_run


def _unipc_step(t: list[float], i: int, order: int, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """For the step from i to i + 1: the predictor's weights on D_i, D_{i-1} .., and the corrector's on D_{i+1}, D_i ..

    Both relative to the predictions' total weight in the step, so that they add up to 1.
    """
    h = t[i + 1] - t[i]
    taken = -math.expm1(-h)
    scale = (-h if variant == "bh1" else -taken) / -taken
    nodes = np.array([(t[i - k] - t[i]) / h for k in range(1, order)] + [1.0])
    phi, factorial, moments = -taken / -h - 1, 1, []
    for k in range(1, order + 1):
        moments.append(phi * factorial / (-taken * scale))
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    powers = np.vander(nodes, order, increasing=True).T
    rho_p = np.array([0.5]) if order == 2 else np.linalg.solve(powers[:-1, :-1], moments[:-1]) if order > 2 else np.zeros(0)
    rho_c = np.array([0.5]) if order == 1 else np.linalg.solve(powers, moments)
    predictor = scale * rho_p / nodes[:-1]
    corrector = scale * rho_c / nodes
    return (
        np.concatenate([[1 - predictor.sum()], predictor]),
        np.concatenate([[corrector[-1], 1 - corrector.sum()], corrector[:-1]]),
    )


def _sa_solver(levels: list[float], log_snr: list[float], options: Options) -> Weigher:
    """SA-Solver, arXiv 2309.05019: like UniPC a corrector of the step before, then a predictor; with ComfyUI's coefficients."""
    steps, tau = len(levels) - 1, options["tau"]
    predictor, corrector = int(options.get("predictor_order", 3)), int(options.get("corrector_order", 4))
    simple = bool(options.get("simple_order_2", False))
    lambdas = torch.tensor(log_snr, dtype=torch.float64)
    ends = levels[-1] == 0

    def taken(i: int) -> float:
        """The predictions' total weight in the step from i to i + 1."""
        return -math.expm1((log_snr[i] - log_snr[i + 1]) * (1 + tau(levels[i + 1]) ** 2))

    def weights(i: int, newest: int, order: int) -> np.ndarray:
        """For the step from i to i + 1, on D_newest, D_{newest-1} ..; they add up to 1."""
        target = torch.tensor(math.exp(-log_snr[i + 1]), dtype=torch.float64)
        known = lambdas[newest - order + 1 : newest + 1]
        coefficients = comfy.k_diffusion.sa_solver.compute_stochastic_adams_b_coeffs(
            target, known, lambdas[i], lambdas[i + 1], tau(levels[i + 1]), simple, is_corrector_step=newest > i
        )
        return np.array(coefficients.flip(0).tolist()) / taken(i)

    def predicted(i: int) -> np.ndarray:
        return weights(i, i, min(predictor, i + 1, steps - 1 - i) if ends else min(predictor, i + 1))

    def weigh(i: int) -> Weights:
        total = np.zeros(MOST + 1)
        own = predicted(i)
        total[: len(own)] = own
        order = min(corrector, i + 1, steps - i) if ends else min(corrector, i + 1)
        if i and order:
            before, corrected = predicted(i - 1), weights(i - 1, i, order)
            change = np.zeros(MOST + 1)
            change[: len(corrected)] = corrected
            change[1 : 1 + len(before)] -= before
            total += change * taken(i - 1) * (1 - taken(i)) / taken(i)
        return list(total[:MOST])

    return weigh


_WEIGHTS: dict[str, Callable[[list[float], list[float], Options], Weigher]] = {
    "dpmpp_2m": _dpmpp_2m,
    "dpmpp_2m_sde": _dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": _dpmpp_2m_sde,
    "dpmpp_3m_sde": _dpmpp_3m_sde,
    "res_multistep": _res_multistep,
    "res_multistep_ancestral": _res_multistep,
    "gradient_estimation": _gradient_estimation,
    "ipndm": _ipndm,
    "ipndm_v": _ipndm_v,
    "lms": _lms,
    "deis": _deis,
    "er_sde": _er_sde,
    "unipc": _unipc("bh1"),
    "unipc_bh2": _unipc("bh2"),
    "sa_solver": _sa_solver,
}
