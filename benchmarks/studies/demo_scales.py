"""How should a scale be fitted for the Shapes demo: steps, balance of the loss, gap divisor; projection, perturbed captions?"""

from __future__ import annotations

from study import LAMBDAS, VARIANTS, Drawing, fitted, measured, save

# isort: split
from annealing_guidance_pack.training.training_grid import training_grid
from common.methods import Methods
from quality import REFERENCES

# Part: prompts, training pictures, steps of a run, and of each variant name -> (training steps, of the profile, of the fit).
BALANCE = {
    variant: {
        f"{grid} steps, {name}": (grid, {}, fit)
        for grid in grids
        for name, fit in {
            "none": {"loss_balance": "none"},
            "ratio": {"loss_balance": "ratio"},
            "ratio, gap divisor 5": {"loss_balance": "ratio", "gap_divisor": 5.0},
        }.items()
    }
    for variant, grids in {"epsilon": (50, 20, 10), "flow": (50, 28, 14)}.items()
}
PROJECTION = {
    variant: {
        f"{grid} steps{', projection' * projection}{', captions as they are' * (not perturb)}": (
            grid,
            {"projection": projection, "perturb": perturb},
            {"loss_balance": "ratio"},
        )
        for grid, projection, perturb in zip(grids, (0, 1, 1, 1, 1), (1, 1, 1, 1, 0), strict=True)
    }
    for variant, grids in {"epsilon": (10, 10, 15, 20, 20), "flow": (14, 14, 20, 28, 28)}.items()
}
PARTS = {"balance": (128, 96, 20, BALANCE), "projection": (512, 512, 10, PROJECTION)}


def main() -> None:
    results: dict[str, dict] = {}
    for part, (prompts, pictures, steps, candidates) in PARTS.items():
        results[part] = {"prompts": prompts, "training_pictures": pictures, "steps": steps, "variants": {}}
        for variant in VARIANTS:
            demo, rows = Drawing(variant, prompts, REFERENCES), results[part]["variants"].setdefault(variant, {})
            methods, projection = Methods(demo, steps), "on" if part == "projection" else "off"
            for name, (grid, of_profile, of_fit) in candidates[variant].items():
                levels = training_grid(demo.model_sampling, grid)
                profile, _ = measured(variant, pictures, seed=0, grid=levels, **of_profile)
                scale, entries = fitted(profile, **of_fit), profile.entries
                for value in LAMBDAS:
                    mean = scale(entries.timestep, entries.gap_norm, value).mean().item()
                    guider = demo.annealing(scale, value, projection=projection)
                    drawn = demo.figures(guider, methods.null, methods.sigmas)
                    rows[f"{name}, lambda {value:g}"] = {"mean_scale": mean, **drawn}
    save(__file__, results)


if __name__ == "__main__":
    main()
