"""The templates that ComfyUI shows under Workflow > Browse templates, described; `python tools/dev.py workflows` saves them."""

from __future__ import annotations

from .blocks import (
    CHART,
    GUIDE,
    MODEL,
    PROMPT,
    READ,
    RESULT,
    annealing,
    cfg,
    decode,
    empty_prompt,
    latent,
    noise,
    null_renoising,
    paper_steps,
    plot,
    plot_preview,
    preview,
    prompt,
    sampler,
    sampling,
    sdxl,
    shapes,
    usual_steps,
    zeroed_prompt,
)
from .description import Group, Node, Workflow, node, note
from .training import train_shapes, train_shapes_once, train_your_model, train_your_model_files, train_your_pictures


def hello() -> Workflow:
    read = note("read", "Start here", "01_shapes_hello", 330)
    swap = note("swap", "With your own model", "your_model", 180)
    return Workflow(
        "01_shapes_hello",
        [
            [
                Group("Read me", [[read, swap]], 380, READ),
                Group("1  Model and prompt", [[shapes(), prompt(), empty_prompt(), latent()]], colour=MODEL),
                Group(
                    "2  Guidance and sampling",
                    [[annealing(), noise(1)], [sampler("euler"), usual_steps(), sampling()]],
                    340,
                    GUIDE,
                ),
                Group("3  Picture", [[decode(), preview("picture", ("decoded", "IMAGE"), PROMPT, 400)]], 340, RESULT),
            ]
        ],
        ["picture"],
    )


def compare() -> Workflow:
    read = note("read", "What to look at", "02_shapes_compare", 400)
    scale = note("about_plot", "How to read the plot", "scale_plot", 220)
    ways = {
        "none": ("A  No guidance", cfg("none_guider", 1.0, "CFG 1: the prompt alone"), "euler"),
        "cfg": ("B  CFG 5", cfg("cfg_guider", 5.0, "CFG 5"), "euler"),
        "plus": ("C  CFG++ 0.4", cfg("plus_guider", 0.4, "0.4, for the Annealing Sampler"), "null"),
        "annealing": ("D  Annealing", annealing("annealing_guider", tall=CHART), "euler"),
    }
    lanes, results = [], []
    for key, (title, guider, step) in ways.items():
        sampled = [sampling(f"{key}_sampling", f"{key}_guider", step), decode(f"{key}_decoded", (f"{key}_sampling", "output"))]
        if key == "annealing":
            sampled.append(plot("annealing_guider", ("annealing_sampling", "output")))
        lanes.append(
            Group(f"How {title[0]} is made", [[guider], sampled] if key == "annealing" else [[guider, *sampled]], 250, GUIDE)
        )
        results.append(Group(title, [[preview(f"{key}_pictures", (f"{key}_decoded", "IMAGE"), title, 380)]], 270, RESULT))
    return Workflow(
        "02_shapes_compare",
        [
            [
                Group("Read me first", [[read]], 400, READ),
                *results,
                Group("What D did, step by step", [[plot_preview("D's scale: a line for each picture", 380)]], 360, RESULT),
            ],
            [
                Group("And then", [[scale]], 260, READ),
                Group(
                    "The same for all four",
                    [
                        [shapes(), prompt(), empty_prompt()],
                        [latent(batch=4), noise(2), paper_steps(), sampler("euler", "euler"), null_renoising("null")],
                    ],
                    220,
                    MODEL,
                ),
                *lanes,
            ],
        ],
        [*(f"{key}_pictures" for key in ways)],
    )


SDXL_PROMPT = "a fox in a knitted sweater reading a newspaper at a wooden table, morning light, photograph"


def sdxl_and_prompt() -> Group:
    return Group("1  Model and prompt", [[sdxl(), prompt(SDXL_PROMPT, tall=160), zeroed_prompt(), latent(1024)]], colour=MODEL)


def sdxl_annealing() -> Workflow:
    read = note("read", "The paper's settings", "03_sdxl_annealing", 350)
    return Workflow(
        "03_sdxl_annealing",
        [
            [
                Group("Read me", [[read]], 380, READ),
                sdxl_and_prompt(),
                Group(
                    "2  The paper's guidance and sampling",
                    [[annealing(), noise(1)], [null_renoising(), paper_steps(), sampling()]],
                    340,
                    GUIDE,
                ),
                Group("3  Picture", [[decode(), saved_picture("03_sdxl_annealing")]], 420, RESULT),
            ]
        ],
    )


def saved_picture(prefix: str) -> Node:
    return node("picture", "SaveImage", "Picture", tall=440, images=("decoded", "IMAGE"), filename_prefix=prefix)


def sdxl_fast() -> Workflow:
    read = note("read", "SDXL in 25 steps", "04_sdxl_fast", 350)
    return Workflow(
        "04_sdxl_fast",
        [
            [
                Group("Read me", [[read]], 380, READ),
                sdxl_and_prompt(),
                Group(
                    "2  Guidance and sampling",
                    [[annealing(renoise="folded"), noise(1)], [sampler("dpmpp_2m"), usual_steps(), sampling()]],
                    340,
                    GUIDE,
                ),
                Group("3  Picture", [[decode(), saved_picture("04_sdxl_fast")]], 420, RESULT),
            ]
        ],
    )


def ksampler(key: str, model: tuple[str, str], cfg: float, title: str) -> Node:
    return node(
        key,
        "KSampler",
        title,
        model=model,
        positive=("prompt", "CONDITIONING"),
        negative=("negative", "CONDITIONING"),
        latent_image=("latent", "LATENT"),
        seed=2,
        steps=25,
        cfg=cfg,
        sampler_name="dpmpp_2m",
        scheduler="karras",
        denoise=1.0,
    )


def ksampler_patch() -> Workflow:
    read = note("read", "With KSampler", "05_ksampler_patch", 270)
    swap = note("swap", "With your own model", "your_model", 180)
    patch = node(
        "patch",
        "AnnealingModelPatch",
        tall=CHART,
        model=("loader", "MODEL"),
        guidance_lambda=0.4,
        renoise="auto",
        match_training_steps=True,
        lambda_per_sample="",
    )
    return Workflow(
        "05_ksampler_patch",
        [
            [
                Group("Read me", [[read, swap]], 380, READ),
                Group("1  Model and prompt", [[shapes(), prompt(), empty_prompt(), latent(batch=4)]], colour=MODEL),
                Group("2  The patch", [[patch]], 340, GUIDE),
                Group(
                    "3  KSampler",
                    [
                        [
                            ksampler("plain", ("loader", "MODEL"), 1.0, "KSampler without the patch, cfg 1"),
                            ksampler("patched", ("patch", "model"), 1.0, "KSampler with the patch"),
                        ]
                    ],
                    320,
                    MODEL,
                ),
                Group(
                    "4  Pictures",
                    [
                        [
                            decode("plain_decoded", ("plain", "LATENT")),
                            preview("plain_pictures", ("plain_decoded", "IMAGE"), "Without guidance (cfg 1)", 260),
                            decode("decoded", ("patched", "LATENT")),
                            preview("pictures", ("decoded", "IMAGE"), "Annealing, lambda 0.4", 260),
                        ]
                    ],
                    320,
                    RESULT,
                ),
            ]
        ],
        ["plain_pictures", "pictures"],
    )


def lambda_sweep() -> Workflow:
    read = note("read", "Which lambda?", "06_lambda_sweep", 280)
    swap = note("swap", "With your own model", "your_model", 200)
    sweep = node(
        "sweep",
        "AnnealingSweep",
        tall=CHART,
        noise=("noise", "NOISE"),
        model=("loader", "MODEL"),
        positive=("prompt", "CONDITIONING"),
        negative=("negative", "CONDITIONING"),
        sampler=("sampler", "SAMPLER"),
        sigmas=("sigmas", "SIGMAS"),
        latent_image=("latent", "LATENT"),
        vae=("loader", "VAE"),
        scale_model=("scale", "scale_model"),
        lambdas="0, 0.2, 0.4, 0.6, 0.8",
        cfg_scales="1, 5",
    )
    scale_map = node("map", "AnnealingScaleMap", scale_model=("scale", "scale_model"), guidance_lambda=0.4, lambdas="0, 0.4, 0.8")
    return Workflow(
        "06_lambda_sweep",
        [
            [
                Group("Read me", [[read, swap]], 340, READ),
                Group(
                    "1  Model and prompt",
                    [
                        [shapes(), prompt(), empty_prompt(), latent(batch=2)],
                        [
                            node("scale", "AnnealingScaleLoader", scale_name="shapes_epsilon.safetensors"),
                            noise(2),
                            sampler("euler"),
                            usual_steps(),
                        ],
                    ],
                    270,
                    MODEL,
                ),
                Group("2  Sweep", [[sweep]], 320, GUIDE),
                Group("The scales that were used", [[plot("sweep", ("sweep", "samples")), plot_preview(tall=380)]], 380, RESULT),
            ],
            [
                Group("3  All pictures", [[preview("grid", ("sweep", "grid"), "Lambdas side by side", 330)]], 850, RESULT),
                Group(
                    "The learned scale", [[scale_map], [preview("map_picture", ("map", "map"), "Scale map", 330)]], 400, RESULT
                ),
            ],
        ],
        ["grid"],
    )


def img2img_inpaint() -> Workflow:
    read = note("read", "From a picture", "07_img2img_inpaint", 290)
    swap = note("swap", "With your own model", "your_model", 180)
    masks = [
        node("keep", "SolidMask", "Black: keep", value=0.0, width=128, height=128),
        node("change", "SolidMask", "White: change", value=1.0, width=64, height=128),
        node(
            "mask",
            "MaskComposite",
            "Right half",
            destination=("keep", "MASK"),
            source=("change", "MASK"),
            x=64,
            y=0,
            operation="add",
        ),
        node("masked", "SetLatentNoiseMask", samples=("sampling", "output"), mask=("mask", "MASK")),
    ]
    return Workflow(
        "07_img2img_inpaint",
        [
            [
                Group("Read me", [[read, swap]], 380, READ),
                Group(
                    "Model",
                    [
                        [shapes(), empty_prompt(), latent(), noise(2)],
                        [sampler("euler"), paper_steps(25), paper_steps(25, "part", "The last 70% of the steps", 0.7)],
                    ],
                    290,
                    MODEL,
                ),
                Group(
                    "1  A picture",
                    [
                        [prompt(), annealing(tall=0)],
                        [sampling(), decode(), preview("picture", ("decoded", "IMAGE"), "1  Picture")],
                    ],
                    320,
                    GUIDE,
                ),
            ],
            [
                Group(
                    "2  img2img",
                    [
                        [
                            prompt("a purple circle left of a green cross", "other_prompt", "Another prompt"),
                            annealing("other_guider", "other_prompt", tall=0),
                        ],
                        [
                            noise(5, "other_noise", "Other noise than the first"),
                            sampling(
                                "other_sampling", "other_guider", sigmas="part", start=("sampling", "output"), noise="other_noise"
                            ),
                            decode("other_decoded", ("other_sampling", "output")),
                            preview("other_picture", ("other_decoded", "IMAGE"), "2  img2img: purple circle", 260),
                        ],
                    ],
                    320,
                    GUIDE,
                ),
                Group(
                    "3  Inpainting",
                    [
                        masks,
                        [
                            prompt("a red circle left of a yellow square", "inner_prompt", "The whole picture in words"),
                            annealing("inner_guider", "inner_prompt", tall=0),
                        ],
                        [
                            sampling("inner_sampling", "inner_guider", start=("masked", "LATENT")),
                            decode("inner_decoded", ("inner_sampling", "output")),
                            preview("inner_picture", ("inner_decoded", "IMAGE"), "3  Inpainted: yellow square"),
                        ],
                    ],
                    320,
                    GUIDE,
                ),
            ],
        ],
        ["picture", "other_picture", "inner_picture"],
    )


ALL = [
    *(hello, compare, sdxl_annealing, sdxl_fast, ksampler_patch, lambda_sweep, img2img_inpaint),
    *(train_shapes, train_shapes_once, train_your_model, train_your_model_files, train_your_pictures),
]
