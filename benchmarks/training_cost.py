"""Memory and speed of the profiler beside sampling and beside the reference trainer, on an SDXL UNet with random weights.

    python tools/dev.py bench training_cost                     a shrunken UNet, 32 x 32 latents, float32, on the CPU
    python tools/dev.py bench training_cost --device cuda       SDXL's own sizes, 128 x 128 latents, bfloat16

Each job runs in a process of its own. `peak`: what it needs at most beyond the loaded model: on the CPU the process's resident
set (Linux), on a GPU what PyTorch has allocated. `with weights`: the same with the model. Rows: of the model, forward.

Measured on the CPU (the resident set differs by some 10 MiB from run to run; other programs were running, so take the speeds
as rough). It has not been run on a GPU yet.

                 batch    peak MiB   to sampling   with weights   to sampling   rows/s
    sampling         1          33          1.00            211          1.00     6.89
    profile          1          45          1.37            223          1.06     6.42
    reference        1         171          5.25            350          1.66     2.69
    sampling         4          88          1.00            267          1.00     4.34
    profile          4         104          1.18            283          1.06     5.45
    reference        4         605          6.86            783          2.94     1.92
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from common import RESULTS, counted, load_hosts, write_results
from common.sdxl import random_prompt, random_sdxl


class Job:
    """The model on its device, one picture's worth of inputs, and what is done with them."""

    def __init__(self, device: str, batch: int) -> None:
        import comfy.model_management
        import reference_trainer
        import torch
        from annealing_guidance_pack.training import measure, pictures, profile

        # All before anything is measured: modules need memory too.
        self.reference_trainer, self.measuring, self.pictures, self.profiles = reference_trainer, measure, pictures, profile
        self.torch, self.cuda, self.batch = torch, device == "cuda", batch
        self.model, self.size = random_sdxl(self.cuda)
        self.device = comfy.model_management.get_torch_device()
        self.weights = sum(p.numel() * p.element_size() for p in self.model.model.parameters())
        self.negative = random_prompt(0)
        self.trainer = None

    def picture(self, seed: int):
        latent = self.torch.randn(4, self.size, self.size, generator=self.torch.Generator().manual_seed(seed))
        return self.pictures.Picture(seed, lambda: (latent, random_prompt(seed)))

    def sampling(self, seed: int) -> int:
        """Ten steps of ComfyUI's own sampling with CFG, `batch` pictures at once: as many calls as the profile's. Its rows."""
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(random_prompt(seed), self.negative)
        guider.set_cfg(5.0)
        sigmas, shape = self.torch.linspace(10.0, 1.0, 11), (self.batch, 4, self.size, self.size)
        with self.torch.inference_mode():
            euler = comfy.samplers.sampler_object("euler")
            guider.sample(self.torch.randn(shape), self.torch.zeros(shape), euler, sigmas, disable_pbar=True, seed=0)
        return 2 * 10 * self.batch

    def profile(self, seed: int) -> int:
        """The profile's entries of one picture, `batch` of them, at once."""
        settings = self.profiles.ProfileSettings(20, samples=self.batch)
        with self.torch.inference_mode():
            model, rows = counted(self.model)
            self.measuring.measure_picture(model, self.picture(seed), self.negative, settings, self.batch)
        return sum(rows)

    def reference(self, seed: int) -> int:
        """One step of the reference trainer on `batch` samples at once."""
        reference_trainer = self.reference_trainer
        if self.trainer is None:
            info = reference_trainer.ScaleInfo("", "epsilon", 4 * self.size**2, 20, "", "", "", "")
            network = reference_trainer.learner(info, reference_trainer.NetworkConfig())
            network.to(self.device)
            self.trainer = reference_trainer.ReferenceTrainer(
                self.model, self.negative, network, balanced=False, at_once=self.batch
            )
        pictures = [self.picture(seed * 1000 + i) for i in range(self.batch)]
        generator = self.torch.Generator().manual_seed(seed)
        self.trainer.step(reference_trainer.draw(self.model, 20, pictures, perturb=True, generator=generator))
        return reference_trainer.ROWS_PER_SAMPLE * self.batch

    def peak(self) -> int:
        """Bytes, since the last `reset_peak`."""
        if self.cuda:
            return self.torch.cuda.max_memory_allocated()
        return _status("VmHWM")

    def reset_peak(self) -> int:
        """Bytes now."""
        if self.cuda:
            self.torch.cuda.synchronize()
            self.torch.cuda.reset_peak_memory_stats()
            return self.torch.cuda.memory_allocated()
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")

    def run(self, name: str, repeats: int) -> dict:
        """On a GPU, once more before it, to warm up."""
        job = getattr(self, name)
        if self.cuda:
            job(1)
        before, began, rows = self.reset_peak(), time.perf_counter(), 0
        for seed in range(2, 2 + repeats):
            rows += job(seed)
        if self.cuda:
            self.torch.cuda.synchronize()
        seconds, peak = time.perf_counter() - began, self.peak() - before
        return {"peak_bytes": peak, "weights_bytes": self.weights, "rows": rows, "seconds": seconds, "jobs": repeats}


def _status(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=1, help="how often each job is repeated")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument(
        "--job", choices=["sampling", "profile", "reference"], help="only this one, here, for the first batch size"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "training_cost.json")
    options = parser.parse_args()
    load_hosts(cpu=options.device == "cpu")
    if options.job:
        print(json.dumps(Job(options.device, options.batches[0]).run(options.job, options.repeats)))
        return
    results: dict[str, dict] = {}
    print(f"{'':12} batch    peak MiB   to sampling   with weights   to sampling   rows/s")
    for batch in options.batches:
        for job in ("sampling", "profile", "reference"):
            own = ["--device", options.device, "--repeats", str(options.repeats), "--batches", str(batch), "--job", job]
            done = subprocess.run([sys.executable, __file__, *own], stdout=subprocess.PIPE, text=True, check=True)
            row = results[f"{job}, batch {batch}"] = json.loads(done.stdout.splitlines()[-1])
            total, sampling = row["peak_bytes"] + row["weights_bytes"], results[f"sampling, batch {batch}"]
            ratio = row["peak_bytes"] / sampling["peak_bytes"]
            total_ratio = total / (sampling["peak_bytes"] + sampling["weights_bytes"])
            pace = row["rows"] / row["seconds"]
            cells = f"{row['peak_bytes'] / 2**20:11.0f} {ratio:13.2f} {total / 2**20:14.0f} {total_ratio:13.2f} {pace:8.2f}"
            print(f"{job:12} {batch:5} {cells}", flush=True)
    write_results({"jobs": results}, options.output, options.device)


if __name__ == "__main__":
    main()
