"""Is a scale from the model's own pictures as good as one from rendered pictures?"""

from __future__ import annotations

from study import LAMBDAS, VARIANTS, Drawing, Judge, fitted, measured, save

# isort: split
from annealing_guidance_pack.training import once
from annealing_guidance_pack.training.bundled_scales import training_pictures
from annealing_guidance_pack.training.pictures import SampleSettings, empty_latent, encode, sampled_pictures
from common.methods import Methods

SIZES, SEED = (32, 128), 2
STEPS, PROMPTS, REFERENCES = 20, 256, 8
SOURCES = {  # None: rendered
    "rendered": None,
    "own, CFG 5": SampleSettings(steps=12, cfg=5.0, sampler="dpmpp_2m"),
    "own, CFG 3": SampleSettings(steps=12, cfg=3.0, sampler="dpmpp_2m"),
    "own, unguided": SampleSettings(steps=12, cfg=1.0, sampler="dpmpp_2m"),
    "own, CFG 5, euler 28 steps": SampleSettings(steps=28, cfg=5.0, sampler="euler"),
}


def pictures(count: int, how: SampleSettings | None):
    """For `measured`: of the first `count` captions."""

    def make(model, clip, vae) -> list:
        rendered = training_pictures(clip, vae, max(SIZES), SEED)[:count]
        if how is None:
            return rendered
        captions = [picture.make()[1] for picture in rendered]
        return sampled_pictures(model, empty_latent(model, *once.usual_size(model)), captions, encode(clip, ""), how)

    return make


def main() -> None:
    results: dict[str, dict] = {}
    for variant in VARIANTS:
        judge, demo = Judge(measured(variant, 256, seed=1, knots=13)[0]), Drawing(variant, PROMPTS, REFERENCES)
        methods = Methods(demo, STEPS)
        for source, how in SOURCES.items():
            for count in SIZES:
                scale = fitted(measured(variant, count, 0, once.SAMPLES, once.KNOTS, pictures=pictures(count, how))[0])
                row = results.setdefault(variant, {}).setdefault(source, {})[f"{count} pictures"] = judge(scale)
                for value in LAMBDAS if count == max(SIZES) else ():
                    drawn = demo.figures(demo.annealing(scale, value), methods.null, methods.sigmas)
                    row |= {f"right at {value:g}": drawn["right"], f"fd at {value:g}": drawn["fd"]}
    save(__file__, {"prompts": PROMPTS, "references": REFERENCES, "results": results})


if __name__ == "__main__":
    main()
