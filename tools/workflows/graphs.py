"""The templates that ComfyUI shows under Workflow > Browse templates, described; `python tools/dev.py workflows` saves them."""

from __future__ import annotations

from .blocks import (
    CHART,
    CHART_ROOM,
    GUIDE,
    MODEL,
    PROMPT,
    READ,
    RESULT,
    TELLING_PROMPT,
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
    read = note("read", "Start here", "hello", 450)
    swap = note("swap", "With your own model", "your_model", 250)
    return Workflow(
        "01 Hello - nothing to download",
        [
            [
                Group("Read me", [[read, swap]], 340, READ),
                Group("1  Model and prompt", [[shapes(), prompt(), empty_prompt(), latent()]], 280, MODEL),
                Group(
                    "2  Guidance and sampling",
                    [[annealing(), noise(1)], [sampler("euler"), usual_steps(), sampling()]],
                    290,
                    GUIDE,
                ),
                Group("3  Picture", [[decode(), preview("picture", ("decoded", "IMAGE"), PROMPT, 380)]], 330, RESULT),
            ]
        ],
        ["picture"],
    )


def compare() -> Workflow:
    """Prompt and seed were chosen to show what guidance does, and the note says so."""
    ways = {
        "none": ("A  No guidance", cfg("none_guider", 1.0, "CFG 1: the prompt alone")),
        "default": ("B  CFG 8 (default)", cfg("default_guider", 8.0, "CFG 8")),
        "picked": ("C  CFG 3 (by hand)", cfg("picked_guider", 3.0, "CFG 3")),
        "annealing": ("D  Annealing", annealing("annealing_guider")),
    }
    lanes, results = [], []
    for key, (title, guider) in ways.items():
        sampled = [sampling(f"{key}_sampling", f"{key}_guider"), decode(f"{key}_decoded", (f"{key}_sampling", "output"))]
        if key == "annealing":
            sampled.append(plot("annealing_guider", ("annealing_sampling", "output")))
        columns = [[guider], sampled] if key == "annealing" else [[guider, *sampled]]
        lanes.append(Group(f"How {title[0]} is made", columns, 245 if key == "annealing" else 215, GUIDE))
        results.append(Group(title, [[preview(f"{key}_pictures", (f"{key}_decoded", "IMAGE"), title, 320)]], 243, RESULT))
    return Workflow(
        "02 Compare with CFG - nothing to download",
        [
            [
                Group("Read me first", [[note("read", "What to look at", "compare", 320)]], 300, READ),
                *results,
                Group("What D did, step by step", [[plot_preview("A line for each picture of D", 320)]], 300, RESULT),
            ],
            [
                Group(
                    "The same for all four",
                    [
                        [shapes("flow"), prompt(TELLING_PROMPT), empty_prompt()],
                        [latent(batch=4), noise(1), usual_steps("simple", 10), sampler("euler")],
                    ],
                    215,
                    MODEL,
                ),
                *lanes,
            ],
        ],
        [f"{key}_pictures" for key in ways],
    )


SDXL_PROMPT = "a fox in a knitted sweater reading a newspaper at a wooden table, morning light, photograph"


def sdxl_and_prompt() -> Group:
    return Group("1  Model and prompt", [[sdxl(), prompt(SDXL_PROMPT, tall=160), zeroed_prompt(), latent(1024)]], 290, MODEL)


def saved_picture(prefix: str) -> Node:
    return node("picture", "SaveImage", "Picture", tall=400, images=("decoded", "IMAGE"), filename_prefix=prefix)


def sdxl_fast() -> Workflow:
    return Workflow(
        "06 SDXL in 25 steps",
        [
            [
                Group("Read me", [[note("read", "SDXL in 25 steps", "sdxl_fast", 480)]], 340, READ),
                sdxl_and_prompt(),
                Group(
                    "2  Guidance and sampling",
                    [[annealing(cfg=6.0), noise(1)], [sampler("dpmpp_2m"), usual_steps(), sampling()]],
                    290,
                    GUIDE,
                ),
                Group("3  Picture", [[decode(), saved_picture("sdxl_fast")]], 350, RESULT),
            ]
        ],
        drawn="scale",
    )


def sdxl_annealing() -> Workflow:
    return Workflow(
        "07 SDXL as in the paper",
        [
            [
                Group("Read me", [[note("read", "The paper's settings", "sdxl_annealing", 480)]], 340, READ),
                sdxl_and_prompt(),
                Group(
                    "2  The paper's guidance and sampling",
                    [[annealing(), noise(1)], [null_renoising(), paper_steps(), sampling()]],
                    290,
                    GUIDE,
                ),
                Group("3  Picture", [[decode(), saved_picture("sdxl_annealing")]], 350, RESULT),
            ]
        ],
        drawn="scale",
    )


def ksampler(
    key: str, model: tuple[str, str], cfg: float, title: str, positive="prompt", start=("latent", "LATENT"), seed=2, denoise=1.0
) -> Node:
    return node(
        key,
        "KSampler",
        title,
        model=model,
        positive=(positive, "CONDITIONING"),
        negative=("negative", "CONDITIONING"),
        latent_image=start,
        seed=seed,
        steps=25,
        cfg=cfg,
        sampler_name="dpmpp_2m",
        scheduler="karras",
        denoise=denoise,
    )


def patch() -> Node:
    return node(
        "patch",
        "AnnealingModelPatch",
        tall=CHART,
        room=CHART_ROOM,
        model=("loader", "MODEL"),
        guidance_lambda=0.4,
        renoise="auto",
        match_training_steps=True,
        lambda_per_sample="",
        cfg=0.0,
        projection="auto",
    )


def ksampler_patch() -> Workflow:
    read = note("read", "With KSampler", "ksampler_patch", 330)
    swap = note("swap", "With your own model", "your_model", 300)
    return Workflow(
        "03 KSampler - nothing to download",
        [
            [
                Group("Read me", [[read, swap]], 340, READ),
                Group("1  Model and prompt", [[shapes(), prompt(), empty_prompt(), latent(batch=4)]], 280, MODEL),
                Group("2  The patch", [[patch()]], 300, GUIDE),
                Group(
                    "3  KSampler",
                    [
                        [
                            ksampler("plain", ("loader", "MODEL"), 1.0, "Without the patch, cfg 1"),
                            ksampler("patched", ("patch", "model"), 1.0, "With the patch"),
                        ]
                    ],
                    280,
                    MODEL,
                ),
                Group(
                    "4  Pictures",
                    [
                        [
                            decode("plain_decoded", ("plain", "LATENT")),
                            preview("plain_pictures", ("plain_decoded", "IMAGE"), "Without guidance (cfg 1)", 280),
                            decode("decoded", ("patched", "LATENT")),
                            preview("pictures", ("decoded", "IMAGE"), "Annealing, lambda 0.4", 280),
                        ]
                    ],
                    300,
                    RESULT,
                ),
            ]
        ],
        ["plain_pictures", "pictures"],
    )


def lambda_sweep() -> Workflow:
    read = note("read", "Which lambda, how strong?", "lambda_sweep", 350)
    swap = note("swap", "With your own model", "your_model", 320)
    sweep = node(
        "sweep",
        "AnnealingSweep",
        tall=460,
        room=640,
        noise=("noise", "NOISE"),
        model=("loader", "MODEL"),
        positive=("prompt", "CONDITIONING"),
        negative=("negative", "CONDITIONING"),
        sampler=("sampler", "SAMPLER"),
        sigmas=("sigmas", "SIGMAS"),
        latent_image=("latent", "LATENT"),
        vae=("loader", "VAE"),
        lambdas="0, 0.8",
        cfg_scales="1, 8",
        cfgs="2, 5, 10",
    )
    return Workflow(
        "04 Which lambda, how strong - nothing to download",
        [
            [
                Group("Read me", [[read, swap]], 300, READ),
                Group(
                    "1  Model and prompt",
                    [
                        [shapes("flow"), prompt(TELLING_PROMPT), empty_prompt()],
                        [latent(batch=4), noise(1), sampler("euler"), usual_steps("simple", 10)],
                    ],
                    235,
                    MODEL,
                ),
                Group("2  Sweep", [[sweep]], 280, GUIDE),
                Group(
                    "3  All pictures, and what was used",
                    [
                        [
                            preview("grid", ("sweep", "grid"), "Side by side", 340),
                            plot("sweep", ("sweep", "samples")),
                            plot_preview(tall=380),
                        ]
                    ],
                    600,
                    RESULT,
                ),
            ]
        ],
        ["grid"],
    )


def img2img_inpaint() -> Workflow:
    """One patched model feeds three samplers."""
    read = note("read", "From a picture", "img2img_inpaint", 420)
    swap = note("swap", "With your own model", "your_model", 330)
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
        node("masked", "SetLatentNoiseMask", samples=("first", "LATENT"), mask=("mask", "MASK")),
    ]
    patched, made = ("patch", "model"), ("first", "LATENT")
    other, inner = "a purple circle left of a green cross", "a red circle left of a yellow square"
    return Workflow(
        "05 Image to image, inpainting - nothing to download",
        [
            [
                Group("Read me", [[read, swap]], 300, READ),
                Group("Model and guidance", [[shapes(), empty_prompt(), patch()]], 260, MODEL),
                Group(
                    "1  A picture",
                    [
                        [
                            latent(),
                            prompt(),
                            ksampler("first", patched, 1.0, "A picture"),
                            decode(samples=made),
                            preview("picture", ("decoded", "IMAGE"), "1  Picture", 220),
                        ]
                    ],
                    235,
                    GUIDE,
                ),
                Group(
                    "2  Image to image",
                    [
                        [
                            prompt(other, "other_prompt", "Another prompt"),
                            ksampler("other", patched, 1.0, "The last 70%", "other_prompt", made, 5, 0.7),
                            decode("other_decoded", ("other", "LATENT")),
                            preview("other_picture", ("other_decoded", "IMAGE"), "2  Purple circle", 240),
                        ]
                    ],
                    235,
                    GUIDE,
                ),
                Group(
                    "3  Inpainting",
                    [
                        masks,
                        [
                            prompt(inner, "inner_prompt", "The whole picture in words"),
                            ksampler("inner", patched, 1.0, "Inside the mask", "inner_prompt", ("masked", "LATENT")),
                            decode("inner_decoded", ("inner", "LATENT")),
                            preview("inner_picture", ("inner_decoded", "IMAGE"), "3  Yellow square", 240),
                        ],
                    ],
                    235,
                    GUIDE,
                ),
            ]
        ],
        ["picture", "other_picture", "inner_picture"],
    )


ALL = [
    *(hello, compare, ksampler_patch, lambda_sweep, img2img_inpaint, sdxl_fast, sdxl_annealing),
    *(train_your_model, train_your_model_files, train_shapes_once, train_shapes, train_your_pictures),
]
