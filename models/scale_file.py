"""Scale networks on disk.

The pack's own format is `annealing-scale/1`: a .safetensors file. Its metadata (strings; numbers and lists as JSON) holds the
network's sizes, normalisation and bounds (NetworkConfig), and what a guider must know (ScaleInfo, except the name, which is the
file's). ScaleInfo's fields with a default may be missing. The authors' checkpoint.pt can be read too.

Files may come from strangers. A file is read once, up to a size limit, and nothing in it is executed. Where something is missing
or contradictory, an AnnealingError says what is wrong and what to do.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from .errors import AnnealingError, in_words
from .plain_checkpoint import read_checkpoint
from .safetensors_header import header_of
from .scale_model import ScaleInfo, ScaleModel
from .scale_network import NetworkConfig, ScaleNetwork
from .whole_file import write_whole

FORMAT = "annealing-scale/1"
ZIP = b"PK"  # zipfile.is_zipfile raises on some damaged files
MAX_FILE_BYTES = 16 * 2**20  # the authors' file has 0.6 MB
MAX_HEADER_BYTES = 2**20  # 10,000 sigmas have 0.2 MB
MAX_WIDTH, MAX_DEPTH, MAX_FREQUENCIES, MAX_GRID, MAX_FINGERPRINT = 1024, 16, 64, 10_000, 16_384

_GET_ANOTHER = "Choose another file, or download or train it again."
_USE_THE_AUTHORS_OWN = "Use the authors' own checkpoint.pt, or a .safetensors scale."


def load_scale(path: str | os.PathLike[str]) -> ScaleNetwork:
    """Read a scale network, on the CPU in float32: annealing-scale/1, or the authors' .pt.

    Raises AnnealingError for every file that cannot be used.
    """
    path = Path(path)
    data = _read(path)
    network = _from_authors(data, path) if data.startswith(ZIP) else _from_safetensors(data, path)
    return network.eval()


def load_info(path: str | os.PathLike[str]) -> ScaleInfo:
    """What an annealing-scale/1 file says about its network, from its first bytes. The network itself is not checked.

    Raises AnnealingError for every file whose header does not say it.
    """
    path = Path(path)
    return _info(_metadata(_read(path, MAX_HEADER_BYTES), path), path)


def save_scale(model: ScaleModel, path: str | os.PathLike[str]) -> None:
    """Write a scale network as annealing-scale/1. The file appears whole, and only if it can be read back; else not at all."""
    if not isinstance(model, ScaleNetwork):
        raise AnnealingError(
            f'"{model.info.name}" is a fixed rule, not a network: there is nothing to save. Connect a learned scale.'
        )
    path = Path(path)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    data = safetensors.torch.save(tensors, metadata=_metadata_of(model))
    _from_safetensors(data, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        why = in_words(error)
        raise AnnealingError(f"{path} could not be written: {why}. Choose a folder that can be written to.") from error


# --- annealing-scale/1 -----------------------------------------------------------------------------------------------


def _metadata_of(model: ScaleNetwork) -> dict[str, str]:
    """Everything but the tensors, as strings."""
    values = {field.name: getattr(model.config, field.name) for field in fields(NetworkConfig)}
    values |= {field.name: getattr(model.info, field.name) for field in fields(ScaleInfo) if field.name != "name"}
    known = {key: value for key, value in values.items() if value is not None and value is not False}
    return {"format": FORMAT} | {key: value if isinstance(value, str) else json.dumps(value) for key, value in known.items()}


def _from_safetensors(data: bytes, path: Path) -> ScaleNetwork:
    tensors, metadata = _tensors_and_metadata(data, path)
    config = NetworkConfig(
        hidden_width=_integer(metadata, "hidden_width", 1, MAX_WIDTH, path),
        depth=_integer(metadata, "depth", 0, MAX_DEPTH, path),
        frequencies=_numbers(metadata, "frequencies", MAX_FREQUENCIES, path),
        gap_divisor=_positive(metadata, "gap_divisor", path),
        max_gap_norm=_positive(metadata, "max_gap_norm", path),
        min_scale=_number(metadata, "min_scale", path),
        max_scale=_number(metadata, "max_scale", path),
    )
    if config.min_scale >= config.max_scale:
        raise _unusable(path, f"its min_scale {config.min_scale:g} is not below its max_scale {config.max_scale:g}")
    return _network(_info(metadata, path), config, tensors, path)


def _info(metadata: dict[str, str], path: Path) -> ScaleInfo:
    info = ScaleInfo(
        name=path.stem,
        prediction=_choice(metadata, "prediction", ("epsilon", "velocity"), path),
        reference_numel=_integer(metadata, "reference_numel", 1, 2**40, path),
        training_grid=_training_grid(metadata, path),
        **{key: _text(metadata, key, path) for key in ("trained_on", "source", "licence", "created_with")},
        typical_gaps=_numbers(metadata, "typical_gaps", MAX_GRID, path) if "typical_gaps" in metadata else None,
        fingerprint=_text(metadata, "fingerprint", path) if "fingerprint" in metadata else None,
        projection=_choice(metadata, "projection", ("true", "false"), path) == "true" if "projection" in metadata else False,
    )
    if len(info.fingerprint or "") > MAX_FINGERPRINT:
        raise _unusable(path, f"its fingerprint is longer than {MAX_FINGERPRINT} characters")
    if info.typical_gaps is not None:
        grid = info.training_grid
        steps = 1000 // grid if isinstance(grid, int) else len(grid) - 1
        if len(info.typical_gaps) != steps or min(info.typical_gaps) < 0:
            raise _unusable(path, f"its typical_gaps are not one norm for each of the {steps} steps of its training_grid")
    return info


def _tensors_and_metadata(data: bytes, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Both parts of a well-formed safetensors file of this format."""
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _unusable(
            path,
            "it is neither a whole .safetensors file nor the authors' whole checkpoint "
            f"({str(error)[:200]}); it may be truncated, or of another format",
        ) from None
    return tensors, _metadata(data, path)


def _metadata(data: bytes, path: Path) -> dict[str, str]:
    """The metadata of a file of this format; data: the file, or its first bytes."""
    header = header_of(data)
    metadata = None if header is None else header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _unusable(path, "it does not begin like a .safetensors scale file")
    declared = metadata.get("format")
    if declared == FORMAT:
        return metadata
    if isinstance(declared, str) and declared.startswith("annealing-scale/"):
        raise _unusable(path, f"its format is {declared[:40]} and this version reads {FORMAT}", "Update Annealing Guidance.")
    example = next((key for key in header or {} if key != "__metadata__"), "none at all")
    raise _unusable(
        path,
        f"it holds no annealing scale (no format {FORMAT} in its metadata; its tensors are named like {example[:80]!r})",
        "Choose a scale file: a checkpoint, LoRA or other model belongs to its own loader.",
    )


def _training_grid(metadata: dict[str, str], path: Path) -> tuple[float, ...] | int:
    value = _json(metadata, "training_grid", path)
    if isinstance(value, int) and not isinstance(value, bool):
        return _integer(metadata, "training_grid", 1, 1000, path)
    grid = _numbers(metadata, "training_grid", MAX_GRID, path)
    if len(grid) < 2 or grid[-1] != 0 or any(a <= b for a, b in pairwise(grid)):
        raise _unusable(path, "its training_grid is neither a number of timesteps nor a list of falling sigmas that ends with 0")
    return grid


def _json(metadata: dict[str, str], key: str, path: Path) -> Any:
    if key not in metadata:
        raise _unusable(path, f"its metadata lacks {key}")
    try:
        return json.loads(metadata[key])
    except (ValueError, RecursionError):
        raise _unusable(path, f"its {key} is {metadata[key][:40]!r}, which is no number or list") from None


def _number(metadata: dict[str, str], key: str, path: Path) -> float:
    value = _json(metadata, key, path)
    if isinstance(value, bool) or not isinstance(value, int | float) or not _fits_float32(value):
        raise _unusable(path, f"its {key} is {metadata[key][:40]!r}, which is no finite number")
    return float(value)


def _positive(metadata: dict[str, str], key: str, path: Path) -> float:
    value = _number(metadata, key, path)
    if value < torch.finfo(torch.float32).tiny:
        raise _unusable(path, f"its {key} is {value:g}, and it must be above 0")
    return value


def _integer(metadata: dict[str, str], key: str, low: int, high: int, path: Path) -> int:
    value = _json(metadata, key, path)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _unusable(path, f"its {key} is {metadata[key][:40]!r}, and it must be a whole number from {low} to {high}")
    return value


def _numbers(metadata: dict[str, str], key: str, longest: int, path: Path) -> tuple[float, ...]:
    value = _json(metadata, key, path)
    fits = isinstance(value, list) and len(value) <= longest
    if not fits or not all(type(x) in (int, float) and _fits_float32(x) for x in value):
        raise _unusable(path, f"its {key} is {metadata[key][:40]!r}, and it must be a list of at most {longest} finite numbers")
    return tuple(float(x) for x in value)


def _fits_float32(value: int | float) -> bool:
    return abs(value) <= torch.finfo(torch.float32).max  # false for NaN too


def _choice(metadata: dict[str, str], key: str, choices: tuple[str, ...], path: Path) -> Any:
    value = _text(metadata, key, path)
    if value not in choices:
        raise _unusable(path, f"its {key} is {value[:40]!r}, and it must be one of: {', '.join(choices)}")
    return value


def _text(metadata: dict[str, str], key: str, path: Path) -> str:
    if not metadata.get(key, "").strip():
        raise _unusable(path, f"its metadata lacks {key}")
    return metadata[key]


# --- the authors' checkpoint -----------------------------------------------------------------------------------------

AUTHORS_REPOSITORY = "https://github.com/annealing-guidance/annealing-guidance"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_NUMEL = 4 * 128 * 128  # the latent of the 1024x1024 pictures that it was trained on

# Settings of the authors' code that this network has no option for: group, key, the only value that can be read.
_AUTHORS_SETTINGS = [
    ("diffusion", "model_id", SDXL),
    ("guidance_scale_model", "type", "scalar_mlp"),
    ("guidance_scale_model", "noise_metric", "norm"),
    ("guidance_scale_model", "output_size", 1),
    ("guidance_scale_model", "t_embed_normalization", 1000),
    ("guidance_scale_model", "t_embed_dim", 4),
    ("guidance_scale_model", "delta_embed_dim", 4),
    ("guidance_scale_model", "lambda_embed_dim", 4),
    ("guidance_scale_model", "w_scale", 1),
    ("guidance_scale_model", "w_bias", 1),
]


def _from_authors(data: bytes, path: Path) -> ScaleNetwork:
    """The network of the authors' checkpoint.pt. Its optimiser state is dropped."""
    checkpoint = _checkpoint(data, path)
    tensors, settings = _part(checkpoint, "guidance_scale_model", path), _part(checkpoint, "config", path)
    for group, key, readable in _AUTHORS_SETTINGS:
        found = _part(settings, group, path).get(key)
        if not isinstance(found, str | int | float) or found != readable:
            raise _unusable(path, f"its setting {group}.{key} is {_shown(found)} and only {readable!r} can be read")
    diffusion, sizes = settings["diffusion"], settings["guidance_scale_model"]
    texts = {
        "hidden_width": sizes.get("hidden_size"),
        "depth": sizes.get("n_layers"),
        "gap_divisor": sizes.get("delta_embed_normalization"),
        "num_timesteps": diffusion.get("num_timesteps"),
    }
    texts = {key: json.dumps(value) if isinstance(value, int | float | str) else "null" for key, value in texts.items()}
    config = NetworkConfig(
        hidden_width=_integer(texts, "hidden_width", 1, MAX_WIDTH, path),
        depth=_integer(texts, "depth", 0, MAX_DEPTH, path),
        gap_divisor=_positive(texts, "gap_divisor", path),
    )
    info = ScaleInfo(
        name=path.stem,
        prediction="epsilon",
        reference_numel=SDXL_NUMEL,
        training_grid=1000 // _integer(texts, "num_timesteps", 1, 1000, path),
        trained_on=f"{SDXL} at 1024x1024, by the paper's authors",
        source=AUTHORS_REPOSITORY,
        licence="none stated by the authors: for your own use, not for passing on",
        created_with="the authors' code (arXiv 2506.24108)",
    )
    return _network(info, config, {_our_key(key): value for key, value in tensors.items()}, path)


def _our_key(key: object) -> str:
    """`combined_head.{0,2,4,..}.weight` (linear layers and activations in one list) is our `layers.{0,1,2,..}.weight`."""
    match = re.fullmatch(r"combined_head\.(\d{1,4})\.(weight|bias)", str(key))
    return f"layers.{int(match[1]) // 2}.{match[2]}" if match and int(match[1]) % 2 == 0 else str(key)


def _checkpoint(data: bytes, path: Path) -> Any:
    try:
        return read_checkpoint(data, MAX_FILE_BYTES)
    except Exception as error:
        # zipfile and pickletools raise many types of errors for damaged files.
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise _unusable(
            path, f"it is no plain checkpoint, but damaged or something else ({first_line})", _USE_THE_AUTHORS_OWN
        ) from None


def _part(mapping: Any, key: str, path: Path) -> dict[str, Any]:
    value = mapping.get(key) if isinstance(mapping, dict) else None
    if not isinstance(value, dict):
        raise _unusable(
            path,
            f"it has no {key!r}, so it is not the authors' checkpoint",
            _USE_THE_AUTHORS_OWN,
        )
    return value


# --- both ------------------------------------------------------------------------------------------------------------


def _read(path: Path, most: int = MAX_FILE_BYTES + 1) -> bytes:
    """The file, or its first `most` bytes: at most MAX_FILE_BYTES. Read once, so that it cannot change between checks."""
    try:
        with path.open("rb") as file:
            data = file.read(most)
    except OSError as error:
        raise _unusable(path, f"it cannot be read ({in_words(error)})") from None
    if len(data) > MAX_FILE_BYTES:
        raise _unusable(path, f"it is larger than {MAX_FILE_BYTES // 2**20} MB, and scale networks are far smaller")
    if not data:
        raise _unusable(path, "it is empty")
    return data


def _network(info: ScaleInfo, config: NetworkConfig, tensors: dict[str, Any], path: Path) -> ScaleNetwork:
    """Build the network, after checking that the tensors are exactly those that the config declares."""
    expected = config.tensor_shapes
    found = {key: tuple(getattr(value, "shape", ())) for key, value in tensors.items()}
    for key in sorted(expected.keys() | found.keys(), key=str):
        if expected.get(key) != found.get(key):
            wanted, got = expected.get(key, "no such tensor"), found.get(key, "none")
            raise _unusable(path, f"its sizes contradict its weights: {str(key)[:80]!r} should be {wanted} and is {got}")
    for key, value in tensors.items():
        plain = value.layout is torch.strided and value.device.type == "cpu" and value.is_floating_point()
        if not plain or not torch.isfinite(value.float()).all():
            raise _unusable(path, f"its weights in {key!r} hold NaN, infinity or no floating-point numbers")
    network = ScaleNetwork(info, config)
    network.load_state_dict({key: value.float() for key, value in tensors.items()})
    if not network.largest_value() <= torch.finfo(torch.float32).max:
        raise _unusable(path, "its weights or its normalisation are so large that the scale could come out as NaN")
    return network


def _shown(value: object) -> str:
    """A value from a file, short enough for a message: never a whole structure."""
    return repr(value)[:80] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _unusable(path: Path, why: str, what_to_do: str = _GET_ANOTHER) -> AnnealingError:
    return AnnealingError(f"The scale file {path} cannot be used: {why}. {what_to_do}")
