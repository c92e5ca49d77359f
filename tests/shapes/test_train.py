"""The demo's own training: it goes on where it was stopped, and captions never give the held-out scenes away."""

import pytest
import torch
from annealing_guidance_pack.shapes import files, scenes, train
from safetensors.torch import load_file

CPU = torch.device("cpu")


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(train.BATCH, "text", 8)

    def train_into(folder):
        monkeypatch.setattr(files, "WEIGHTS", tmp_path / folder)
        train.train("text", 6, CPU, tmp_path / folder / "state")
        return load_file(tmp_path / folder / "text.safetensors")

    whole = train_into("whole")
    loss, calls = train.TextPart.loss, []

    def stopped(self, n, generator):
        calls.append(n)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(self, n, generator)

    monkeypatch.setattr(train.TextPart, "loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_into("stopped")
    assert not (tmp_path / "stopped" / "text.safetensors").exists()
    resumed = train_into("stopped")
    assert len(calls) == 4 + 3  # steps 0, 1, 2, the interrupted one, then 3, 4, 5
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_captions_are_sometimes_wrong_in_one_object_and_never_of_a_held_out_scene():
    part = train.PicturePart(CPU, "flow")
    generator = torch.Generator().manual_seed(0)
    drawn = part.scenes(4000, generator)
    said = part.caption_numbers(drawn, generator)
    true = scenes.scene_number(drawn.colour, drawn.shape, drawn.axis)
    _, held_out = scenes.scene_split()
    assert not torch.isin(said, held_out).any()
    assert not torch.isin(true, held_out).any()
    # A random object is the true one in 1 of 24, and a held-out scene is never said.
    assert (said != true).float().mean() == pytest.approx(train.WRONG_CAPTIONS * 23 / 24 * 896 / 1152, abs=0.03)
    n = scenes.N_OBJECTS
    same_first, same_second, same_axis = said // n % n == true // n % n, said % n == true % n, said // n**2 == true // n**2
    assert (same_axis & (same_first | same_second)).all()
