#!/usr/bin/env python3
"""Everything a fresh machine needs, with the standard library only.

    python tools/dev.py demo     pictures with and without annealing guidance, made in a real ComfyUI; --help for more
    python tools/dev.py test     all the tests, in the same ComfyUI; further arguments go to pytest
    python tools/dev.py bench    the short benchmarks (10 minutes); --full for all of them (a night); or one: bench quality
    python tools/dev.py train    trains the demo model again: train text autoencoder judge flow epsilon
    python tools/dev.py scale    fits the demo's bundled scales again: scale epsilon flow
    python tools/dev.py locales  writes the English texts of the nodes again, for the translators
    python tools/dev.py pictures draws the pictures of the help pages again
    python tools/dev.py workflows    saves the templates in workflows/ as ComfyUI's own interface does: workflows 01 02
    python tools/dev.py compatibility   runs the compatibility tests and writes docs/COMPATIBILITY.md from them
    python tools/dev.py pack     the archive for ComfyUI's registry, validated, with its bill of materials; --release to publish
    python tools/dev.py check    style, types (mypy), workflow files (actionlint)
    python tools/dev.py audit    known vulnerabilities of what the tools install (pip-audit)
    python tools/dev.py comfyui  a ComfyUI with its requirements: comfyui FOLDER --version 0.3.75
    python tools/dev.py publish  to ComfyUI's registry; the public workflow does this
    python tools/dev.py fuzz     hostile files for the readers of scales and profiles: fuzz --minutes 10

The first run installs Python packages and a ComfyUI into a cache folder outside the repository. `ANNEALING_CACHE` names another
folder; `COMFYUI_PATH` uses an existing ComfyUI, with its own Python, and writes nothing into it.
"""

import sys

# Above everything else, and in words that an old Python understands too.
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit("This needs Python 3.10 or newer and this is Python %d.%d: run it with a newer one." % sys.version_info[:2])  # noqa: UP031

import argparse
import errno
import json
import os
import shutil
import signal
import tempfile
from functools import partial
from pathlib import Path

from devkit import ROOT, SetupError, archive, quality
from devkit.host import Host, cache_folder, make_comfyui, prepare_host, tool_python
from devkit.process import output_of, run_attached
from devkit.server import Server, base_folder

# Benchmark to arguments, in their order; the full ones take a night on two cores, most of it quality's.
FEW = ("--steps", "20", "--pictures", "64", "--methods", "no guidance", "CFG", "CFG++", "annealing")
SHORT_BENCHMARKS = {"quality": FEW, "cost": ()}
FULL_BENCHMARKS = {"quality": (), "cost": ("--seconds", "8"), "strength": ()}


def demo(*arguments: str) -> int:
    """Start the server, run the demo workflow, name the picture; with `--serve`, leave the server running until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="dev.py demo", description="Makes the demo picture in a real ComfyUI.")
    parser.add_argument("--variant", choices=["epsilon", "flow"], default="epsilon", help="which demo model (epsilon)")
    parser.add_argument("--output", type=Path, default=ROOT / "demo-output", help="folder for the pictures (demo-output)")
    parser.add_argument("--serve", action="store_true", help="leave ComfyUI running afterwards and print its address")
    options = parser.parse_args(arguments)
    host = prepare_host(packages=())
    print("Starting ComfyUI ...", flush=True)
    with Server(host, base_folder(ROOT), ROOT) as server:
        script = ["tools/demo.py", server.address, options.output.resolve(), "--variant", options.variant]
        status = run_attached([str(host.python), *map(str, script)], host.environment(), folder=ROOT)
        if status != 0:
            print(f"ComfyUI's log: {server.log}", file=sys.stderr)
        elif options.serve:
            print(f"ComfyUI is running at {server.address} (Ctrl-C stops it).", flush=True)
            server.wait()
    return status


def bench(*arguments: str) -> int:
    """Run a benchmark or a study; without a name the short benchmarks, with `--full` all of them."""
    if arguments in ((), ("--full",)):
        return bench_all(full=bool(arguments))
    scripts = {path.stem: path for path in (ROOT / "benchmarks").glob("*.py")}
    scripts |= {result.stem: result.with_suffix(".py") for result in (ROOT / "benchmarks" / "studies").glob("*.json")}
    name, *rest = arguments
    if name not in scripts:
        raise SetupError(f"there is no benchmark {name!r}: choose one of {', '.join(sorted(scripts))}")
    return run_in_host(scripts[name], *rest)


def bench_all(full: bool) -> int:
    """Run the benchmarks one after the other, then write their page: into the repository if full, else into bench-output/."""
    folder = ROOT / "benchmarks" / "results" if full else ROOT / "bench-output"
    for name, arguments in (FULL_BENCHMARKS if full else SHORT_BENCHMARKS).items():
        print(f"\n{name}", flush=True)
        if status := bench(name, *arguments, "--output", str(folder / f"{name}.json")):
            return status
    return bench("page", *([] if full else [str(folder)]))


def fuzz(*arguments: str) -> int:
    """Run tools/fuzz.py, guided by coverage where atheris is available for this Python."""
    atheris = ""
    try:
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        atheris = output_of([str(tool_python("atheris")), "-c", code])[1].strip()
    except SetupError as error:
        print(f"Without atheris, so without guidance by coverage: {error}", flush=True)
    return run_in_host("tools/fuzz.py", *arguments, path=atheris)


def pack(*arguments: str) -> int:
    """Make dist/<name>-<version>.zip and its bill of materials; with `--release`, refuse what must not be published."""
    parser = argparse.ArgumentParser(prog="dev.py pack", description="Makes the archive for ComfyUI's registry.")
    parser.add_argument("--release", action="store_true", help="refuse a state that must not be published")
    if parser.parse_args(arguments).release:
        archive.require_releasable(ROOT)
    target = ROOT / "dist" / f"{archive.NAME}-{archive.version_of(ROOT)}.zip"
    archive.pack(ROOT, target)
    bill = target.with_suffix(".cdx.json")
    bill.write_text(json.dumps(archive.bill_of_materials(ROOT), indent=1), encoding="utf-8")
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB, {len(archive.archive_files(ROOT))} files)\n{bill}")
    return 0


def comfyui(*arguments: str) -> int:
    """Make a ComfyUI where the user wants one."""
    parser = argparse.ArgumentParser(prog="dev.py comfyui", description="Makes a ComfyUI, with its requirements in FOLDER/venv.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--version", default="master", help="0.3.75, or a branch (master)")
    options = parser.parse_args(arguments)
    if options.folder.exists():
        raise SetupError(f"{options.folder} is there already: name a folder that is not.")
    options.folder.mkdir(parents=True)
    try:
        make_comfyui(options.folder.resolve(), options.version)
    except BaseException:
        shutil.rmtree(options.folder)
        raise
    return 0


def run_in_host(*command: str | Path, path: str = "", host: Host | None = None) -> int:
    """Run ComfyUI's own Python in the repository's folder, with COMFYUI_PATH set. path: a folder to import from besides."""
    host = host or prepare_host()
    return run_attached([str(host.python), *map(str, command)], host.environment(str(ROOT / "tools"), path), folder=ROOT)


def run_beside_server(script: str, *arguments: str) -> int:
    """Run a script with the address of a server started for it."""
    # A folder of its own: a scale that an earlier run trained would be found, and used in the place of the bundled one.
    with tempfile.TemporaryDirectory() as base, Server(host := prepare_host(), Path(base), ROOT) as server:
        return run_in_host(script, server.address, *arguments, host=host)


COMMANDS = {
    "demo": demo,
    "test": partial(run_in_host, "-m", "pytest"),
    "bench": bench,
    "train": partial(run_in_host, "-m", "devkit.in_process", "shapes.train"),
    "scale": partial(run_in_host, "-m", "devkit.in_process", "training.bundled_scales"),
    "locales": partial(run_in_host, "tools/node_texts.py"),
    "pictures": partial(run_beside_server, "tools/pictures.py"),
    "workflows": partial(run_beside_server, "tools/workflows.py"),
    # The page's own test comes last.
    "compatibility": partial(run_in_host, "-m", "pytest", "tests/beside", "tests/compatibility", "--write-page"),
    "pack": pack,
    "check": quality.check,
    "audit": quality.audit,
    "comfyui": comfyui,
    "publish": quality.publish,
    "fuzz": fuzz,
}


def main(arguments: list[str]) -> int:
    command, *rest = arguments or ["none"]
    if command not in COMMANDS or rest and command in ("check", "audit", "publish"):  # which take no arguments
        print(__doc__)
        return 0 if command in ("--help", "-h") else 2
    # A polite request to end becomes an exception, so that the server is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if command not in ("bench", "train", "scale"):
        # Models this small gain little from more threads, which wait for each other on a busy machine: 15 times slower.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        return COMMANDS[command](*rest)
    except SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except OSError as error:
        advice = "name another cache folder with ANNEALING_CACHE and run this again"
        if error.errno == errno.ENOSPC:
            advice = f"free some space, or {advice}"
        print(f"dev.py: {error.filename or cache_folder()}: {error.strerror or error}: {advice}.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
