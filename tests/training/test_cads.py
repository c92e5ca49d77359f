"""The perturbation of the conditional embeddings."""

from __future__ import annotations

import torch
from annealing_guidance_pack.training.cads import perturbed, perturbed_conditioning


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_it_is_the_formula_for_every_timestep():
    embedding = 3 + 2 * torch.randn(1, 7, 16, generator=seeded())
    timestep = torch.tensor([0.0, 250.0, 999.0])
    noise = torch.randn(3, 7, 16, generator=seeded())
    for row, result in enumerate(perturbed(embedding, timestep, seeded())):
        gamma = 1 - timestep[row] / 1000
        y = gamma.sqrt() * embedding[0] + 0.025 * (1 - gamma).sqrt() * noise[row]
        expected = (y - y.mean()) / y.std() * embedding.std() + embedding.mean()
        torch.testing.assert_close(result, expected)


def test_mean_and_spread_stay_and_less_is_left_the_noisier_it_is():
    embedding = 3 + 2 * torch.randn(1, 77, 64, generator=seeded())
    result = perturbed(embedding, torch.tensor([0.0, 900.0, 1000.0, 1200.0]), seeded())
    torch.testing.assert_close(result.mean((1, 2)), embedding.mean().expand(4))
    torch.testing.assert_close(result.std((1, 2)), embedding.std().expand(4))
    torch.testing.assert_close(result[0], embedding[0])
    likeness = [float(torch.corrcoef(torch.stack([embedding.flatten(), row.flatten()]))[0, 1]) for row in result]
    assert likeness[1] > 0.9
    assert abs(likeness[2]) < 0.1 and abs(likeness[3]) < 0.1


def test_an_embedding_of_zeros_stays_without_nan():
    assert torch.equal(perturbed(torch.zeros(1, 4, 8), torch.tensor([500.0]), seeded()).isnan().any(), torch.tensor(False))


def test_sequence_and_pooled_embeddings_are_perturbed_and_nothing_else():
    mask = torch.ones(1, 4)
    original = [[torch.randn(1, 4, 8), {"pooled_output": torch.randn(1, 8), "attention_mask": mask, "guidance": 3.5}]]
    kept = original[0][0].clone()
    ((sequence, options),) = perturbed_conditioning(original, torch.tensor([100.0, 900.0]), seeded())
    assert sequence.shape == (2, 4, 8) and options["pooled_output"].shape == (2, 8)
    assert not torch.equal(options["pooled_output"][1], original[0][1]["pooled_output"][0])
    assert options["attention_mask"] is mask and options["guidance"] == 3.5
    assert torch.equal(original[0][0], kept)


def test_half_precision_embeddings_keep_their_type():
    assert perturbed(torch.randn(1, 4, 8).half(), torch.tensor([500.0]), seeded()).dtype == torch.float16
