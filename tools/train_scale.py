"""Trains an annealing scale for a model of yours, without a server: `python tools/train_scale.py --help`.

Run it with ComfyUI's own Python. The ComfyUI is the one that this pack is installed in, or the one that COMFYUI_PATH names. Under
torchrun every process takes a GPU of its own:

    torchrun --nproc-per-node 4 tools/train_scale.py my_model --checkpoint sdxl.safetensors --pictures my_pictures/
"""

import importlib
import os
import signal
import sys
from pathlib import Path

from devkit import SetupError
from devkit.in_process import import_comfyui, import_pack

ROOT = Path(__file__).absolute().parent.parent  # not resolved: custom_nodes/ may hold a link to the pack


def comfyui_folder() -> Path:
    """COMFYUI_PATH, or the ComfyUI in whose custom_nodes/ this pack lies."""
    if named := os.environ.get("COMFYUI_PATH"):
        return Path(named).expanduser().resolve()
    if not (ROOT.parent.parent / "comfy" / "cli_args.py").is_file():
        sys.exit("train_scale.py: this pack does not lie in ComfyUI/custom_nodes/. Name your ComfyUI with COMFYUI_PATH.")
    return ROOT.parent.parent


def take_own_gpu(torch) -> None:
    """Under torchrun, before anything starts CUDA: of the visible GPUs only the one with this process's number."""
    count, number = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if "LOCAL_RANK" not in os.environ or count == 0:
        return
    if number >= count:
        sys.exit(f"train_scale.py: there are more processes than the {count} visible GPUs. Give --nproc-per-node {count}.")
    variable = "HIP_VISIBLE_DEVICES" if torch.version.hip else "CUDA_VISIBLE_DEVICES"
    visible = os.environ.get(variable) or ",".join(map(str, range(count)))
    os.environ[variable] = visible.split(",")[number]


def main() -> None:
    arguments, host_arguments = sys.argv[1:], []
    if "--" in arguments:
        host_arguments = arguments[arguments.index("--") + 1 :]
        arguments = arguments[: arguments.index("--")]
    comfyui = comfyui_folder()
    try:
        import torch
    except ImportError:
        sys.exit(f"train_scale.py: this Python ({sys.executable}) has no torch. Run it with the Python that runs your ComfyUI.")
    take_own_gpu(torch)
    devices = torch.cuda, torch.backends.mps, torch.xpu
    cpu = not any(device.is_available() for device in devices) and not {"--cpu", "--directml"} & {*host_arguments}
    try:
        import_comfyui(comfyui, cpu=cpu, arguments=host_arguments)
    except SetupError as error:
        sys.exit(f"train_scale.py: {error}")
    pack = import_pack(ROOT).__name__
    command = importlib.import_module(f"{pack}.training.command")
    errors = importlib.import_module(f"{pack}.models.errors")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        command.main(arguments, comfyui)
    except errors.AnnealingError as error:
        sys.exit(f"\ntrain_scale.py: {error}")
    except KeyboardInterrupt:
        print("\nStopped. What was measured is kept: the same command goes on from there.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
