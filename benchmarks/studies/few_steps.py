"""Do pictures of the Shapes demo hold up at few steps, where those of plain CFG do?"""

from __future__ import annotations

from study import VARIANTS, Drawing, save

# isort: split
import comfy.samplers

PROMPTS, REFERENCES = 64, 8
STEPS, SAMPLERS = (8, 20), ("euler", "dpmpp_2m", "heun")
CFG, LAMBDA = 5.0, 0.4


def main() -> None:
    results: dict[str, dict] = {}
    for variant in VARIANTS:
        demo, rows = Drawing(variant, PROMPTS, REFERENCES), results.setdefault(variant, {})
        for name in SAMPLERS:
            scheduler = "simple" if variant == "flow" else "paper" if name == "euler" else "karras"
            for steps in STEPS:
                run = comfy.samplers.sampler_object(name), demo.schedule(scheduler, steps)
                rows[f"CFG/{name}/{steps}"] = demo.figures(demo.cfg(CFG), *run)
                rows[f"annealing/{name}/{steps}"] = demo.figures(demo.annealing(demo.scale, LAMBDA), *run)
    save(__file__, {"prompts": PROMPTS, "cfg": CFG, "lambda": LAMBDA, "variants": results})


if __name__ == "__main__":
    main()
