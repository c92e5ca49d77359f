"""The guided step by itself: inside ComfyUI's own guiders and runs, with two given predictions in the place of the model's.

ComfyUI asks the option sampler_calc_cond_batch_function for both predictions where a model has it. Here that hands out the
same two tensors at every call, so that what is left of a step is the guider's own work.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable

import comfy.k_diffusion.sampling
import comfy.samplers
import torch
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.live import LiveChart
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.scale_network import NetworkConfig
from closed_form import closed_form_model, conditioning
from scales import made_up_network
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STEPS = 50
FIRST_SIGMA, LAST_SIGMA = 14.6, 0.03


def chart() -> LiveChart:
    """The live chart that the nodes give a guider, received by nobody."""
    return LiveChart("1", lambda event, data: None, lambda text: None)


class StandIn:
    """Latents, their two predictions, and a schedule of 50 steps of an epsilon model."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        # A gap of the norm that a latent of SDXL's has in the middle of a run: 0.02 per value.
        self.noise, cond, gap = (torch.randn(shape, generator=generator) for _ in range(3))
        self.cond, self.uncond = cond, cond + 0.02 * gap
        self.schedule = comfy.k_diffusion.sampling.get_sigmas_karras(STEPS, LAST_SIGMA, FIRST_SIGMA)
        self.sigmas = [sigma.repeat(shape[0]) for sigma in self.schedule[:-1]]
        self.scale = made_up_network(config=NetworkConfig())  # the authors' sizes, random weights: the time is the same
        self.predictions = 0

    def cfg(self) -> comfy.samplers.CFGGuider:
        guider = comfy.samplers.CFGGuider(self._model())
        guider.set_cfg(5.0)
        return guider

    def annealing(self, **settings) -> AnnealingCFGGuider:
        return AnnealingCFGGuider(self._model(), Guidance(self.scale, 0.4, **settings), chart())

    def during_runs(self, guiders: list, sampler: str, body: Callable, *steps: Callable) -> None:
        """body(*steps) while a run of every guider is under way, with the sampler of this name as far as they can tell.

        steps: one for each guider, a function of a number: one guided step at that step of the schedule.
        """
        if not guiders:
            return body(*steps)

        def in_the_place_of_the_sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
            def step(i: int):
                return model(x, self.sigmas[i % STEPS], **extra_args)

            self.during_runs(guiders[1:], sampler, body, *steps, step)
            return x

        in_the_place_of_the_sampler.__name__ = f"sample_{sampler}"
        guiders[0].set_conds(*[conditioning(torch.zeros(1, 4, 2, 2), 1.0)] * 2)
        ours, empty = comfy.samplers.KSAMPLER(in_the_place_of_the_sampler), torch.zeros_like(self.noise)
        with torch.inference_mode():
            guiders[0].sample(self.noise, empty, ours, self.schedule, disable_pbar=True, seed=0)

    def _model(self):
        """A model of its own for each guider, since their runs overlap."""
        model = closed_form_model()
        model.model_options["sampler_calc_cond_batch_function"] = self._predict
        return model

    def _predict(self, args: dict) -> list:
        self.predictions += 1
        return [self.cond, self.uncond]


class Watched(TorchDispatchMode):
    """What a job does: its operations, and the most bytes that tensors it has made hold at once.

    Each operation is at least a kernel: views and no-ops are none.
    """

    def __init__(self, job: Callable[[], object]) -> None:
        super().__init__()
        self.operations = self.peak_bytes = self.bytes = 0
        self.users: Counter[int] = Counter()  # tensors of each memory that is new
        with self:
            job()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {memory.data_ptr() for _, memory in self._memory_of(args)}
        made = [(tensor, memory) for tensor, memory in self._memory_of(result) if memory.nbytes()]
        self.operations += any(memory.data_ptr() not in given for _, memory in made)
        for tensor, memory in made:
            place, size = memory.data_ptr(), memory.nbytes()
            if place in self.users or place not in given:
                self.bytes += 0 if self.users[place] else size
                self.users[place] += 1
                weakref.finalize(tensor, self._release, place, size)
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        return result

    def _release(self, place: int, size: int) -> None:
        self.users[place] -= 1
        if not self.users[place]:
            del self.users[place]
            self.bytes -= size

    @staticmethod
    def _memory_of(values) -> list[tuple]:
        return [(leaf, leaf.untyped_storage()) for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
