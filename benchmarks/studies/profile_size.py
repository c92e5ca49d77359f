"""How many pictures does a scale need, and how exact is a profile's table?"""

from __future__ import annotations

from study import VARIANTS, Judge, first_pictures, fitted, measured, save

# isort: split
from annealing_guidance_pack.shapes.loader import load_shapes
from annealing_guidance_pack.training.training_grid import training_grid

SIZES, JUDGED = (16, 32, 64, 128, 256, 512), 256
GRIDS = ("paper 50", "paper 28", "paper 14", "paper 4", "karras 10", "exponential 8")
KNOTS = (5, 9, 17)
ALL_KNOTS = 2049  # so exact that every scale of the table is measured
TABLED = 12  # pictures


def table_errors(variant: str) -> dict:
    """Of the second term by grid and knots, against the model's own at these very scales.

    mean: the worst scale's error of the mean over the entries. worst: of any entry at any scale. p95: 95th percentile over both.
    scales: how many an entry was measured at, on average.
    """
    model_sampling = load_shapes(variant)[0].get_model_object("model_sampling")
    results: dict[str, dict] = {}
    for name in GRIDS:
        scheduler, steps = name.split()
        grid = training_grid(model_sampling, int(steps), scheduler)
        profiles = {knots: measured(variant, TABLED, 5, knots=knots, grid=grid) for knots in (ALL_KNOTS, *KNOTS)}
        exact = profiles[ALL_KNOTS][0].entries.second.double()
        for knots in KNOTS:
            profile, rows = profiles[knots]
            second = profile.entries.second.double()
            errors = (second / exact - 1).abs()
            results.setdefault(name, {})[str(knots)] = {
                "mean": float((second.mean(0) / exact.mean(0) - 1).abs().max()),
                "worst": float(errors.max()),
                "p95": float(errors.flatten().quantile(0.95)),
                "scales": rows / 2 / profile.settings.samples - 1,
            }
    return results


def main() -> None:
    fits = {}
    for variant in VARIANTS:
        (whole, _), (judged, _) = measured(variant, max(SIZES), seed=0), measured(variant, JUDGED, seed=1)
        judge = Judge(judged)
        fits[variant] = {str(count): judge(fitted(first_pictures(whole, count))) for count in SIZES}
    save(__file__, {"judged_on": JUDGED, "results": fits, "table": {variant: table_errors(variant) for variant in VARIANTS}})


if __name__ == "__main__":
    main()
