"""Words to numbers to vectors: the demo's tokenizer and its small text encoder.

The encoder does what CLIP does for SDXL. It is trained first, to know at every word which object the word belongs to, and is
frozen while the picture model learns.
"""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn import functional as F

from .scenes import AXES, COLOURS, SHAPES

SILENT = ("a", "an", "the", "of", "to", "is")  # allowed, but without a token: they carry no meaning
VOCABULARY = (*COLOURS, *SHAPES, *(phrase.split()[0] for axis in AXES for phrase in axis))
PAD = 0  # token numbers start at 1
N_TOKENS = 6
WIDTH = 64

_NUMBER = {word: i + 1 for i, word in enumerate(VOCABULARY)}


class UnknownWords(ValueError):
    """The prompt has words the demo doesn't know, or too many words; the message lists the known ones."""


def tokenize(prompt: str) -> list[int]:
    """Token numbers of the words that carry meaning, unpadded; [] for an empty prompt.

    Raises UnknownWords where a word isn't known.
    """
    words = re.findall(r"[^\s,.;:!]+", prompt.lower())
    unknown = [word for word in words if word not in _NUMBER and word not in SILENT]
    if unknown:
        raise UnknownWords(
            f"The Shapes demo model doesn't know {', '.join(repr(w) for w in dict.fromkeys(unknown))}. It knows the colours "
            f"{', '.join(COLOURS)}; the shapes {', '.join(SHAPES)}; and left of, right of, above, below. "
            f'Write a prompt like "a red circle left of a blue square".'
        )
    return [_NUMBER[word] for word in words if word in _NUMBER]


def check_length(tokens: list) -> None:
    """Raises UnknownWords where there are more than N_TOKENS."""
    if len(tokens) > N_TOKENS:
        raise UnknownWords(
            f"The Shapes demo model reads at most {N_TOKENS} words of colour, shape and place; this prompt has {len(tokens)}. "
            f'Write a prompt like "a red circle left of a blue square".'
        )


def pad(token_lists: list[list[int]]) -> torch.Tensor:
    """[B, N_TOKENS] token numbers, PAD at the end."""
    return torch.tensor([(tokens + [PAD] * N_TOKENS)[:N_TOKENS] for tokens in token_lists])


class TextEncoder(nn.Module):
    """Tokens [B, L] to embeddings [B, L, WIDTH], mean 0 and variance 1 over each token's features.

    PAD gives zeros, so the empty prompt and ComfyUI's ConditioningZeroOut are the same condition.
    """

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(len(VOCABULARY) + 1, WIDTH)
        self.position = nn.Embedding(N_TOKENS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        padding = tokens == PAD
        # A row of only PAD would leave the attention without any key. It is not ignored, but zeroed below.
        ignored = padding & ~padding.all(1, keepdim=True)
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        x = F.layer_norm(self.layers(x, src_key_padding_mask=ignored), (WIDTH,))
        return x * ~padding[..., None]
