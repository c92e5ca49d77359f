"""Prompts: which are understood, and what a wrong one is told."""

import pytest
import torch
from annealing_guidance_pack.shapes import text
from annealing_guidance_pack.shapes.files import load_part
from annealing_guidance_pack.shapes.scenes import held_out_prompts


def test_unknown_words_are_named_and_the_known_ones_listed():
    with pytest.raises(text.UnknownWords) as error:
        text.tokenize("a pink circle left of a blue hexagon")
    for word in ("'pink'", "'hexagon'", "red", "purple", "circle", "triangle", "left of", "above"):
        assert word in str(error.value)
    assert "'circle'" not in str(error.value)


def test_small_words_case_and_punctuation_do_not_matter():
    assert text.tokenize("The red circle is to the LEFT of the blue square.") == text.tokenize(
        "a red circle left of a blue square"
    )


def test_too_many_words_are_refused():
    with pytest.raises(text.UnknownWords, match="at most 6"):
        text.check_length(text.tokenize("red red red red red red red"))


def test_the_empty_prompt_is_the_zero_condition():
    encoder = load_part("text", text.TextEncoder())
    mixed = encoder(text.pad([text.tokenize(""), text.tokenize("a red circle left of a blue square")]))
    assert mixed[0].abs().max() == 0
    assert mixed[1, :5].abs().min(0).values.max() > 0
    assert torch.isfinite(mixed).all()


def test_every_held_out_prompt_is_understood():
    prompts, _ = held_out_prompts()
    assert all(len(text.tokenize(prompt)) == 5 for prompt in prompts)
