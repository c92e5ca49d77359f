"""Errors as users see them: words, and a type that is no path on their disk."""

import errno
import os
import re
import traceback

import pytest
from annealing_guidance_pack.models.errors import AnnealingError, in_words


def test_comfyui_shows_the_type_as_a_plain_word(comfyui):
    from execution import full_type_name

    assert full_type_name(AnnealingError) == "AnnealingError"


def test_a_log_shows_the_type_as_a_plain_word():
    assert traceback.format_exception_only(AnnealingError("Say it."))[-1] == "AnnealingError: Say it.\n"


def test_files_that_cannot_be_opened(tmp_path):
    (tmp_path / "file").touch()
    cases = {
        "it is not there": tmp_path / "missing",
        "a part of the path is a file, not a folder": tmp_path / "file" / "below",
        "the name is too long": tmp_path / ("a" * 5000),
    }
    if os.name == "nt":  # Windows has one error for all of them
        cases = {"it is not there": tmp_path / "missing"}
    for words, path in cases.items():
        with pytest.raises(OSError) as caught:
            path.read_bytes()
        assert in_words(caught.value) == words


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_no_error_of_the_system_shows_its_number(number):
    words = in_words(OSError(number, os.strerror(number), "/some/file"))
    assert words and not re.search(r"Errno|\[|/some/file", words)


@pytest.mark.parametrize("error", [OSError(), OSError("Tunnel failed"), TimeoutError(), ConnectionResetError(), UnicodeError()])
def test_errors_without_a_number_have_words_too(error):
    assert len(in_words(error)) > 5 and "Error" not in in_words(error)
