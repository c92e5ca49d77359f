"""How much memory and time does a profile take beside sampling and beside the reference trainer?

On an SDXL UNet with random weights, shrunken. Each job runs in a process of its own. peak_bytes: what its resident set (Linux)
grows by at most.
"""

from __future__ import annotations

import json
import subprocess
import sys
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
from common.sdxl import random_prompt, random_sdxl
from reference_trainer import ReferenceTrainer, draw, learner

BATCHES = 1, 4
GRID = 20


class Jobs:
    """What is done with the model, `batch` rows at once."""

    def __init__(self, batch: int) -> None:
        self.batch, (self.model, self.size) = batch, random_sdxl(cuda=False)
        self.weights = sum(p.numel() * p.element_size() for p in self.model.model.parameters())
        self.rows = counted(self.model)

    def picture(self, seed: int) -> Picture:
        latent = torch.randn(4, self.size, self.size, generator=torch.Generator().manual_seed(seed))
        return Picture(seed, lambda: (latent, random_prompt(seed)))

    def sampling(self) -> None:
        """Ten steps of ComfyUI's own sampling with CFG: as many calls as the profile's."""
        guider, shape = comfy.samplers.CFGGuider(self.model), (self.batch, 4, self.size, self.size)
        guider.set_conds(random_prompt(1), random_prompt(0))
        guider.set_cfg(5.0)
        euler, sigmas = comfy.samplers.sampler_object("euler"), torch.linspace(10.0, 1.0, 11)
        with torch.inference_mode():
            guider.sample(torch.randn(shape), torch.zeros(shape), euler, sigmas, disable_pbar=True, seed=0)

    def profile(self) -> None:
        """The entries of one picture."""
        with torch.inference_mode():
            settings = ProfileSettings(GRID, samples=self.batch)
            measure_picture(self.model, self.picture(1), random_prompt(0), settings, self.batch)

    def reference(self) -> None:
        """One step of the reference trainer."""
        network = learner(ScaleInfo("", "epsilon", 4 * self.size**2, GRID, "", "", "", ""), NetworkConfig())
        trainer = ReferenceTrainer(self.model, random_prompt(0), network, balanced=False)
        pictures = [self.picture(i) for i in range(self.batch)]
        trainer.step(draw(self.model, GRID, pictures, torch.Generator().manual_seed(0)))

    def measured(self, name: str) -> dict:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, began = resident("VmRSS"), time.perf_counter()
        getattr(self, name)()
        seconds, peak = time.perf_counter() - began, resident("VmHWM") - before
        return {"peak_bytes": peak, "weights_bytes": self.weights, "rows": sum(self.rows), "seconds": seconds}


def resident(key: str) -> int:
    """Bytes of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def main() -> None:
    if "--job" in sys.argv:
        name, batch = sys.argv[-2:]
        print(json.dumps(Jobs(int(batch)).measured(name)))
        return
    rows = {}
    for batch in BATCHES:
        for name in ("sampling", "profile", "reference"):
            command = [sys.executable, __file__, "--job", name, str(batch)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows[f"{name}, batch {batch}"] = json.loads(done.stdout.splitlines()[-1])
    save(__file__, {"jobs": rows})


if __name__ == "__main__":
    main()
