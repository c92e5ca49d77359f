"""Gives the readers of scales and profiles hostile files for as long as one likes: `python tools/dev.py fuzz --minutes 10`.

Coverage-guided where atheris is installed for this Python (Linux, macOS); otherwise the same changes without guidance. Ends with
an error at the first file that neither loads nor is refused in words, takes too long, needs too much memory, runs code, or makes
a file be read or written elsewhere; the file is kept for a test.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import FrameType

from devkit import ROOT
from devkit.in_process import import_comfyui, import_pack

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.", "socket.", "ctypes.", "pty.", "urllib.")
SECONDS = 10.0  # for one file; a few milliseconds are usual
MEGABYTES = 500.0  # more than at the start


def peak_megabytes() -> float:
    """The most memory that this process has ever had; 0 where that is not told (Windows)."""
    with contextlib.suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return 0.0


class Watch:
    """Tells, through Python's audit hooks, what the code inside `with watch:` makes Python do. What is forbidden does not happen:
    it raises AssertionError. folder: the only one in which files may be opened."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.watching = folder, False
        self.loaded: set[str] = set()
        sys.addaudithook(self._audit)

    def __enter__(self) -> None:
        self.loaded = set(sys.modules)
        self.watching = True

    def __exit__(self, *_: object) -> None:
        self.watching = False

    def _audit(self, event: str, arguments: tuple) -> None:
        if not self.watching:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = Path(os.fsdecode(arguments[0]))
            # Sources are opened for tracebacks, and where torch imports a part of itself.
            if not path.is_relative_to(self.folder) and path.suffix not in (".py", ".pyc"):
                self._forbid(f"{path} was opened")
        elif event == "exec":
            if not self._is_known(_imported()):
                self._forbid(f"code was run: {arguments[0]}")
        elif event.startswith(FORBIDDEN) or event == "import" and not self._is_known(arguments[0]):
            self._forbid(f"{event} {str(arguments)[:200]}")

    def _is_known(self, module: str) -> bool:
        """Whether it is a part of a package that was there before."""
        return module.partition(".")[0] in self.loaded

    def _forbid(self, what: str) -> None:
        self.watching = False
        raise AssertionError(what)


def _imported() -> str:
    """The module that Python is importing, "" for none: it runs the module's code, which may run text as dataclasses do."""
    frame: FrameType | None = sys._getframe()
    while frame and (frame.f_code.co_filename, frame.f_code.co_name) != ("<frozen importlib._bootstrap>", "_find_and_load"):
        frame = frame.f_back
    return frame.f_locals["name"] if frame else ""


class Judge:
    """Reads one file after another and counts. A judgement that fails keeps the file and ends the program."""

    def __init__(self, folder: Path, minutes: float, files: int) -> None:
        from hostile_files import Readers

        self.readers, self.minutes, self.files = Readers(folder), minutes, files
        self.seeds = [(kind, seed) for kind, seeds in self.readers.seeds.items() for seed in seeds]
        # What is imported for good files and for refusals is imported before anything is watched.
        for kind, seed in self.seeds:
            assert self.readers.read(kind, seed)
            for data in (b"", b"x" * 40, b"PK\x05\x06" + bytes(18)):
                assert not self.readers.read(kind, data)
        self.inputs = self.loaded = 0
        self.slowest = 0.0
        self.memory, self.start = peak_megabytes(), time.monotonic()
        self.watch = Watch(folder)

    def read(self, kind: str, data: bytes) -> None:
        began = time.monotonic()
        try:
            with self.watch:
                self.loaded += self.readers.read(kind, data)
        except BaseException as error:
            self.complain(f"{type(error).__name__}: {error}.", kind, data)
        took = time.monotonic() - began
        self.inputs, self.slowest = self.inputs + 1, max(self.slowest, took)
        grown = peak_megabytes() - self.memory
        if took > SECONDS or grown > MEGABYTES:
            self.complain(f"It took {took:.1f} s, and {grown:.0f} MB more than at the start.", kind, data)
        minutes = (time.monotonic() - self.start) / 60
        ended = minutes > self.minutes and self.inputs >= self.files
        if ended or self.inputs % 20_000 == 0:
            print(
                f"{self.inputs:,} files in {minutes:.1f} minutes: {self.loaded:,} loaded, the others refused; the slowest took "
                f"{self.slowest:.2f} s; {grown:.0f} MB more than at the start.",
                flush=True,
            )
        if ended:
            print("No complaint.", flush=True)
            os._exit(0)  # atheris has no other end

    def complain(self, why: str, kind: str, data: bytes) -> None:
        kept = ROOT / f"fuzz-{kind}-{time.time_ns()}.bin"
        kept.write_bytes(data)
        print(f"\n{why} The file is kept as {kept}.", flush=True)
        os._exit(1)


def guide(judge: Judge, atheris, corpus: Path, seed: int) -> None:
    """Let atheris choose: what reached something new is changed further. A file's first byte says which reader it is for."""
    from hostile_files import mutated

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        kind, good = chance.choice(judge.seeds)
        # What reached something new is mostly broken, and what is broken reaches nothing that comes after the checks.
        again = data[1:] and chance.random() < 0.5
        changed = data[:1] + mutated(data[1:], chance) if again else bytes([kind == "profile"]) + mutated(good, chance)
        return changed[:max_size]

    corpus.mkdir()
    for number, (kind, good) in enumerate(judge.seeds):
        (corpus / str(number)).write_bytes(bytes([kind == "profile"]) + good)
    options = ["-max_len=100000", "-timeout=60", "-mutate_depth=1", "-verbosity=0", f"-seed={seed + 1}"]

    def read(data: bytes) -> None:
        judge.read("profile" if data[:1] == b"\1" else "scale", data[1:])

    atheris.Setup(["fuzz", *options, str(corpus)], read, custom_mutator=change)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="at least (10)")
    parser.add_argument("--files", type=int, default=0, help="at least, however long it takes (0)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import_comfyui(Path(os.environ["COMFYUI_PATH"]), cpu=True)
    try:
        import atheris
    except ImportError:
        atheris = None
    with atheris.instrument_imports(include=["annealing_guidance_pack"]) if atheris else contextlib.nullcontext():
        import_pack(ROOT)
        import annealing_guidance_pack.models.scale_file
        import annealing_guidance_pack.training.shards  # noqa: F401
    from hostile_files import mutated

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # zipfile's, of doubled names
    with tempfile.TemporaryDirectory(prefix="annealing-fuzz-") as folder:
        judge = Judge(Path(folder), options.minutes, options.files)
        print(f"{'Guided by coverage (atheris)' if atheris else 'Without guidance'}, seed {options.seed}.", flush=True)
        if atheris:
            guide(judge, atheris, Path(folder, "corpus"), options.seed)
        chance = random.Random(options.seed)
        while True:  # until the judge ends it
            kind, seed = chance.choice(judge.seeds)
            judge.read(kind, mutated(seed, chance))


if __name__ == "__main__":
    main()
