"""The guided step by itself: inside ComfyUI's own guiders and runs, with two given predictions in the place of the model's.

ComfyUI asks the option sampler_calc_cond_batch_function for both predictions where a model has it. Here that hands out the
same two tensors at every call, so that what is left of a step is the guider's own work.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import ROOT, pack_module

sys.path.insert(0, str(ROOT / "tests" / "support"))

STEPS = 50
FIRST_SIGMA, LAST_SIGMA = 14.6, 0.03


class StandIn:
    """Latents, their two predictions, and a schedule of 50 steps of an epsilon model, on ComfyUI's device."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        import comfy.k_diffusion.sampling
        import comfy.model_management
        import torch
        from scales import made_up_network

        self.device = comfy.model_management.get_torch_device()
        generator = torch.Generator().manual_seed(0)
        # A gap of the norm that a latent of SDXL's has in the middle of a run: 0.02 per value.
        self.noise, cond, gap = (torch.randn(shape, generator=generator).to(self.device) for _ in range(3))
        self.cond, self.uncond = cond, cond + 0.02 * gap
        self.schedule = comfy.k_diffusion.sampling.get_sigmas_karras(STEPS, LAST_SIGMA, FIRST_SIGMA)
        self.sigmas = [sigma.to(self.device).repeat(shape[0]) for sigma in self.schedule[:-1]]
        config = pack_module("models.scale_network").NetworkConfig()
        self.scale = made_up_network(config=config)  # the authors' sizes, random weights: the time is the same
        self.predictions = 0

    def cfg(self):
        """ComfyUI's CFGGuider."""
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(self._model())
        guider.set_cfg(5.0)
        return self._with_conditionings(guider)

    def annealing(self, **settings):
        """The Annealing Guider, with the live chart that its node gives it, received by nobody."""
        run, live = pack_module("guidance.run"), pack_module("guidance.live")
        chart = live.LiveChart("1", lambda event, data: None, lambda text: None)
        guidance = run.Guidance(self.scale, 0.4, **settings)
        return self._with_conditionings(pack_module("guidance.guider").AnnealingCFGGuider(self._model(), guidance, chart))

    def during_runs(self, guiders: list, sampler: str, body: Callable) -> None:
        """body(*steps) while a run of every guider is under way, with the sampler of this name as far as they can tell.

        steps: one for each guider, a function of a number: one guided step at that step of the schedule.
        """
        import comfy.samplers
        import torch

        def run(waiting: list, steps: list[Callable]):
            if not waiting:
                return body(*steps)

            def in_the_place_of_the_sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
                run(waiting[1:], [*steps, lambda i: model(x, self.sigmas[i % STEPS], **extra_args)])
                return x

            in_the_place_of_the_sampler.__name__ = f"sample_{sampler}"
            ours = comfy.samplers.KSAMPLER(in_the_place_of_the_sampler)
            waiting[0].sample(self.noise, torch.zeros_like(self.noise), ours, self.schedule, disable_pbar=True, seed=0)

        with torch.inference_mode():
            run(guiders, [])

    def _model(self):
        """A model of its own for each guider, since their runs overlap."""
        from closed_form import closed_form_model

        model = closed_form_model()
        model.model.to(self.device)
        model.load_device = self.device
        model.model_options["sampler_calc_cond_batch_function"] = self._predict
        return model

    def _predict(self, args: dict) -> list:
        self.predictions += 1
        return [self.cond, self.uncond]

    @staticmethod
    def _with_conditionings(guider):
        import torch
        from closed_form import conditioning

        guider.set_conds(*[conditioning(torch.zeros(1, 4, 2, 2), 1.0)] * 2)
        return guider


def on_cuda() -> bool:
    """Whether ComfyUI computes on a GPU of CUDA's or ROCm's kind, whose memory and kernels PyTorch can count."""
    import comfy.model_management

    return comfy.model_management.get_torch_device().type == "cuda"


def wait() -> None:
    """For the device."""
    import torch

    if on_cuda():
        torch.cuda.synchronize()


def operations(job: Callable[[], object]) -> int:
    """How many of PyTorch's operations a job gives the device to do, each at least a kernel: views and no-ops are none."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    counted = []

    def memory_of(values) -> set[int]:
        return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)}

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if memory_of(result) - memory_of(args):
                counted.append(function)
            return result

    with Counting():
        job()
    return len(counted)


def memory(job: Callable[[], object]) -> tuple[int, int]:
    """(bytes that a job needs at most beyond those in use before it, bytes that it leaves in use), by PyTorch's allocators."""
    import torch

    if on_cuda():
        wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        wait()
        return torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    sizes, most = {}, 0
    for event in _profiled(job, profile_memory=True):
        if event.get("name") == "[memory]":
            address, size = event["args"]["Addr"], int(event["args"]["Bytes"])
            if size > 0:
                sizes[address] = size
            else:
                sizes.pop(address, None)  # of a release of what was there before nothing is counted
            most = max(most, sum(sizes.values()))
    return most, sum(sizes.values())


def kernels(job: Callable[[], object]) -> int:
    """How many kernels a job runs on the GPU."""
    return sum(event.get("cat") == "kernel" for event in _profiled(job))


def _profiled(job: Callable[[], object], **settings) -> list[dict]:
    """The events of PyTorch's profiler, in the order of time."""
    import torch

    with torch.profiler.profile(**settings) as profile:
        job()
        wait()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profile.export_chrome_trace(os.fspath(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return sorted(events, key=lambda event: event.get("ts", 0))
