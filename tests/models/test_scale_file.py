"""Scale files: the golden figures from both formats, and every way in which a file can be wrong."""

import dataclasses
import io
import json
import math
import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.fixed_scale import FixedScale
from annealing_guidance_pack.models.scale_file import FORMAT, MAX_FILE_BYTES, MAX_HEADER_BYTES, load_info, load_scale, save_scale
from annealing_guidance_pack.models.scale_model import ScaleInfo
from annealing_guidance_pack.models.scale_network import NetworkConfig
from hypothesis import given
from hypothesis import strategies as st
from scales import INFO, checkpoint, made_up_network

GOLDEN = Path(__file__).parent.parent / "data" / "scale_grid.json"


@pytest.fixture
def scale_file(tmp_path):
    """A good file to spoil."""
    path = tmp_path / "made_up.safetensors"
    save_scale(made_up_network(), path)
    return path


def rewrite(path, tensors=None, drop=(), **metadata):
    """The file again with other tensors or metadata."""
    with safetensors.safe_open(path, "pt") as file:
        old_metadata, old_tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    metadata = {key: value for key, value in (old_metadata | metadata).items() if key not in drop}
    safetensors.torch.save_file(old_tensors if tensors is None else tensors(old_tensors), path, metadata=metadata)
    return path


def refused(path):
    """The message with which load_scale refuses the file: it names the file and ends with what to do."""
    with pytest.raises(AnnealingError) as caught:
        load_scale(path)
    message = str(caught.value)
    assert str(path) in message and message.endswith(".") and len(message) < 1000
    return message


# --- the authors' network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("converted", [False, True], ids=["authors' .pt", "converted .safetensors"])
def test_every_golden_point_within_1e_5(official_checkpoint, tmp_path, converted):
    model = load_scale(official_checkpoint)
    if converted:
        save_scale(model, tmp_path / "converted.safetensors")
        model = load_scale(tmp_path / "converted.safetensors")
    golden = json.loads(GOLDEN.read_text())
    assert golden["columns"] == ["timestep", "delta_norm", "lambda", "scale"] and len(golden["rows"]) == 594
    timestep, gap_norm, guidance_lambda, scale = torch.tensor(golden["rows"], dtype=torch.float64).unbind(-1)
    assert (model(timestep, gap_norm, guidance_lambda) - scale).abs().max() < 1e-5


def test_what_is_known_about_the_authors_network(official_checkpoint, tmp_path):
    model = load_scale(official_checkpoint)
    assert (model.info.prediction, model.info.reference_numel, model.info.training_grid) == ("epsilon", 65536, 20)
    assert "none" in model.info.licence and model.info.source.startswith("https://github.com/annealing-guidance/")
    assert sum(parameter.numel() for parameter in model.parameters()) == 51_329
    save_scale(model, tmp_path / "converted.safetensors")
    assert (tmp_path / "converted.safetensors").stat().st_size < 210_000  # no optimiser state


def test_the_bounds_of_the_authors_network_do_not_bind_where_it_was_trained(official_checkpoint):
    """max_gap_norm and the scale's bounds are choices: within max_gap_norm the scale keeps to the paper's range."""
    model = load_scale(official_checkpoint)
    axes = torch.arange(0, 1000, 20.0), torch.linspace(0, 2 * model.config.max_gap_norm, 201), torch.linspace(0, 1, 11)
    scale = model(*(axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")))
    assert 0.66 < scale.min() and scale.max() < 1.55


# --- our own format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training_grid", [20, (14.6, 3.25, 0.5, 0.0)])
def test_a_saved_network_comes_back_the_same(tmp_path, training_grid):
    info = ScaleInfo("round_trip", "velocity", 3072, training_grid, "données", "here", "Apache-2.0", "the tests")
    config = NetworkConfig(
        hidden_width=8, depth=0, frequencies=(1.0, 2.5), gap_divisor=7.25, max_gap_norm=33.0, min_scale=0.0, max_scale=9.0
    )
    network = made_up_network(info, config)
    save_scale(network, tmp_path / "round_trip.safetensors")
    read = load_scale(tmp_path / "round_trip.safetensors")
    assert read.info == info and read.config == config
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), read.state_dict().values(), strict=True))
    assert not read.training


@pytest.mark.parametrize(("training_grid", "steps"), [(20, 50), (333, 3), ((14.6, 3.25, 0.5, 0.0), 3)])
def test_what_a_file_may_know_of_its_model_comes_back_from_the_whole_file_and_from_its_header(tmp_path, training_grid, steps):
    gaps = tuple(float(k) for k in range(steps))
    info = dataclasses.replace(INFO, training_grid=training_grid, typical_gaps=gaps, fingerprint='{"weights":[[0.5]]}')
    save_scale(made_up_network(info), tmp_path / "made_up.safetensors")
    assert load_scale(tmp_path / "made_up.safetensors").info == info
    assert load_info(tmp_path / "made_up.safetensors") == info
    rewrite(tmp_path / "made_up.safetensors", drop=["typical_gaps", "fingerprint"])  # as files were before they knew it
    assert load_info(tmp_path / "made_up.safetensors") == dataclasses.replace(INFO, training_grid=training_grid)


def test_only_the_beginning_of_a_file_is_read_for_what_it_says(scale_file):
    said = load_info(scale_file)
    data = scale_file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    scale_file.write_bytes(data[: 8 + length])  # the network is gone
    assert load_info(scale_file) == said
    header = json.dumps({"__metadata__": {"format": FORMAT, "x": "y" * MAX_HEADER_BYTES}}).encode()
    for spoilt in (data[: 7 + length], data[:5], b"", len(header).to_bytes(8, "little") + header, b"\xff" * 100):
        scale_file.write_bytes(spoilt)
        with pytest.raises(AnnealingError, match="cannot be used: .*\\.$"):
            load_info(scale_file)


def test_half_precision_weights_are_read_as_float32(scale_file):
    rewrite(scale_file, lambda tensors: {key: value.half() for key, value in tensors.items()})
    assert {parameter.dtype for parameter in load_scale(scale_file).parameters()} == {torch.float32}


def test_saving_makes_the_folder_and_leaves_no_temporary_file(tmp_path):
    save_scale(made_up_network(), tmp_path / "new" / "made_up.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["made_up.safetensors"]


def test_what_could_not_be_read_back_is_not_saved_over_a_good_file(scale_file):
    good = scale_file.read_bytes()
    diverged = made_up_network()
    torch.nn.init.constant_(diverged.layers[0].bias, math.nan)
    with pytest.raises(AnnealingError, match="NaN"):
        save_scale(diverged, scale_file)
    assert scale_file.read_bytes() == good


def test_a_fixed_rule_is_not_saved(tmp_path):
    with pytest.raises(AnnealingError, match="fixed rule"):
        save_scale(FixedScale(), tmp_path / "rule.safetensors")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AnnealingError, match="could not be written"):
        save_scale(made_up_network(), tmp_path / "file" / "made_up.safetensors")


# --- safetensors files that cannot be used ----------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 5, 100, 1500, -1])
def test_a_truncated_file(scale_file, length):
    scale_file.write_bytes(scale_file.read_bytes()[:length])
    assert "empty" in refused(scale_file) if length == 0 else "truncated" in refused(scale_file)


def test_a_missing_file(tmp_path):
    assert "cannot be read" in refused(tmp_path / "nowhere.safetensors")


def test_a_text_file(tmp_path):
    (tmp_path / "notes.safetensors").write_text("<!doctype html><title>404</title>")
    assert "another format" in refused(tmp_path / "notes.safetensors")


def test_a_file_beyond_the_size_limit_is_not_read_whole(tmp_path):
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.truncate(MAX_FILE_BYTES * 1000)
    assert "larger than 16 MB" in refused(tmp_path / "big.safetensors")


@pytest.mark.parametrize(
    "header",
    [b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4]}}', b"{" * 1000, b'{"a":5}', b"\xff\xfe"],
)
def test_a_header_that_declares_the_impossible(tmp_path, header):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "neither a whole .safetensors" in refused(path)
    path.write_bytes((2**60).to_bytes(8, "little") + header)
    assert "neither a whole .safetensors" in refused(path)


def test_a_lora(tmp_path):
    lora = {"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(4, 4)}
    safetensors.torch.save_file(lora, tmp_path / "style.safetensors", metadata={"format": "pt"})
    message = refused(tmp_path / "style.safetensors")
    assert "holds no annealing scale" in message and "lora_unet" in message and "LoRA" in message


def test_a_file_of_a_later_format(scale_file):
    assert "Update Annealing Guidance" in refused(rewrite(scale_file, format="annealing-scale/2"))


ALL_KEYS = [
    *("prediction", "reference_numel", "training_grid", "trained_on", "source", "licence", "created_with"),
    *("hidden_width", "depth", "frequencies", "gap_divisor", "max_gap_norm", "min_scale", "max_scale"),
]


def test_the_metadata_is_all_there(scale_file):
    with safetensors.safe_open(scale_file, "pt") as file:
        assert set(file.metadata()) == {"format", *ALL_KEYS} and file.metadata()["format"] == FORMAT


@pytest.mark.parametrize("key", ALL_KEYS)
def test_metadata_that_lacks_anything(scale_file, key):
    assert key in refused(rewrite(scale_file, drop=[key]))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prediction", "image"),
        ("reference_numel", "0"),
        ("reference_numel", "true"),
        ("training_grid", "0"),
        ("training_grid", "1.5"),
        ("training_grid", "[1.0, 2.0, 0.0]"),
        ("training_grid", "[1.0, 0.5]"),
        ("training_grid", "[1.0, NaN, 0.0]"),
        ("training_grid", json.dumps(list(range(20_000, -1, -1)))),
        ("typical_gaps", "[1.0]"),
        ("typical_gaps", "[]"),
        ("typical_gaps", json.dumps([1.0] * 49 + [-1.0])),
        ("typical_gaps", json.dumps([1.0] * 49 + [None])),
        ("typical_gaps", "[" + "NaN," * 49 + "1.0]"),
        ("fingerprint", ""),
        ("fingerprint", "x" * 20_000),
        ("hidden_width", "999999999999"),
        ("hidden_width", "-1"),
        ("hidden_width", "9" * 5000),
        ("depth", "1000000"),
        ("depth", "two"),
        ("frequencies", '["1"]'),
        ("frequencies", "[" * 5000),
        ("frequencies", json.dumps([1.0] * 100)),
        ("gap_divisor", "0"),
        ("gap_divisor", "-5"),
        ("gap_divisor", "NaN"),
        ("gap_divisor", "1e999"),
        ("max_gap_norm", "Infinity"),
        ("min_scale", "2.0"),
        ("licence", "  "),
    ],
)
def test_metadata_that_makes_no_sense(scale_file, key, value):
    assert key in refused(rewrite(scale_file, **{key: value}))


@pytest.mark.parametrize(("key", "value"), [("hidden_width", "1024"), ("depth", "16"), ("depth", "0"), ("frequencies", "[1.0]")])
def test_sizes_that_contradict_the_weights(scale_file, key, value):
    assert "sizes contradict its weights" in refused(rewrite(scale_file, **{key: value}))


def test_weights_too_many_or_too_few(scale_file):
    good = scale_file.read_bytes()
    assert "'more'" in refused(rewrite(scale_file, lambda tensors: tensors | {"more": torch.zeros(1)}))
    scale_file.write_bytes(good)
    assert "layers.0.bias" in refused(rewrite(scale_file, lambda tensors: tensors | {"layers.0.bias": torch.zeros(17)}))
    scale_file.write_bytes(good)
    assert "layers.0.bias" in refused(
        rewrite(scale_file, lambda tensors: {key: value for key, value in tensors.items() if key != "layers.0.bias"})
    )


@pytest.mark.parametrize(
    "bad", [torch.tensor([math.nan] * 16), torch.tensor([math.inf] * 16), torch.zeros(16, dtype=torch.int32)]
)
def test_weights_that_are_no_finite_numbers(scale_file, bad):
    assert "NaN, infinity" in refused(rewrite(scale_file, lambda tensors: tensors | {"layers.0.bias": bad}))


# --- checkpoints that cannot be used ----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["layers.0.weight", "layers.1.bias", "gap_divisor", "frequencies"])
def test_a_network_whose_values_could_leave_float32(scale_file, part):
    """Each number is a finite one, and yet inf - inf or cos(inf) would give a scale that is NaN."""
    if part.startswith("layers"):
        rewrite(scale_file, lambda tensors: tensors | {part: torch.full_like(tensors[part], 3e38)})
    else:
        rewrite(scale_file, **{part: {"gap_divisor": "1e-37", "frequencies": "[1.0, 2.0, 3e38]"}[part]})
    assert "could come out as NaN" in refused(scale_file)


@given(
    st.integers(0, 2**20),
    st.floats(0.01, 1e6),
    st.tuples(st.floats(0, 1000), st.floats(0, 1e9), st.floats(0, 1)),
)
def test_no_scale_exceeds_the_largest_value(seed, factor, inputs):
    config = NetworkConfig(hidden_width=4, depth=1, min_scale=-math.inf, max_scale=math.inf)
    network = made_up_network(config=config, seed=seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= factor
        scale = network(*map(torch.tensor, inputs))
    assert abs(scale - 1) <= network.largest_value() * (1 + 1e-5)


def saved(content, path, **options):
    torch.save(content, path, **options)
    return path


def test_a_checkpoint_of_the_authors_layout(tmp_path):
    timestep, gap_norm = torch.tensor([500.0]), torch.tensor([3.0])
    read = load_scale(saved(checkpoint(), tmp_path / "checkpoint.pt"))
    assert torch.equal(read(timestep, gap_norm, 0.4), made_up_network()(timestep, gap_norm, 0.4))
    assert read.config.gap_divisor == 5.0
    other = load_scale(saved(checkpoint(delta_embed_normalization=9), tmp_path / "checkpoint.pt"))
    assert other.config.gap_divisor == 9.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("type", "transformer"), ("w_bias", 0), ("noise_metric", "rms"), ("t_embed_dim", 8)],
        *[("hidden_size", 10**12), ("hidden_size", "128"), ("n_layers", None), ("delta_embed_normalization", 0)],
    ],
)
def test_a_checkpoint_with_other_settings(tmp_path, key, value):
    named = {"hidden_size": "hidden_width", "n_layers": "depth", "delta_embed_normalization": "gap_divisor"}.get(key, key)
    assert named in refused(saved(checkpoint(**{key: value}), tmp_path / "checkpoint.pt"))


def test_a_checkpoint_with_other_sizes_or_nan(tmp_path):
    assert "sizes contradict" in refused(saved(checkpoint(hidden_size=32), tmp_path / "checkpoint.pt"))
    content = checkpoint()
    content["guidance_scale_model"]["combined_head.0.bias"][3] = math.nan
    assert "NaN" in refused(saved(content, tmp_path / "checkpoint.pt"))


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"config": {}, "guidance_scale_model": 5}, torch.zeros(3)])
def test_a_checkpoint_of_something_else(tmp_path, content):
    assert "not the authors' checkpoint" in refused(saved(content, tmp_path / "checkpoint.pt"))


def test_weights_that_are_no_ordinary_tensors(tmp_path):
    for odd in (torch.zeros(16).to_sparse(), torch.zeros(16, device="meta"), "text"):
        content = checkpoint()
        content["guidance_scale_model"]["combined_head.0.bias"] = odd
        assert refused(saved(content, tmp_path / "checkpoint.pt"))


class RunsCode:
    """Pickles as a call that writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_the_code_not_run(tmp_path, zipped):
    path, trace = tmp_path / "checkpoint.pt", tmp_path / "the code has run"
    if zipped:
        torch.save(checkpoint() | {"step": RunsCode(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(RunsCode(trace)))
    message = refused(path)
    assert not trace.exists()
    assert "never run" in message if zipped else "another format" in message


@pytest.mark.parametrize("length", [-1, 1000])
def test_a_truncated_checkpoint(tmp_path, length):
    path = saved(checkpoint(), tmp_path / "checkpoint.pt")
    path.write_bytes(path.read_bytes()[:length])
    assert "truncated" in refused(path) or "damaged" in refused(path)


def test_a_checkpoint_with_a_damaged_middle(tmp_path):
    path = saved(checkpoint(), tmp_path / "checkpoint.pt")
    data = bytearray(path.read_bytes())
    data[100:400] = bytes(300)
    path.write_bytes(data)
    refused(path)


def test_a_small_archive_that_inflates_without_end(tmp_path):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("checkpoint/data.pkl", bytes(10 * MAX_FILE_BYTES))
    (tmp_path / "bomb.pt").write_bytes(data.getvalue())
    assert "unpack to 160 MB" in refused(tmp_path / "bomb.pt")


def test_the_made_up_info_is_what_the_file_says(scale_file):
    assert load_scale(scale_file).info == INFO
