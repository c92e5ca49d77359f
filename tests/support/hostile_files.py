"""Files as an attacker would write them, for the readers of scales and profiles: good ones, changed with their structure in mind,
and pickles that ask for code. Used by tests/trust/ and, for as long as one likes, by `python tools/dev.py fuzz`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
import two_points
from annealing_guidance_pack.models import schedule
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.scale_file import load_info, load_scale, save_scale
from annealing_guidance_pack.models.scale_model import PATHS
from annealing_guidance_pack.training.fingerprint import fingerprint
from annealing_guidance_pack.training.own_scale import fingerprint_text, own_scale
from annealing_guidance_pack.training.pictures import given_pictures
from annealing_guidance_pack.training.profile import ProfileSettings, steps_of_grid
from annealing_guidance_pack.training.shards import load_folder, measure_into
from scales import INFO, checkpoint, made_up_network
from small_models import small_model

# What known exploits call, and what torch.load(weights_only=True) itself would call.
GADGETS = [
    *(
        "os system",
        "posix system",
        "nt system",
        "subprocess Popen",
        "subprocess check_output",
        "pty spawn",
        "os execv",
        "os popen",
    ),
    *("builtins eval", "builtins exec", "builtins compile", "builtins __import__", "builtins open", "builtins getattr"),
    *("functools partial", "operator attrgetter", "operator methodcaller", "importlib import_module", "runpy run_path"),
    *("torch load", "torch.hub load", "torch.utils.cpp_extension load", "torch.storage _load_from_bytes", "pickle loads"),
    *("shutil rmtree", "pathlib Path", "webbrowser open", "socket create_connection", "urllib.request urlopen", "ctypes CDLL"),
    *(
        "builtins bytearray",
        "builtins set",
        "collections Counter",
        "_codecs encode",
        "torch._utils _rebuild_meta_tensor_no_storage",
    ),
    *("torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_wrapper_subclass", "torch._tensor _rebuild_from_type_v2"),
    *("torch device", "torch Size", "numpy.core.multiarray _reconstruct", "sys exit", "bdb Bdb", "code InteractiveInterpreter"),
]
_NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    16,
    128,
    255,
    1024,
    1025,
    2**31 - 1,
    2**31,
    2**40,
    2**53 + 1,
    2**63,
    2**64,
    10**30,
    0.5,
    -0.0,
    1e30,
    1e308,
]
_ODD = [
    "",
    " ",
    "null",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "[]",
    "{}",
    "[[[[[[[[1]]]]]]]]",
    "true",
    '"x"',
    "\u0000",
    "9" * 5000,
]
_KEYS = [
    "__metadata__",
    "shape",
    "dtype",
    "data_offsets",
    "format",
    "sha256",
    "settings",
    "model",
    "knots",
    "training_grid",
    "numel",
]


def gadget_pickle(gadget: str, target: str) -> bytes:
    """The instructions of a pickle that calls the gadget with a command that would leave a file behind."""
    command = f"touch {target}".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    return b"\x80\x02c" + gadget.replace(" ", "\n").encode() + b"\n" + text + b"\x85R."


def as_checkpoint(instructions: bytes, records: dict[str, bytes] | None = None) -> bytes:
    """A .pt file with these instructions."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in {"data.pkl": instructions, "byteorder": b"little", **(records or {}), "version": b"3\n"}.items():
            archive.writestr(f"checkpoint/{name}", content)
    return data.getvalue()


def mutated(seed: bytes, random: random.Random) -> bytes:
    """The file, changed in one to four places, by its structure or blindly."""
    data = seed
    for _ in range(random.randint(1, 4)):
        if data.startswith(b"PK"):
            data = random.choice([_blind, _zip_record, _zip_record, _zip_instruction, _zip_instruction])(data, random)
        else:
            data = random.choice([_blind, _header, _header, _header, _tensor_bytes])(data, random)
    return _checksummed(data) if random.random() < 0.8 else data


def _blind(data: bytes, random: random.Random) -> bytes:
    """Bytes flipped, cut out, repeated, or the file cut off."""
    if not data:
        return random.randbytes(random.randint(0, 64))
    start = random.randrange(min(len(data), random.choice([16, 400, len(data)])))
    end = min(len(data), start + random.choice([1, 1, 2, 8, 64]))
    part = data[start:end]
    replaced = random.choice(
        [
            bytes([part[0] ^ (1 << random.randrange(8))]) + part[1:],
            b"",
            part * 2,
            random.randbytes(len(part)),
            b"\xff" * len(part),
            None,
        ]
    )
    return data[:start] if replaced is None else data[:start] + replaced + data[end:]


def _tensor_bytes(data: bytes, random: random.Random) -> bytes:
    """A number among the tensors replaced by an unusual one."""
    if len(data) < 16:
        return data
    at = random.randrange(max(1, len(data) - 4))
    odd = random.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\xff\xff\xff\xff", b"\x01\x00\x00\x00"])
    return data[:at] + odd + data[at + 4 :]


def _header(data: bytes, random: random.Random) -> bytes:
    """A safetensors header with one thing in it changed; now and then its length lies."""
    length = int.from_bytes(data[:8], "little")
    if random.random() < 0.1:
        lie = random.choice([0, 1, length - 1, length + 1, len(data), 2**31, 2**63, 2**64 - 1])
        return struct.pack("<Q", min(max(0, lie), 2**64 - 1)) + data[8:]
    try:
        header = json.loads(data[8 : 8 + length])
        _change_inside(header, random)
        text = json.dumps(header).encode()
    except (ValueError, AttributeError, TypeError, IndexError):
        return _blind(data, random)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _change_inside(value: object, random: random.Random) -> None:
    """Goes down into dicts, lists and JSON in strings, and changes one thing there."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys or random.random() < 0.05:
        if isinstance(value, dict):
            value[random.choice(_KEYS)] = _other(random)
        else:
            value.append(_other(random))
        return
    key = random.choice(keys)
    inner = value[key]
    if isinstance(inner, (dict, list)) and inner and random.random() < 0.8:
        _change_inside(inner, random)
        return
    if isinstance(inner, str) and inner[:1] in ("{", "[") and random.random() < 0.8:
        inside = json.loads(inner)
        if inside:
            _change_inside(inside, random)
            value[key] = json.dumps(inside)
            return
    what = random.random()
    if what < 0.2:
        del value[key]
    elif what < 0.3 and isinstance(value, dict):
        value[random.choice(_KEYS)] = value.pop(key)
    else:
        value[key] = str(_other(random)) if isinstance(inner, str) else _other(random)


def _other(random: random.Random) -> object:
    number = random.choice(_NUMBERS)
    return random.choice(
        [number, number, [number], [number] * 3, random.choice(_ODD), None, True, {"a": number}, str(number), []]
    )


def _zip_record(data: bytes, random: random.Random) -> bytes:
    """A record of a .pt file dropped, cut, doubled, renamed or compressed."""
    records = _records(data)
    if not records:
        return _blind(data, random)
    name = random.choice(list(records))
    how = random.randrange(6)
    if how == 0:
        del records[name]
    elif how == 1:
        records[name] = _blind(records[name], random)
    elif how == 2:
        records[random.choice(["../outside", "/etc/outside", "C:\\outside", name + "\0", "data.pkl", "a" * 300])] = records[name]
    elif how == 3:
        records[name] = records[name] * random.choice([2, 5])
    else:
        records[name] = bytes(random.choice([0, 1, 4, 10**6]))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return out.getvalue()


def _zip_instruction(data: bytes, random: random.Random) -> bytes:
    """The instructions of a .pt file changed: other opcodes, numbers, names, or a gadget called on the way."""
    records = _records(data)
    name = next((name for name in records if name.endswith("data.pkl")), None)
    if name is None:
        return _blind(data, random)
    pickled = records[name]
    at = random.randrange(max(1, len(pickled)))
    inserted = random.choice(
        [
            random.choice(
                [b"(", b")", b"]", b"}", b"N", b"t", b"R", b"b", b"s", b"u", b"a", b"e", b"0", b"1", b"2", b"Q", b".", b"l", b"d"]
            ),
            b"J" + struct.pack("<i", random.choice([-1, 0, 7, 2**31 - 1])),
            b"\x8a" + bytes([random.choice([1, 9, 200])]) + random.randbytes(random.choice([1, 9, 200])),
            b"h" + random.randbytes(1),
            b"c" + random.choice(GADGETS).replace(" ", "\n").encode() + b"\n",
            gadget_pickle(random.choice(GADGETS), "nowhere")[2:-1],
            b"G" + struct.pack(">d", random.choice([float("nan"), float("inf"), -1.0])),
        ]
    )
    if random.random() < 0.2:
        records[name] = gadget_pickle(random.choice(GADGETS), "nowhere")
    elif random.random() < 0.5:
        records[name] = pickled[:at] + inserted + pickled[at + random.choice([0, 1, len(inserted)]) :]
    else:
        records[name] = _blind(pickled, random)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return out.getvalue()


def _records(data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 2**26:
                return {}
            return {entry.filename: archive.read(entry) for entry in archive.infolist()}
    except Exception:
        return {}


def _checksummed(data: bytes) -> bytes:
    """A profile's file with the checksum that fits what it holds: whoever forges one can compute it."""
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        metadata = header["__metadata__"]
        if metadata.pop("sha256", None) is None:
            return data
        hashed = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
        for name in sorted(tensors):
            hashed.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode() + tensors[name].numpy().tobytes())
        metadata["sha256"] = hashed.hexdigest()
        text = json.dumps(header).encode()
    except Exception:
        return data
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


class Escaped(Exception):
    """A file did something else than load or be refused."""


class Readers:
    """The readers of the pack, each with good files to change. folder: where the files lie meanwhile."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.model = small_model("SD15")
        scale = folder / "scale.safetensors"
        own = fingerprint_text(fingerprint(self.model))
        save_scale(made_up_network(replace(INFO, typical_gaps=(3.0,) * 50, fingerprint=own)), scale)
        torch.save(checkpoint(), folder / "scale.pt")
        latents, captions = two_points.pictures(2)
        pictures = given_pictures({"samples": torch.stack(latents)}, captions)
        shards = folder / "seeds"
        measure_into(shards, two_points.two_point_model("epsilon"), pictures, two_points.NEGATIVE, ProfileSettings(20, samples=4))
        [shard] = shards.glob("*.safetensors")
        self.seeds = {"scale": [scale.read_bytes(), (folder / "scale.pt").read_bytes()], "profile": [shard.read_bytes()]}

    def read(self, kind: str, data: bytes) -> bool:
        """Whether it loaded; what loaded is used once. Escaped where it neither loads nor is refused as it should be."""
        try:
            if kind == "scale":
                return self._scale(data)
            return self._profile(data)
        except AnnealingError as error:
            if len(str(error)) > 3000:
                raise Escaped(f"a message of {len(str(error))} characters") from error
            return False
        except Exception as error:
            raise Escaped(f"{type(error).__name__}: {str(error)[:300]}") from error

    def _scale(self, data: bytes) -> bool:
        path = self.folder / "read.safetensors"
        path.write_bytes(data)
        own_scale(self.model, {"read": path})
        model = load_scale(path)
        scale = model(torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0.0, 3.0, 1e9]), 0.4)
        if not ((scale >= model.config.min_scale) & (scale <= model.config.max_scale)).all():
            raise Escaped(f"a scale out of its bounds: {scale}")
        schedule.next_on_training_grid(torch.tensor([0.5, 1.0]), model.info)
        if not data.startswith(b"PK") and load_info(path) != model.info:
            raise Escaped("a header that says something else than the whole file")
        return True

    def _profile(self, data: bytes) -> bool:
        folder = self.folder / "profile"
        folder.mkdir(exist_ok=True)
        (folder / "read.safetensors").write_bytes(data)
        profile = load_folder(folder)
        with contextlib.suppress(AnnealingError):
            profile.require_usable()
        steps_of_grid(PATHS[profile.kind], profile.settings.training_grid)
        return True
