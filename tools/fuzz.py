"""Gives the readers of scales and profiles hostile files for as long as one likes: `python tools/dev.py fuzz --minutes 10`.

Coverage-guided where atheris is installed for this Python (Linux, macOS); otherwise, or with --blind, the same changes without
guidance. Ends with an error at the first file that neither loads nor is refused in words, takes longer than --seconds, needs more
memory than --megabytes above the start, runs code, or makes a file be read or written elsewhere; the file is kept for a test.
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

from devkit.in_process import import_comfyui, import_pack

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.", "socket.", "ctypes.", "pty.", "urllib.", "exec")


def peak_megabytes() -> float:
    """The most memory that this process has ever had; 0 where that is not told (Windows)."""
    with contextlib.suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return 0.0


class Judge:
    """Reads one file after another and counts. A judgement that fails keeps the file and ends the program."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        from hostile_files import Readers

        self.readers, self.folder, self.options = Readers(folder), folder, options
        self.inputs = self.loaded = 0
        self.slowest = 0.0
        self.watched = False
        for kind, seeds in self.readers.seeds.items():
            for seed in seeds:
                assert self.readers.read(kind, seed)
                self.readers_refuse(kind)
        self.memory = peak_megabytes()
        self.start = time.monotonic()
        sys.addaudithook(self.audit)

    def readers_refuse(self, kind: str) -> None:
        """What is imported for refusals is imported before anything is watched."""
        for data in (b"", b"x" * 40, b"PK\x05\x06" + bytes(18)):
            assert not self.readers.read(kind, data)

    def audit(self, event: str, arguments: tuple) -> None:
        """What the file makes Python do, told by Python itself."""
        if not self.watched:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = Path(os.fsdecode(arguments[0]))
            # Sources are opened for tracebacks, and where torch imports a part of itself.
            if not path.is_relative_to(self.folder) and path.suffix not in (".py", ".pyc"):
                self.complain(f"{path} was opened")
        elif event.startswith(FORBIDDEN) or event == "import" and arguments[0].partition(".")[0] not in sys.modules:
            self.complain(f"{event} {str(arguments)[:200]}")

    def complain(self, why: str) -> None:
        self.watched = False
        raise AssertionError(why)

    def read(self, kind: str, data: bytes) -> None:
        began = time.monotonic()
        self.watched = True
        try:
            self.loaded += self.readers.read(kind, data)
        except BaseException as error:
            self.watched = False
            kept = ROOT / f"fuzz-{kind}-{time.time_ns()}.bin"
            kept.write_bytes(data)
            print(f"\n{error}\nThe file is kept as {kept}.", flush=True)
            os._exit(1)
        self.watched = False
        self.inputs += 1
        took = time.monotonic() - began
        self.slowest = max(self.slowest, took)
        grown = peak_megabytes() - self.memory
        if took > self.options.seconds or grown > self.options.megabytes:
            kept = ROOT / f"fuzz-{kind}-{time.time_ns()}.bin"
            kept.write_bytes(data)
            print(f"\nIt took {took:.1f} s, and {grown:.0f} MB more than at the start. The file is kept as {kept}.", flush=True)
            os._exit(1)
        if self.inputs % 20_000 == 0:
            print(self.told(), flush=True)
        if time.monotonic() - self.start > 60 * self.options.minutes:
            print(f"{self.told()} No complaint.", flush=True)
            os._exit(0)  # atheris has no other end

    def told(self) -> str:
        minutes = (time.monotonic() - self.start) / 60
        return (
            f"{self.inputs:,} files in {minutes:.1f} minutes: {self.loaded:,} loaded, the others refused; the slowest took "
            f"{self.slowest:.2f} s; {peak_megabytes() - self.memory:.0f} MB more than at the start."
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="dev.py fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=10.0, help="for one file (10; a few milliseconds are usual)")
    parser.add_argument("--megabytes", type=float, default=500.0, help="more than at the start (500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blind", action="store_true", help="without atheris")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import_comfyui(Path(os.environ["COMFYUI_PATH"]), cpu=True)
    atheris = None
    if not options.blind:
        with contextlib.suppress(ImportError):
            import atheris
    guided = atheris.instrument_imports(include=["annealing_guidance_pack"]) if atheris else contextlib.nullcontext()
    with guided:
        import_pack(ROOT)
        import annealing_guidance_pack.models.scale_file
        import annealing_guidance_pack.training.shards  # noqa: F401
    from hostile_files import mutated

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # zipfile's, of doubled names
    with tempfile.TemporaryDirectory(prefix="annealing-fuzz-") as folder:
        judge = Judge(Path(folder), options)
        seeds = [(kind, seed) for kind, several in judge.readers.seeds.items() for seed in several]
        print(f"{'Guided by coverage (atheris)' if atheris else 'Without guidance'}, seed {options.seed}.", flush=True)
        if atheris is None:
            chance = random.Random(options.seed)
            while True:
                kind, seed = chance.choice(seeds)
                judge.read(kind, mutated(seed, chance))

        def change(data: bytes, max_size: int, seed: int) -> bytes:
            """One more change of a file that reached something new; its first byte says which reader it is for."""
            chance = random.Random(seed)
            changed = data[:1] + mutated(data[1:], chance) if data[1:] else b"\0" + mutated(seeds[0][1], chance)
            return changed[:max_size]

        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, (kind, seed) in enumerate(seeds):
            (corpus / str(number)).write_bytes(bytes([kind == "profile"]) + seed)
        arguments = ["fuzz", f"-seed={options.seed + 1}", "-max_len=100000", "-timeout=60", "-verbosity=0", str(corpus)]
        atheris.Setup(
            arguments, lambda data: judge.read("profile" if data[:1] == b"\1" else "scale", data[1:]), custom_mutator=change
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
