"""Draws the pictures of the help pages, web/docs/images/: those that the nodes named in help_pictures.json show.

`tools/dev.py pictures` runs this in ComfyUI's own Python, against the server that it started.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from client import run_workflow
from devkit import ROOT
from PIL import Image

FOLDER = ROOT / "web" / "docs" / "images"


def main() -> None:
    workflow = json.loads(Path(__file__).with_name("help_pictures.json").read_text(encoding="utf-8"))
    for node, (file, *_) in run_workflow(sys.argv[1], workflow).items():
        path = FOLDER / f"{node}.png"
        picture = Image.open(io.BytesIO(file)).convert("RGB").quantize(256, dither=Image.Dither.NONE)  # it is small so
        picture.save(path, optimize=True)
        print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
