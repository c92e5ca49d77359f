"""How good is the fit on a profile beside the paper's own training, by model evaluations and by time?

Both learn the same network from pictures of the same renderer: one from forward passes on a few of them and a fit, the other
(reference_trainer.py) by backpropagation through the frozen model, on pictures that are always new. The losses are on pictures
that neither saw, with the second term times the fit's ratio. Seconds are of one processor core.
"""

from __future__ import annotations

import statistics
import time

from study import VARIANTS, first_pictures, fitted, measured, save

# isort: split
import torch
from annealing_guidance_pack.models.scale_network import ScaleNetwork
from annealing_guidance_pack.shapes.loader import load_shapes
from annealing_guidance_pack.training.bundled_scales import training_pictures
from annealing_guidance_pack.training.fit import FitSettings, ProfileLoss, loss_ratio
from annealing_guidance_pack.training.once import own_grid
from annealing_guidance_pack.training.pictures import encode
from reference_trainer import ACCUMULATION, ROWS_PER_SAMPLE, ReferenceTrainer, draw, learner

LAMBDAS = (0.0, 0.2, 0.4, 0.6, 0.8)
SIZES = (16, 32, 64)  # pictures of a profile
STEPS, LOOK_EVERY = 800, 20  # of the reference: ten times the evaluations of a profile of 64 pictures
VALIDATION_PICTURES, VALIDATION_SAMPLES, VALIDATION_KNOTS = 64, 8, 13


def reference_networks(variant: str, like: ScaleNetwork):
    """(step, seconds, running ratio, network of the sizes and bounds of `like`) every so many steps."""
    model, clip, vae = load_shapes(variant)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = learner(like.info, like.config)
    trainer = ReferenceTrainer(model, encode(clip, ""), network, balanced=variant == "flow")
    grid, generator, seconds = own_grid(model), torch.Generator().manual_seed(0), 0.0
    for step in range(1, STEPS + 1):
        pictures = training_pictures(clip, vae, ACCUMULATION, seed=1_000_000 + step)
        began = time.process_time()
        trainer.step(draw(model, grid, pictures, generator))
        seconds += time.process_time() - began
        if step % LOOK_EVERY == 0:
            bounded = ScaleNetwork(like.info, like.config)
            bounded.load_state_dict(network.state_dict())
            yield step, seconds, trainer.ratio, bounded.eval()


def compare(variant: str) -> dict:
    began = time.process_time()
    whole, evaluations = measured(variant, max(SIZES), seed=0)
    seconds, ratio = (time.process_time() - began) / max(SIZES), loss_ratio(whole.entries, whole, FitSettings())
    validation, _ = measured(variant, VALIDATION_PICTURES, 999, VALIDATION_SAMPLES, VALIDATION_KNOTS)
    entries, results = validation.entries, {}
    loss = ProfileLoss(entries, validation.settings.knots, ratio)

    def look(name: str, network: ScaleNetwork, evaluations: float, seconds: float) -> None:
        with torch.no_grad():
            scales = {value: network(entries.timestep, entries.gap_norm, value) for value in LAMBDAS}
        losses = [float(loss(scale, torch.full_like(scale, value)).mean()) for value, scale in scales.items()]
        mean = statistics.mean(losses)
        results[name] = {"evaluations": evaluations, "seconds": seconds, "losses": losses, "mean": mean}

    for size in SIZES:
        began = time.process_time()
        network = fitted(first_pictures(whole, size))
        look(f"profile of {size}", network, size * evaluations, size * seconds + time.process_time() - began)
    looks = list(reference_networks(variant, network))
    for step, spent, _, learned in looks:
        look(f"reference, step {step}", learned, step * ACCUMULATION * ROWS_PER_SAMPLE, spent)
    return {"ratio": ratio, "reference_ratio": looks[-1][2], "networks": results}


if __name__ == "__main__":
    save(__file__, {"lambdas": LAMBDAS, "variants": {variant: compare(variant) for variant in VARIANTS}})
