"""Which form of the guidance a sampler gets: null if it renoises with the unconditional prediction, else folded."""

from __future__ import annotations

from typing import Literal, get_args

from . import coordinates
from .host_types import ModelSampling
from .sampler_facts import WRONG_ON_FLOW, SamplerFacts

Renoise = Literal["auto", "null", "folded"]
CHOICES: tuple[Renoise, ...] = get_args(Renoise)


def uncond_share(renoise: Renoise, facts: SamplerFacts) -> float:
    """The share of the unconditional prediction in the sampler's noise; 0 means the folded form.

    auto: what is known of the sampler. null: the same, but 1 for a sampler that is not known to renoise so. folded: 0.
    """
    if renoise == "folded":
        return 0.0
    return facts.uncond_share or float(renoise == "null")


def advice(renoise: Renoise, facts: SamplerFacts, model_sampling: ModelSampling) -> list[str]:
    """A sentence where the choice does not fit the sampler, and one where the sampler does not fit the model."""
    sentences = []
    if renoise == "null" and not facts.uncond_share:
        sentences.append(
            f'renoise is "null", but the sampler {facts.name} does not renoise with the unconditional prediction, so there is '
            'almost no guidance. Choose "auto", or the Annealing Sampler.'
        )
    if renoise == "folded" and facts.uncond_share:
        sentences.append(
            f'renoise is "folded", but the sampler {facts.name} renoises with the unconditional prediction, so guidance is far '
            'too strong and pictures may over-saturate. Choose "auto".'
        )
    if facts.name in WRONG_ON_FLOW and coordinates.keeps_signal_scaled(model_sampling):
        sentences.append(
            f"The step of the sampler {facts.name} is not correct for flow models, with or without guidance. "
            f"Use {WRONG_ON_FLOW[facts.name]}."
        )
    return sentences
