"""How few noise levels and knots does a profile need, with 32 and with 128 pictures?"""

from __future__ import annotations

import statistics

from study import VARIANTS, Judge, fitted, measured, save

CHOICES = [(8, 13), (4, 13), (2, 13), (4, 7), (4, 5), (4, 4), (2, 7), (2, 5)]  # (noise levels a picture, knots)
SETS = {32: 4, 128: 2}  # so many sets of so many pictures
JUDGED, FIRST_SEED = 256, 10


def main() -> None:
    results: dict[str, dict] = {}
    for variant in VARIANTS:
        judge = Judge(measured(variant, JUDGED, seed=1, knots=13)[0])
        for count, sets in SETS.items():
            for samples, knots in CHOICES:
                profiles = [measured(variant, count, FIRST_SEED + k, samples, knots) for k in range(sets)]
                rows = [judge(fitted(profile)) for profile, _ in profiles]
                results.setdefault(variant, {}).setdefault(f"{count} pictures", {})[f"{samples} levels, {knots} knots"] = {
                    "rows": statistics.mean(evaluations for _, evaluations in profiles),
                    "deviation": statistics.stdev(row["above_best_constant_percent"] for row in rows),
                    **{name: statistics.mean(row[name] for row in rows) for name in rows[0]},
                }
    save(__file__, {"judged_on": JUDGED, "sets": SETS, "results": results})


if __name__ == "__main__":
    main()
