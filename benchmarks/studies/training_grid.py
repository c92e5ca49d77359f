"""How should a scale be fitted for the Shapes demo: training grid, balance of the loss, gap divisor?"""

from __future__ import annotations

from study import LAMBDAS, VARIANTS, Drawing, fitted, measured, save

# isort: split
import torch
from annealing_guidance_pack.training.training_grid import training_grid
from common.methods import Methods
from quality import REFERENCES

GRIDS = {"epsilon": (50, 20, 10), "flow": (50, 28, 14)}  # steps
PROMPTS, PICTURES, STEPS = 128, 96, 20
PAPERS_DIVISOR = 5.0


def main() -> None:
    results: dict[str, dict] = {}
    for variant in VARIANTS:
        demo, rows = Drawing(variant, PROMPTS, REFERENCES), results.setdefault(variant, {})
        methods = Methods(demo, STEPS)
        for grid in GRIDS[variant]:
            profile, _ = measured(variant, PICTURES, seed=0, grid=training_grid(demo.model_sampling, grid))
            entries = profile.entries
            fits = {f"{grid} steps, {balance}": fitted(profile, loss_balance=balance) for balance in ("none", "ratio")}
            if grid == GRIDS[variant][-1]:
                name = f"{grid} steps, ratio, gap divisor {PAPERS_DIVISOR:g}"
                fits[name] = fitted(profile, loss_balance="ratio", gap_divisor=PAPERS_DIVISOR)
            for name, scale in fits.items():
                for value in LAMBDAS:
                    with torch.no_grad():
                        mean = scale(entries.timestep, entries.gap_norm, value).mean().item()
                    drawn = demo.figures(demo.annealing(scale, value), methods.null, methods.sigmas)
                    rows[f"{name}, lambda {value:g}"] = {"mean_scale": mean, **drawn}
    save(__file__, {"prompts": PROMPTS, "training_pictures": PICTURES, "steps": STEPS, "variants": results})


if __name__ == "__main__":
    main()
