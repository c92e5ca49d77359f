"""The methods that benchmarks/quality.py compares: what people use instead, ours, and ours with a part taken out.

A method is a dict from the name of a setting to a run: (guider, sampler, sigmas). Rivals are ComfyUI's own nodes and samplers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import comfy.samplers
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_cfg import CFGNorm, CFGZeroStar
from comfy_extras.nodes_fresca import FreSca
from comfy_extras.nodes_mahiro import Mahiro
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_tcfg import TCFG

from . import pack_module
from .demo import Demo

Run = Callable[[], tuple]

CFG_SCALES = (1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0)
CFG_PP_STRENGTHS = (1.5, 2.0, 3.0, 4.0, 5.0, 7.5)  # as the mean CFG scale of the same steps; see cfg_pp
RIVAL_SCALES = (2.0, 3.0, 5.0, 7.5)
# The node adds so many projected gaps to the conditional prediction: across it, CFG + 1. (Asked for 1, ComfyUI leaves CFG out.)
PROJECTED_SCALES = (0.8, 1.2, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.5, 10.0)
APG_SCALES = (1.2, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0)
ASKED_CFG = (1.5, 2.0, 3.0, 4.0, 5.0, 7.5)  # annealing's strength said in CFG
WEAK = ASKED_CFG[1:4]  # weaker than lambda 0: the lower end of annealing's front
LAMBDAS = (0.0, 0.2, 0.4, 0.6, 0.8)
APG_SETTINGS = {"eta": 0.0, "norm_threshold": 0.0, "momentum": -0.5}  # the paper's, without the bound on the norm
PROJECTION = {"eta": 0.0, "norm_threshold": 0.0, "momentum": 0.0}  # APG without momentum: guiding across the prediction alone
FRESCA = {"scale_low": 1.0, "scale_high": 1.25, "freq_cutoff": 3}  # its defaults at SDXL's size: 20 of 64, here 3 of 8
INTERVAL = 0.28, 5.42  # noise-to-signal ratios between which Kynkaanniemi et al. (arXiv 2404.07724) guide ImageNet-512


class ScheduledCFGGuider(comfy.samplers.CFGGuider):
    """CFG whose scale follows a rule: (progress 0..1 in timesteps, noise-to-signal ratio) -> share of the full guidance."""

    def set_rule(self, scale: float, rule: Callable[[float, float], float]) -> None:
        self.scale, self.rule = scale, rule

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        sampling, coordinates = self.inner_model.model_sampling, pack_module("guidance.coordinates")
        nsr = coordinates.nsr_of_sigma(sampling, timestep[:1])
        progress = 1 - pack_module("models.schedule").timestep_of_nsr(coordinates.path_of(sampling), nsr).item() / 1000
        self.set_cfg(1 + (self.scale - 1) * self.rule(progress, nsr.item()))
        return super().predict_noise(x, timestep, model_options or {}, seed)


# Wang et al., "Analysis of Classifier-Free Guidance Weight Schedulers" (arXiv 2404.13040): the mean share is 1.
SCHEDULES = {
    "linear, rising": lambda progress, _: 2 * progress,
    "linear, falling": lambda progress, _: 2 * (1 - progress),
    "cosine, rising": lambda progress, _: 1 - math.cos(math.pi * progress),
    "cosine, falling": lambda progress, _: 1 + math.cos(math.pi * progress),
    # C2FG (arXiv 2603.08155) with its rate for DiT: twice the scale at the end.
    "exponential, rising": lambda progress, _: math.log(2) * 2**progress,
    "interval": lambda _, ratio: float(INTERVAL[0] < ratio <= INTERVAL[1]),
}


class Methods:
    """All methods on one variant of the demo at one step count."""

    def __init__(self, demo: Demo, steps: int) -> None:
        self.demo = demo
        self.epsilon = demo.scale.info.prediction == "epsilon"
        # epsilon: the 50-step schedule of the paper; flow: ComfyUI's usual one. Of the multistep solver: likewise the usual one.
        self.sigmas = demo.schedule("paper" if self.epsilon else "simple", steps)
        self.solver_sigmas = demo.schedule("karras" if self.epsilon else "simple", steps)
        self.euler = comfy.samplers.sampler_object("euler")
        self.dpmpp_2m = comfy.samplers.sampler_object("dpmpp_2m")
        self.null = pack_module("guidance.null_renoising").null_renoising_sampler()

    def rivals(self) -> dict[str, dict[str, Run]]:
        model = self.demo.model
        return {
            "no guidance": {"": self._cfg(1.0)},
            "CFG": {f"{scale:g}": self._cfg(scale) for scale in CFG_SCALES},
            "CFG++": self._cfg_pp(),
            "RescaleCFG": self._patched(lambda: RescaleCFG().patch(model, 0.7)[0], (*RIVAL_SCALES, 10.0)),
            "APG": self._patched(lambda: APG.execute(model, **APG_SETTINGS)[0], APG_SCALES),
            "CFG and projection": self._patched(lambda: APG.execute(model, **PROJECTION)[0], PROJECTED_SCALES),
            "CFGZeroStar": self._patched(lambda: CFGZeroStar.execute(model)[0]),
            "CFG, dpmpp_2m": {f"{scale:g}": self._cfg(scale, solver=True) for scale in RIVAL_SCALES},
            "TCFG": self._patched(lambda: TCFG.execute(model)[0]),
            "CFGNorm": self._patched(lambda: CFGNorm.execute(model, 1.0)[0]),
            "FreSca": self._patched(lambda: FreSca.execute(model, **FRESCA)[0]),
            "Mahiro": self._patched(lambda: Mahiro.execute(model)[0]),
            **{f"CFG, {name}": self._scheduled(rule) for name, rule in SCHEDULES.items()},
        }

    def ours(self) -> dict[str, dict[str, Run]]:
        """The guider with the Annealing Sampler. With euler on the same schedule it draws the same pictures."""
        return {
            "annealing": self.annealing(self.demo.scale),
            "annealing, dpmpp_2m": self.annealing(self.demo.scale, solver=True),
            "annealing at cfg": {
                f"{cfg:g}": self.annealing(self.demo.scale, lambdas=(0.4,), cfg=cfg)["0.4"] for cfg in ASKED_CFG
            },
        }

    def annealing(self, scale_model, solver: bool = False, lambdas=LAMBDAS, **settings) -> dict[str, Run]:
        """lambda -> run of the guider. solver: with dpmpp_2m instead of null renoising."""

        def run(value: float) -> Run:
            return lambda: (
                self.demo.annealing(scale_model, value, **settings),
                self.dpmpp_2m if solver else self.null,
                self.solver_sigmas if solver else self.sigmas,
            )

        return {f"{value:g}": run(value) for value in lambdas}

    def _cfg(self, scale: float, solver: bool = False, model: Callable[[], object] = lambda: None) -> Run:
        return lambda: (
            self.demo.cfg(scale, model()),
            self.dpmpp_2m if solver else self.euler,
            self.solver_sigmas if solver else self.sigmas,
        )

    def _patched(self, patch: Callable[[], object], scales: tuple[float, ...] = RIVAL_SCALES) -> dict[str, Run]:
        return {f"{scale:g}": self._cfg(scale, model=patch) for scale in scales}

    def _cfg_pp(self) -> dict[str, Run]:
        """Constant scales of `euler_cfg_pp`, chosen by what they amount to: a scale means another strength at each step count."""
        nsr = pack_module("guidance.coordinates").nsr_of_sigma(self.demo.model_sampling, self.sigmas)
        factor = pack_module("guidance.course").folding_factor(nsr[:-1], nsr[1:]).mean().item()
        sampler = comfy.samplers.sampler_object("euler_cfg_pp")

        def run(scale: float) -> Run:
            return lambda: (self.demo.cfg(scale), sampler, self.sigmas)

        return {f"{strength / factor:.3g}": run(strength / factor) for strength in CFG_PP_STRENGTHS}

    def _scheduled(self, rule: Callable[[float, float], float]) -> dict[str, Run]:
        def run(scale: float) -> Run:
            def build():
                guider = ScheduledCFGGuider(self.demo.model)
                guider.set_rule(scale, rule)
                return guider, self.euler, self.sigmas

            return build

        return {f"{scale:g}": run(scale) for scale in RIVAL_SCALES}
