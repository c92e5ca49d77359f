"""The perturbation on the conditioning of every layout that ComfyUI's text encoders give: real encoder classes, shrunk."""

from __future__ import annotations

import inspect
import re

import comfy.model_base
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import comfy.text_encoders.flux
import comfy.text_encoders.hidream
import comfy.text_encoders.hunyuan_image
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.hydit
import comfy.text_encoders.llama
import comfy.text_encoders.lumina2
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd2_clip
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import pytest
import torch
from annealing_guidance_pack.training import cads

TIMESTEPS = torch.tensor([50.0, 950.0])

_CLIP = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "vocab_size": 49408}
_T5 = {"d_model": 16, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 2, "vocab_size": 400}
_SD3_T5 = {**_T5, "d_model": 4096}  # the width that CLIP's embeddings are padded to
_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
_BERT = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 400}


def prompt(tokens: list[int], length: int = 0, pad: int = 0) -> list:
    """One section of tokens, padded to the length, as ComfyUI's tokenizers give them."""
    return [[(token, 1.0) for token in tokens + [pad] * (length - len(tokens))]]


CLIP_TOKENS = prompt([49406, 320, 736, 1980], 77, 49407)
T5_TOKENS = prompt([71, 9, 3, 1], 12)
QWEN_TOKENS = prompt([151644, 8948, 198, 151645, 151644, 872, 198, 64, 2518, 25001, 151645, 198])  # a template, then the prompt
LLAMA_TOKENS = prompt([128000, 128006, 9125, 128007, 128006, 882, 128007, 271, 64, 2579, 128009])


def hidream():
    return comfy.text_encoders.hidream.hidream_clip(dtype_t5=torch.float32, dtype_llama=torch.float32)


# name: encoder class, tokens, and which embeddings its conditioning holds
LAYOUTS = {
    "SD1": (comfy.sd1_clip.SD1ClipModel, {"l": CLIP_TOKENS}, {"pooled_output"}),
    "SD2": (comfy.text_encoders.sd2_clip.SD2ClipModel, {"h": CLIP_TOKENS}, {"pooled_output"}),
    "SDXL": (comfy.sdxl_clip.SDXLClipModel, {"l": CLIP_TOKENS, "g": CLIP_TOKENS}, {"pooled_output"}),
    "SD3": (
        comfy.text_encoders.sd3_clip.sd3_clip(dtype_t5=torch.float32, t5_attention_mask=True),
        {"l": CLIP_TOKENS, "g": CLIP_TOKENS, "t5xxl": T5_TOKENS},
        {"pooled_output"},
    ),
    "Flux": (
        comfy.text_encoders.flux.flux_clip(dtype_t5=torch.float32),
        {"l": CLIP_TOKENS, "t5xxl": T5_TOKENS},
        {"pooled_output"},
    ),
    "PixArt": (comfy.text_encoders.pixart_t5.pixart_te(), {"t5xxl": T5_TOKENS}, set()),
    "HunyuanDiT": (
        comfy.text_encoders.hydit.HyditModel,
        {"hydit_clip": prompt([101, 50, 60, 102], 77), "mt5xl": T5_TOKENS},
        {"conditioning_mt5xl"},
    ),
    "HiDream": (
        hidream(),
        {"l": CLIP_TOKENS, "g": CLIP_TOKENS, "t5xxl": T5_TOKENS, "llama": LLAMA_TOKENS},
        {"pooled_output", "conditioning_llama3"},
    ),
    "HunyuanVideo": (
        comfy.text_encoders.hunyuan_video.hunyuan_video_clip(dtype_llama=torch.float32),
        {"l": CLIP_TOKENS, "llama": LLAMA_TOKENS},
        {"pooled_output"},
    ),
    "HunyuanImage": (
        comfy.text_encoders.hunyuan_image.te(dtype_llama=torch.float32),
        {"qwen25_7b": QWEN_TOKENS, "byt5": prompt([71, 9, 3, 1], 12)},
        {"conditioning_byt5small"},
    ),
    "Qwen-Image": (comfy.text_encoders.qwen_image.te(dtype_llama=torch.float32), {"qwen25_7b": QWEN_TOKENS}, set()),
    "Lumina 2": (comfy.text_encoders.lumina2.te(dtype_llama=torch.float32), {"gemma2_2b": prompt([2, 9, 30, 41], 8)}, set()),
    "Wan": (comfy.text_encoders.wan.te(dtype_t5=torch.float32), {"umt5xxl": prompt([71, 9, 3, 1], 12)}, set()),
}


@pytest.fixture(autouse=True)
def no_eyes(monkeypatch):
    """Qwen's picture encoder, which no prompt passes through, is too large for a test."""
    monkeypatch.setattr(comfy.text_encoders.llama.qwen_vl, "Qwen2VLVisionTransformer", lambda **kwargs: None)


class GivenTokens:
    """In the place of a tokenizer, which for some encoders comes with the checkpoint."""

    def __init__(self, **kwargs):
        pass


def encoder(name: str) -> comfy.sd.CLIP:
    sizes = {f"{key}_model_config": _CLIP for key in ("clip_l", "clip_g", "clip_h")}
    sizes |= {f"{key}_model_config": _T5 for key in ("t5xxl", "umt5xxl", "mt5xl")}
    sizes |= {f"{key}_model_config": _LLAMA for key in ("llama", "qwen25_7b", "gemma2_2b")}
    sizes |= {"hydit_clip_model_config": _BERT, "_model_config": _T5}  # the last one is HunyuanImage's ByT5
    if name == "SD3":
        sizes["t5xxl_model_config"] = _SD3_T5
    target = comfy.supported_models_base.ClipTarget(GivenTokens, LAYOUTS[name][0])
    clip = comfy.sd.CLIP(target, model_options={**sizes, "dtype": torch.float32})
    generator = torch.Generator().manual_seed(0)
    for parameter in clip.cond_stage_model.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    return clip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_embedding_of_a_prompt_is_perturbed_and_nothing_else(name):
    _, tokens, embeddings = LAYOUTS[name]
    ((sequence, options),) = conditioning = encoder(name).encode_from_tokens_scheduled(tokens)
    present = {key for key, value in options.items() if isinstance(value, torch.Tensor) and "mask" not in key}
    assert present == embeddings, "the conditioning holds other embeddings than this test and the perturbation know"
    ((after, options_after),) = cads.perturbed_conditioning(conditioning, TIMESTEPS, torch.Generator().manual_seed(1))
    for before, copies in [(sequence, after)] + [(options[key], options_after[key]) for key in embeddings]:
        assert copies.shape == (2, *before.shape[1:]) and copies.dtype == before.dtype
        distance = (copies - before).flatten(1).norm(dim=1) / before.norm()
        assert 0 < 2 * distance[0] < distance[1] < 2
        for statistic in (torch.mean, torch.std):
            torch.testing.assert_close(statistic(copies[1]), statistic(before[0]), rtol=1e-3, atol=1e-4)
    assert options.keys() == options_after.keys()
    for key in options.keys() - embeddings:
        assert options_after[key] is options[key]


@pytest.mark.parametrize("name", ["Wan", "HunyuanDiT", "HunyuanImage", "Lumina 2"])
def test_padding_that_the_model_does_not_read_stays(name):
    ((sequence, options),) = conditioning = encoder(name).encode_from_tokens_scheduled(LAYOUTS[name][1])
    ((after, options_after),) = cads.perturbed_conditioning(conditioning, TIMESTEPS, torch.Generator().manual_seed(1))
    pairs = [(sequence, after, options.get("attention_mask"))]
    if "conditioning_mt5xl" in options:
        pairs.append((options["conditioning_mt5xl"], options_after["conditioning_mt5xl"], options["attention_mask_mt5xl"]))
    if "conditioning_byt5small" in options:
        pairs = [(options["conditioning_byt5small"], options_after["conditioning_byt5small"], None)]
    for before, copies, mask in pairs:
        read = (before != 0).any(-1) if mask is None else mask != 0
        assert 0 < int(read.sum()) < read.numel()
        assert torch.equal(copies[:, ~read[0]], before[:, ~read[0]].expand(2, -1, -1))
        assert not torch.isclose(copies[1, read[0]], before[0, read[0]]).any(-1).all()


def test_the_embeddings_that_this_comfyuis_models_read_are_known():
    read = set(re.findall(r"""kwargs(?:\.get\(|\[)["'](conditioning_\w+|pooled_\w+)""", inspect.getsource(comfy.model_base)))
    numbers = {"conditioning_lyrics", "conditioning_scale"}  # ACE-Step's token numbers, a factor
    assert read - numbers <= set(cads._MASK_OF)
    assert len(read) >= 4
