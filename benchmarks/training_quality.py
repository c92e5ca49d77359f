"""The fit on a profile against the paper's own training: validation loss by model evaluations and by time.

    python tools/dev.py bench training_quality flow --folder somewhere

Both learn the same network from pictures of the same renderer: one from forward passes on a few hundred of them and a fit,
the other (`reference_trainer.py`) by backpropagation through the frozen model on pictures that are always new.

The loss is that of pictures that neither saw, from a table with more knots than the profile's; for flow the second term is
multiplied by the fit's ratio. Evaluations are the model's forward rows; of the four of a reference sample two go backward
besides, which is not counted. Seconds are of one processor core, the fit's own dozen included. Measured (ComfyUI 0.3.75):

    mean over lambda 0 .. 0.8        evaluations   seconds     epsilon        flow
    profile of 16 pictures                 1,280        14    0.019510    0.256075
    profile of 64 pictures                 5,120     23-27    0.019477    0.254073
    reference, equal evaluations           5,120        15    0.019487    0.263764
    reference, ten times as many          51,200       148    0.019476    0.260536
    reference, best of its 40 looks                            0.019472    0.255605

- Against the reference at equal evaluations the profile of 64 is lower at every lambda, for both kinds of models.
- At ten times the evaluations: flow is lower at every lambda (at 0.2 by less than the standard error); epsilon is the same
  within 0.05%, 0.4 to 1.3 standard errors. A profile of 16 pictures is too small for epsilon (0.2% above the reference).
- To the loss of the profile of 64 the reference needs 4.8 times the evaluations and 3 times the time on epsilon, where the
  loss hardly depends on the network; on flow it did not get there with ten times the evaluations.
- The follow-up's running ratio keeps moving (flow: 19 at the end, the fit's 7), and the reference's loss with it: it swings by
  several per cent from look to look. With the second term times 19 the reference is 2% ahead: another aim, not a better fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

from common import RESULTS, counted, load_hosts, pack_module, write_results
from common.demo import study_grid

LAMBDAS = (0.0, 0.2, 0.4, 0.6, 0.8)
PROFILED = 64  # pictures; the smaller sizes are the first of them
SIZES = (16, 32, 64)
SAMPLES = 4  # of each picture
CHECKPOINT = 20  # steps of the reference between two looks: about as many evaluations as a profile of 16 pictures
VALIDATION_PICTURES, VALIDATION_SAMPLES, VALIDATION_KNOTS = 64, 8, 13
TRAINING_SEED, VALIDATION_SEED = 0, 999


class Quality:
    """One variant: its profiles, its reference run, and what their networks lose on pictures that neither has seen."""

    def __init__(self, variant: str, folder: Path) -> None:
        import reference_trainer

        self.variant, self.folder, self.reference_trainer = variant, folder, reference_trainer
        self.shapes, self.profiles, self.fitting = (
            pack_module(f"training.{name}") for name in ("bundled_scales", "profile", "fit")
        )
        self.knots = pack_module("training.knots")
        bundled = pack_module("models.scale_file").load_scale(self.shapes.WEIGHTS / f"shapes_{variant}.safetensors")
        self.config = bundled.config  # one gap divisor, one size, one range of scales for both

    def profile(self, name: str, pictures: int, seed: int, **settings):
        """(profile, its pictures' identities in order, its cost); measured once and kept in the folder.

        cost: {"seconds": of the processor, "rows": evaluated by the model, of an entry}.
        """
        model, clip, vae = self.shapes.load_shapes(self.variant)
        model, rows = counted(model)
        drawn = self.shapes.training_pictures(clip, vae, pictures, seed)
        negative = pack_module("training.pictures").encode(clip, "")
        grid = study_grid(self.variant, model.get_model_object("model_sampling"))
        folder = self.folder / f"{self.variant}_{name}"
        cost_file = folder.with_suffix(".json")
        began = time.process_time()
        profile = pack_module("training.shards").measure_into(
            folder, model, drawn, negative, self.profiles.ProfileSettings(grid, seed=seed, **settings)
        )
        if not cost_file.exists():
            cost = {"seconds": time.process_time() - began, "rows": sum(rows) / len(profile.entries)}
            cost_file.write_text(json.dumps(cost))
        return profile, [picture.identity for picture in drawn], json.loads(cost_file.read_text())

    def reference(self, steps: int) -> list[dict]:
        """The reference run's networks, every 20 steps: step, seconds, ratio, state. What is in the folder is continued."""
        import torch

        file = self.folder / f"{self.variant}_reference.pt"
        training, checkpoints = self.reference_trainer.ShapesTraining(self.variant, self.config), []
        if file.exists():
            checkpoints, state = torch.load(file)
            training.load_state(state)
        for step in range(len(checkpoints) * CHECKPOINT + CHECKPOINT, steps + 1, CHECKPOINT):
            training.run(CHECKPOINT)
            state = {key: value.clone() for key, value in training.network.state_dict().items()}
            checkpoints.append({"step": step, "seconds": training.seconds, "ratio": training.trainer.ratio.now, "state": state})
            torch.save((checkpoints, training.state()), file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
            print(f"{self.variant}: reference step {step}/{steps}, {training.seconds:.0f} s", flush=True)
        return checkpoints[: steps // CHECKPOINT]

    def fitted(self, profile, pictures: list[int]):
        """(network, seconds of the processor, ratio of the loss) of a fit to these pictures of the profile."""
        import torch

        entries = profile.entries[torch.isin(profile.entries.picture, torch.tensor(pictures))]
        part = dataclasses.replace(profile, entries=entries)
        settings = self.fitting.FitSettings(gap_divisor=self.config.gap_divisor)
        began = time.process_time()
        result = self.fitting.fit(part, settings, name="", trained_on="", source="", licence="")
        return result.network, time.process_time() - began, self.fitting._ratio(entries, profile, settings)

    def losses(self, network, validation, ratio: float):
        """Of each validation picture at each lambda: [P, 5]."""
        import torch

        entries, rows = validation.entries, []
        loss = self.fitting.ProfileLoss(entries, validation.settings.knots, ratio)
        with torch.no_grad():
            for value in LAMBDAS:
                rows.append(loss(network(entries.timestep, entries.gap_norm, value), torch.full((len(entries),), value)))
        picture = entries.picture.unique(return_inverse=True)[1]
        counts = picture.bincount().to(torch.float32)
        return torch.stack([torch.zeros(len(counts)).index_add(0, picture, row) / counts for row in rows], dim=1)

    def compare(self, steps: int) -> dict:
        """The whole comparison; prints as it goes."""
        import reference_trainer

        knots = self.knots.spread_knots(0.0, 4.0, VALIDATION_KNOTS)
        profile, pictures, cost = self.profile("training", PROFILED, TRAINING_SEED, samples=SAMPLES)
        validation, _, _ = self.profile(
            "validation", VALIDATION_PICTURES, VALIDATION_SEED, samples=VALIDATION_SAMPLES, knots=knots
        )
        checkpoints = self.reference(steps)
        fits = {size: self.fitted(profile, pictures[:size]) for size in SIZES}
        ratio = fits[max(SIZES)][2]
        own = checkpoints[-1]["ratio"]
        print(f"\n{self.variant}: the second term times {ratio:.2f} (the reference's running ratio at its end: {own:.2f})")
        columns = "  ".join(f"lambda {value:.1f}" for value in LAMBDAS)
        print(f"{'':22} evaluations   seconds   {columns}      mean   at its ratio")
        results, per_picture = {}, {}

        def report(name: str, evaluations: int, seconds: float, network) -> None:
            losses = per_picture[name] = self.losses(network, validation, ratio)
            mean = losses.mean(0).tolist()
            results[name] = {"evaluations": evaluations, "seconds": seconds, "losses": mean, "mean": sum(mean) / len(mean)}
            results[name]["mean_with_the_references_ratio"] = float(self.losses(network, validation, own).mean())
            print(f"{name:22} {evaluations:11,} {seconds:9.0f}   " + "  ".join(f"{x:10.6f}" for x in mean), end="")
            print(f"  {results[name]['mean']:8.6f}  {results[name]['mean_with_the_references_ratio']:13.6f}", flush=True)

        for size, (network, fitting, _) in fits.items():
            evaluations = round(size * SAMPLES * cost["rows"])
            report(f"profile of {size}", evaluations, cost["seconds"] * size / PROFILED + fitting, network)
        info = fits[max(SIZES)][0].info
        rows_per_step = reference_trainer.ROWS_PER_SAMPLE * reference_trainer.ACCUMULATION
        for checkpoint in checkpoints:
            network = reference_trainer.ScaleNetwork(info, self.config)
            network.load_state_dict(checkpoint["state"])
            name = f"reference, step {checkpoint['step']}"
            report(name, checkpoint["step"] * rows_per_step, checkpoint["seconds"], network.eval())

        print(f"\n{'profile less reference':36} " + "  ".join(f"lambda {value:.1f}" for value in LAMBDAS))
        comparisons = {}
        for size in SIZES:
            equal = round(size * SAMPLES * cost["rows"] / rows_per_step / CHECKPOINT) * CHECKPOINT
            for times in (1, 10):
                if (name := f"reference, step {equal * times}") in results:
                    difference = per_picture[f"profile of {size}"] - per_picture[name]
                    mean, error = difference.mean(0), difference.std(0) / len(difference) ** 0.5
                    what = f"{size} pictures, evaluations x {times}"
                    comparisons[what] = {"difference": mean.tolist(), "standard_error": error.tolist()}
                    cells = (f"{float(m):+.5f}+-{float(e):.5f}" for m, e in zip(mean, error, strict=True))
                    print(f"{what:36} " + "  ".join(cells))
        return {"ratio": ratio, "reference_ratio": own, "networks": results, "comparisons": comparisons}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=["epsilon", "flow"], help="epsilon, flow")
    parser.add_argument("--steps", type=int, default=800, help="of the reference (800: ten times a profile of 64 pictures)")
    parser.add_argument("--folder", type=Path, required=True, help="where profiles and the reference run are kept, and go on")
    parser.add_argument("--output", type=Path, default=RESULTS / "training_quality.json")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results = {variant: Quality(variant, options.folder).compare(options.steps) for variant in options.variants}
    write_results({"lambdas": LAMBDAS, "variants": results}, options.output)


if __name__ == "__main__":
    load_hosts()
    main()
