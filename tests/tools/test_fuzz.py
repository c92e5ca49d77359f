"""What `python tools/dev.py fuzz` watches: an attack on a reader is complained of and does not happen."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz import Watch
from hostile_files import gadget_pickle


@pytest.fixture(scope="module")
def watch(tmp_path_factory) -> Watch:
    """One for all: Python cannot take an audit hook away again."""
    return Watch(tmp_path_factory.mktemp("watched"))


ATTACKS: dict[str, Callable[[], object]] = {
    "a pickle calls os.system": lambda: pickle.loads(gadget_pickle("os system", "never")),
    "a pickle evaluates text": lambda: pickle.loads(b"\x80\x02cbuiltins\neval\nX\x04\x00\x00\x001+11\x85R."),
    "text is evaluated": lambda: eval("1 + 1"),  # noqa: S307
    "text is run under a real file's name": lambda: exec(compile("pass", __file__, "exec")),  # noqa: S102
    "a program is started": lambda: subprocess.run(["true"], check=False),
    "a program replaces this one": lambda: os.execv("/bin/true", ["true"]),
    "a file elsewhere is read": lambda: Path("/etc/hostname").read_bytes(),
    "a file elsewhere is written": lambda: Path("/tmp/never").write_bytes(b""),
    "a pickle imports a module": lambda: pickle.loads(b"\x80\x02cthis\ns\n."),
    "a module is imported": lambda: importlib.import_module("this"),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_is_complained_of_and_does_not_happen(watch, attack):
    with pytest.raises(AssertionError), watch:
        attack()


def test_what_readers_do_is_no_complaint(watch, monkeypatch):
    """Files in the folder; and a part of a package that is imported late, dataclasses in it and all."""
    monkeypatch.delitem(sys.modules, "fuzz_package.late", raising=False)
    package = watch.folder / "fuzz_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "late.py").write_text("import dataclasses\n@dataclasses.dataclass\nclass Late:\n    number: int\n")
    monkeypatch.syspath_prepend(str(watch.folder))
    importlib.import_module("fuzz_package")
    with watch:
        (watch.folder / "a file").write_bytes(b"content")
        assert (watch.folder / "a file").read_bytes() == b"content"
        assert importlib.import_module("fuzz_package.late").Late(1).number == 1
