#!/usr/bin/env python3
"""Everything a fresh machine needs, with the standard library only.

    python tools/dev.py demo     pictures with and without annealing guidance, made in a real ComfyUI
    python tools/dev.py test     all the tests, in the same ComfyUI
    python tools/dev.py bench    the short benchmarks (10 minutes); --full for all of them (a night); or one: bench quality
    python tools/dev.py train    trains the demo model again: train text autoencoder judge flow epsilon
    python tools/dev.py scale    fits the demo's bundled scales again: scale epsilon flow
    python tools/dev.py locales  writes the English texts of the nodes again, for the translators
    python tools/dev.py pictures draws the pictures of the help pages again
    python tools/dev.py workflows    saves the templates in workflows/ again, from ComfyUI's own interface
    python tools/dev.py compatibility   runs the compatibility tests and writes docs/COMPATIBILITY.md from them
    python tools/dev.py pack     the archive for ComfyUI's registry, validated, with its bill of materials; --release to publish
    python tools/dev.py check    style, types (mypy), workflow files (actionlint)
    python tools/dev.py audit    known weaknesses of what the tools install (pip-audit)
    python tools/dev.py comfyui  clones a ComfyUI with its requirements: comfyui FOLDER --version 0.3.75
    python tools/dev.py publish  to ComfyUI's registry; the public workflow does this
    python tools/dev.py fuzz     hostile files for the readers of scales and profiles: fuzz --minutes 10
    python tools/dev.py artwork  draws the registry's icon and banner again

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
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from devkit import SetupError, archive, benchmarks, quality
from devkit.cache import cache_folder
from devkit.environment import TEST_PACKAGES, prepare_host
from devkit.process import output_of, run_attached
from devkit.server import Server, base_folder
from devkit.tools import tool_python

ROOT = Path(__file__).resolve().parent.parent


def demo(options: argparse.Namespace) -> int:
    """Start the server, run the demo workflow, name the picture; with `--serve`, leave the server running until Ctrl-C."""
    host = prepare_host()
    if not options.serve:
        use_one_thread()
    base = base_folder(cache_folder(), ROOT)
    print("Starting ComfyUI ...", flush=True)
    with Server(host, base, ROOT, port=options.port) as server:
        script = ROOT / "tools" / "demo" / "run_demo.py"
        arguments = [server.address, str(options.output.resolve()), "--variant", options.variant]
        status = run_attached([str(host.python), str(script), *arguments], host.environment())
        if status != 0:
            print(f"ComfyUI's log: {server.log}", file=sys.stderr)
        if status == 0 and options.serve:
            print(f"ComfyUI is running at {server.address} (Ctrl-C stops it).", flush=True)
            server.wait()
    return status


def test(options: argparse.Namespace) -> int:
    """Run pytest over `tests/` with the same ComfyUI; tests/browser sets a browser up if it is asked for."""
    return run_pytest(*options.rest)


def compatibility(options: argparse.Namespace) -> int:
    """Run the tests whose results docs/COMPATIBILITY.md shows, and write it if they pass."""
    # The page's own test comes last.
    folders = [folder for folder in ("tests/beside", "tests/compatibility") if (ROOT / folder).is_dir()]
    return run_pytest(*folders, "--write-page", *options.rest)


def run_pytest(*arguments: str) -> int:
    host = prepare_host(packages=TEST_PACKAGES)
    use_one_thread()
    environment = {**host.environment(), "COMFYUI_PATH": str(host.comfyui)}
    return run_attached([str(host.python), "-m", "pytest", *arguments], environment, folder=ROOT)


def use_one_thread() -> None:
    """Models this small gain little from more threads, which wait for each other on a busy machine: 15 times slower."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def bench(options: argparse.Namespace) -> int:
    """Run a benchmark or a study with the same ComfyUI; without a name the short benchmarks, with `--full` all of them."""
    if not options.rest or options.rest == ["--full"]:
        return bench_all(full=bool(options.rest))
    scripts = {path.stem: path for path in (ROOT / "benchmarks").glob("*.py")}
    scripts |= {result.stem: result.with_suffix(".py") for result in (ROOT / "benchmarks" / "studies").glob("*.json")}
    name, *arguments = options.rest
    if name not in scripts:
        raise SetupError(f"there is no benchmark {name!r}: choose one of {', '.join(sorted(scripts))}")
    return run_in_host(str(scripts[name]), *arguments)


def bench_all(full: bool) -> int:
    """Run the benchmarks one after the other, then write their page: into the repository if full, else into bench-output/."""
    folder = ROOT / "benchmarks" / "results" if full else ROOT / "bench-output"
    page = ROOT / "docs" / "BENCHMARKS.md" if full else folder / "BENCHMARKS.md"
    for name, arguments in (benchmarks.FULL if full else benchmarks.SHORT).items():
        print(f"\n{name}", flush=True)
        script = str(ROOT / "benchmarks" / f"{name}.py")
        if status := run_in_host(script, *arguments, "--output", str(folder / f"{name}.json")):
            return status
    compared = [] if full else ["--beside", str(ROOT / "benchmarks" / "results")]
    return run_in_host(str(ROOT / "benchmarks" / "page.py"), "--results", str(folder), "--output", str(page), *compared)


def train(options: argparse.Namespace) -> int:
    """Train parts of the demo model; see shapes/train.py."""
    return run_in_host(str(ROOT / "tools" / "train_demo.py"), *options.rest)


def scale(options: argparse.Namespace) -> int:
    """Fit the demo's scale networks with the same ComfyUI; see training/bundled_scales.py."""
    return run_in_host(str(ROOT / "tools" / "shapes_scale.py"), *options.rest)


def locales(options: argparse.Namespace) -> int:
    """Write locales/en from the nodes' schemas."""
    return run_in_host(str(ROOT / "tools" / "node_texts.py"), *options.rest)


def pictures(options: argparse.Namespace) -> int:
    """Draw the pictures of the help pages; see tools/help_pictures.py."""
    return run_in_host(str(ROOT / "tools" / "help_pictures.py"), *options.rest, packages=("matplotlib",))


def fuzz(options: argparse.Namespace) -> int:
    """Run tools/fuzz.py, guided by coverage where atheris can be had for this Python."""
    guide = None
    try:
        guide = tool_python("fuzz")
    except SetupError as error:
        print(f"Without atheris, so without guidance by coverage: {error}", flush=True)
    use_one_thread()
    packages = output_of([str(guide), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])[1].strip() if guide else ""
    return run_in_host(str(ROOT / "tools" / "fuzz.py"), *options.rest, path=packages)


def artwork(options: argparse.Namespace) -> int:
    """Draw the icon and the banner; see tools/artwork.py."""
    return run_in_host(str(ROOT / "tools" / "artwork.py"), *options.rest, packages=("matplotlib",))


def pack(options: argparse.Namespace) -> int:
    """Make dist/<name>-<version>.zip and its bill of materials; with `--release`, refuse what must not be published."""
    if options.release and (problems := archive.release_problems(ROOT)):
        raise SetupError(f"not ready to be published: {' '.join(problems)}")
    target = ROOT / "dist" / f"{archive.NAME}-{archive.version_of(ROOT)}.zip"
    archive.pack(ROOT, target)
    bill = target.with_suffix(".cdx.json")
    bill.write_text(json.dumps(archive.bill_of_materials(ROOT), indent=1), encoding="utf-8")
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB, {len(archive.archive_files(ROOT))} files)\n{bill}")
    return 0


def check(_options: argparse.Namespace) -> int:
    return quality.check(ROOT, prepare_host(packages=TEST_PACKAGES))


def audit(_options: argparse.Namespace) -> int:
    return quality.audit(prepare_host())


def publish(_options: argparse.Namespace) -> int:
    if problems := archive.release_problems(ROOT):
        raise SetupError(f"not ready to be published: {' '.join(problems)}")
    return quality.publish(ROOT)


def comfyui(options: argparse.Namespace) -> int:
    quality.fetch_comfyui(options.folder.resolve(), options.version)
    return 0


def workflows(options: argparse.Namespace) -> int:
    """Build the templates in the interface of a server started for it, in a headless browser."""
    host = prepare_host(packages=("playwright", "pillow", "matplotlib"))
    use_one_thread()
    script = ROOT / "tools" / "workflows" / "save.py"
    # A folder of its own: a scale that an earlier run trained would be found, and used in the place of the bundled one.
    with tempfile.TemporaryDirectory() as base, Server(host, Path(base), ROOT, cpu=True) as server:
        return run_attached([str(host.python), str(script), server.address, *options.rest], host.environment(), folder=ROOT)


def run_in_host(*arguments: str, path: str = "", packages: Sequence[str] = ()) -> int:
    """Run ComfyUI's own Python in the repository's folder, with COMFYUI_PATH set.

    path: a folder to import from besides. packages: what is needed besides ComfyUI's own requirements.
    """
    host = prepare_host(packages)
    environment = {**host.environment(), "COMFYUI_PATH": str(host.comfyui)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment["PYTHONPATH"], path]))
    return run_attached([str(host.python), *arguments], environment, folder=ROOT)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    demo_parser = commands.add_parser("demo", help="make the demo picture in a real ComfyUI")
    demo_parser.add_argument("--variant", choices=["epsilon", "flow"], default="epsilon", help="which demo model (epsilon)")
    demo_parser.add_argument("--output", type=Path, default=ROOT / "demo-output", help="folder for the pictures (demo-output)")
    demo_parser.add_argument("--port", type=int, help="port of the server (a free one)")
    demo_parser.add_argument("--serve", action="store_true", help="leave ComfyUI running afterwards and print its address")
    demo_parser.set_defaults(run=demo)
    test_parser = commands.add_parser("test", help="run all tests; further arguments go to pytest", add_help=False)
    test_parser.set_defaults(run=test)
    for command, run, text in (
        ("bench", bench, "run the benchmarks, in short, with --full, or one by its name"),
        ("train", train, "train the demo model again, or parts of it"),
        ("scale", scale, "fit the demo's bundled scales again: epsilon, flow or both"),
        ("locales", locales, "write the nodes' English texts, locales/en, from their schemas"),
        ("pictures", pictures, "draw the pictures of the help pages again"),
        ("fuzz", fuzz, "give the readers of scales and profiles hostile files"),
        ("artwork", artwork, "draw the registry's icon and banner again"),
        ("workflows", workflows, "save the templates in workflows/ again"),
        ("compatibility", compatibility, "run the compatibility tests and write docs/COMPATIBILITY.md from them"),
    ):
        commands.add_parser(command, help=text, add_help=False).set_defaults(run=run)
    for command, run, text in (
        ("check", check, "check style, types and workflow files"),
        ("audit", audit, "look for known weaknesses of what the tools install"),
        ("publish", publish, "publish to ComfyUI's registry"),
    ):
        commands.add_parser(command, help=text).set_defaults(run=run)
    comfyui_parser = commands.add_parser("comfyui", help="clone a ComfyUI, with its requirements in FOLDER/venv")
    comfyui_parser.add_argument("folder", type=Path)
    comfyui_parser.add_argument("--version", default="master", help="0.3.75, or a branch (master)")
    comfyui_parser.set_defaults(run=comfyui)
    pack_parser = commands.add_parser("pack", help="make the archive for ComfyUI's registry")
    pack_parser.add_argument("--release", action="store_true", help="refuse a state that must not be published")
    pack_parser.set_defaults(run=pack)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command in ("demo", "pack", "check", "audit", "publish", "comfyui"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    return options


def _stop(signal_number: int, _frame: object) -> None:
    """Turn a polite request to end into an exception, so that the server is stopped on the way out."""
    sys.exit(128 + signal_number)


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, _stop)
    try:
        return options.run(options)
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
