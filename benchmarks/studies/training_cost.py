"""How much memory and time does a profile take beside sampling and beside the reference trainer?

On an SDXL UNet with random weights, shrunken. Each job runs in a process of its own. peak_bytes: what its resident set (Linux)
grows by at most.
"""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from study import counted, save

# isort: split
import comfy.samplers
import torch
from annealing_guidance_pack.models.scale_model import ScaleInfo
from annealing_guidance_pack.models.scale_network import NetworkConfig
from annealing_guidance_pack.training.measure import measure_picture
from annealing_guidance_pack.training.pictures import Picture
from annealing_guidance_pack.training.profile import ProfileSettings
from common.sdxl import SIZE, random_prompt, random_sdxl
from reference_trainer import ReferenceTrainer, draw, learner

BATCHES = 1, 4
GRID = 20


def picture(seed: int) -> Picture:
    latent = torch.randn(4, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return Picture(seed, lambda: (latent, random_prompt(seed)))


def sampling(model, batch: int) -> None:
    """Ten steps of ComfyUI's own sampling with CFG: as many calls as the profile's."""
    guider, shape = comfy.samplers.CFGGuider(model), (batch, 4, SIZE, SIZE)
    guider.set_conds(random_prompt(1), random_prompt(0))
    guider.set_cfg(5.0)
    euler, sigmas = comfy.samplers.sampler_object("euler"), torch.linspace(10.0, 1.0, 11)
    with torch.inference_mode():
        guider.sample(torch.randn(shape), torch.zeros(shape), euler, sigmas, disable_pbar=True, seed=0)


def profile(model, batch: int) -> None:
    """The entries of one picture."""
    with torch.inference_mode():
        measure_picture(model, picture(1), random_prompt(0), ProfileSettings(GRID, samples=batch), batch)


def reference(model, batch: int) -> None:
    """One step of the reference trainer."""
    network = learner(ScaleInfo("", "epsilon", 4 * SIZE**2, GRID, "", "", "", ""), NetworkConfig())
    trainer = ReferenceTrainer(model, random_prompt(0), network, balanced=False)
    trainer.step(draw(model, GRID, [picture(i) for i in range(batch)], torch.Generator().manual_seed(0)))


def resident(key: str) -> int:
    """Bytes of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def measured(job, batch: int) -> dict:
    model = random_sdxl()
    weights, rows = sum(p.numel() * p.element_size() for p in model.model.parameters()), counted(model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = resident("VmRSS"), time.perf_counter()
    job(model, batch)
    seconds, peak = time.perf_counter() - began, resident("VmHWM") - before
    return {"peak_bytes": peak, "weights_bytes": weights, "rows": sum(rows), "seconds": seconds}


def main() -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        jobs = [(job, batch) for batch in BATCHES for job in (sampling, profile, reference)]
        rows = {f"{job.__name__}, batch {batch}": fresh.apply(measured, (job, batch)) for job, batch in jobs}
    save(__file__, {"jobs": rows})


if __name__ == "__main__":
    main()
