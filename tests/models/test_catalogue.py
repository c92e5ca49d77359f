"""The catalogue's fetch, against a real https server on the loopback address."""

import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import annealing_guidance_pack
import pytest
from annealing_guidance_pack.models import catalogue
from annealing_guidance_pack.models.catalogue import CatalogueEntry, fetch, find, obtain
from annealing_guidance_pack.models.errors import AnnealingError
from loopback import CERTIFICATE, Loopback, body, redirect

CONTENT = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """No proxy, and the loopback server's certificate among the trusted ones (OpenSSL's own variable)."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.delenv(catalogue.OFFLINE_VARIABLE, raising=False)


@pytest.fixture
def site():
    with Loopback().running() as site:
        site.answers["/deep/original.pt"] = body(CONTENT)
        yield site


@pytest.fixture
def entry(site):
    return CatalogueEntry(
        name="A scale (downloads 0.3 MB)",
        file_name="kept_as.pt",
        url=f"{site.address}/deep/original.pt",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


def refused(entry, folder, progress=None):
    """The message of a fetch that fails: it tells how to get the file by hand, and nothing stays behind."""
    before = sorted(folder.iterdir()) if folder.is_dir() else None
    with pytest.raises(AnnealingError) as caught:
        fetch(entry, folder, progress)
    assert (sorted(folder.iterdir()) if folder.is_dir() else None) == before
    message = str(caught.value)
    assert entry.url in message and str(folder) in message and entry.sha256 in message
    assert not re.search(r"Errno|WinError|SSL|urlopen|\wError\b|Incomplete", message), "an error in words, not the system's own"
    return message


def test_the_one_entry_is_the_authors_file_at_the_pinned_commit():
    [entry] = catalogue.CATALOGUE
    assert entry.url.startswith("https://raw.githubusercontent.com/annealing-guidance/annealing-guidance/0381e972a075cc3685d5")
    assert entry.size == 630_081
    assert entry.sha256 == "f55006de3180651251dd86d0a81b7bfae88f45e6beed241355b0fdcc63626af1"
    assert "downloads 0.6 MB" in entry.name
    assert entry.file_names[1] == "checkpoint.pt"


def test_the_authors_file_is_recognised_where_it_was_placed_by_hand(official_checkpoint, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(official_checkpoint.read_bytes())
    assert find(catalogue.OFFICIAL_SDXL, [tmp_path / "nowhere", tmp_path]) == tmp_path / "checkpoint.pt"


def test_fetching_once(site, entry, tmp_path):
    steps = []
    path = obtain(entry, [tmp_path / "new" / "folder"], lambda done, total: steps.append((done, total)))
    assert path == tmp_path / "new" / "folder" / "kept_as.pt"
    assert path.read_bytes() == CONTENT and list(path.parent.iterdir()) == [path]
    assert [done for done, _ in steps] == sorted({done for done, _ in steps}) and steps[-1] == (len(CONTENT), len(CONTENT))
    assert obtain(entry, [path.parent]) == path
    assert site.requests == ["/deep/original.pt"]


@pytest.mark.parametrize("name", ["kept_as.pt", "original.pt"])
def test_a_file_placed_by_hand_is_used_without_a_fetch(site, entry, tmp_path, name):
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / name).write_bytes(CONTENT)
    assert obtain(entry, [tmp_path / "first", tmp_path / "second"]) == tmp_path / "second" / name
    assert site.requests == []


@pytest.mark.parametrize("wrong", [b"", CONTENT[:-1], CONTENT[:-1] + b"!"])
def test_a_file_with_other_content_is_not_used(entry, tmp_path, wrong, caplog):
    (tmp_path / "original.pt").write_bytes(wrong)
    (tmp_path / "kept_as.pt").write_bytes(wrong)
    assert obtain(entry, [tmp_path]).read_bytes() == CONTENT
    assert (tmp_path / "original.pt").read_bytes() == wrong  # it may be the user's own
    assert str(tmp_path / "original.pt") in caplog.text


def test_offline_forbids_the_fetch_but_not_the_file(site, entry, tmp_path, monkeypatch):
    monkeypatch.setenv("ANNEALING_GUIDANCE_OFFLINE", "1")
    assert "ANNEALING_GUIDANCE_OFFLINE" in refused(entry, tmp_path)
    (tmp_path / "original.pt").write_bytes(CONTENT)
    assert obtain(entry, [tmp_path]).is_file()
    assert site.requests == []
    monkeypatch.setenv("ANNEALING_GUIDANCE_OFFLINE", "0")
    assert fetch(entry, tmp_path).is_file()


@pytest.mark.parametrize("wrong", [CONTENT[:-1], CONTENT[:-1] + b"!", b"<html>404</html>"])
def test_other_content_is_not_kept(site, entry, tmp_path, wrong):
    site.answers["/deep/original.pt"] = body(wrong)
    assert "does not have the expected SHA-256" in refused(entry, tmp_path)


def test_more_bytes_than_listed_are_not_read(site, entry, tmp_path):
    site.answers["/deep/original.pt"] = body(CONTENT + bytes(50_000_000))
    assert "sends more than" in refused(entry, tmp_path)


def test_a_missing_file(site, entry, tmp_path):
    del site.answers["/deep/original.pt"]
    assert "Not Found" in refused(entry, tmp_path)


def test_a_connection_that_is_cut(site, entry, tmp_path):
    def cut(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(CONTENT)))
        request.end_headers()
        request.wfile.write(CONTENT[:1000])
        request.connection.close()

    site.answers["/deep/original.pt"] = cut
    refused(entry, tmp_path)


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_a_server_in_trouble(site, entry, tmp_path, status):
    site.answers["/deep/original.pt"] = lambda request: request.send_error(status)
    assert f"the server answered {status}" in refused(entry, tmp_path)


def drop_the_line(request):
    """In the middle of the encrypted stream, without the farewell that TLS has."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(CONTENT)))
    request.end_headers()
    request.wfile.write(CONTENT[:100_000])
    os.close(request.connection.detach())


def test_a_line_that_is_dropped(site, entry, tmp_path):
    site.answers["/deep/original.pt"] = drop_the_line
    refused(entry, tmp_path)


def test_a_server_that_hangs_up_before_tls_is_spoken(entry, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=lambda: listening.accept()[0].close(), daemon=True).start()
        address = f"https://127.0.0.1:{listening.getsockname()[1]}/a.pt"
        hung_up = CatalogueEntry(entry.name, entry.file_name, address, 1, entry.sha256)
        assert re.search("no secure connection|the connection was cut", refused(hung_up, tmp_path))


@pytest.mark.parametrize("trouble", [drop_the_line, lambda request: request.send_error(500), body(b"other")])
def test_a_second_try_works(site, entry, tmp_path, trouble):
    good = site.answers["/deep/original.pt"]
    site.answers["/deep/original.pt"] = trouble
    refused(entry, tmp_path)
    site.answers["/deep/original.pt"] = good
    assert fetch(entry, tmp_path).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["kept_as.pt"]


def test_no_network(entry, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = CatalogueEntry(entry.name, entry.file_name, f"https://127.0.0.1:{unused.getsockname()[1]}/a.pt", 1, entry.sha256)
        assert "refused" in refused(nobody, tmp_path)


def test_a_name_that_is_not_found(entry, tmp_path):
    unknown = CatalogueEntry(entry.name, entry.file_name, "https://nowhere.invalid/a.pt", 1, entry.sha256)
    assert "the server's name was not found" in refused(unknown, tmp_path)


def test_plain_http_is_refused(site, entry, tmp_path):
    plain = CatalogueEntry(entry.name, entry.file_name, entry.url.replace("https", "http"), entry.size, entry.sha256)
    assert "only https" in refused(plain, tmp_path)
    assert site.requests == []


def test_a_certificate_that_nobody_vouches_for(site, entry, tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    assert "the server's certificate is not trusted" in refused(entry, tmp_path)
    assert site.requests == []


def test_a_redirect_on_the_same_host_is_followed(site, entry, tmp_path):
    site.answers["/moved.pt"] = site.answers["/deep/original.pt"]
    site.answers["/deep/original.pt"] = redirect("/moved.pt")
    assert fetch(entry, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "elsewhere", ["http://127.0.0.1:1/a.pt", "https://localhost:1/a.pt", "file:///etc/hostname", "ftp://a/b"]
)
def test_a_redirect_elsewhere_is_refused(site, entry, tmp_path, elsewhere):
    site.answers["/deep/original.pt"] = redirect(elsewhere)
    assert elsewhere in refused(entry, tmp_path)


def test_a_redirect_to_itself_ends(site, entry, tmp_path):
    site.answers["/deep/original.pt"] = redirect("/deep/original.pt")
    refused(entry, tmp_path)
    assert len(site.requests) < 50


def test_silence_ends_in_a_time_out(site, entry, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "SILENCE_SECONDS", 0.3)
    site.answers["/deep/original.pt"] = lambda request: time.sleep(2)
    assert "timed out" in refused(entry, tmp_path)


def test_bytes_that_trickle_end_in_a_time_out(site, entry, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "TOTAL_SECONDS", 0.5)

    sent = []

    def trickle(request):
        request.send_response(200)
        request.end_headers()
        for index in range(200):
            request.wfile.write(CONTENT[index : index + 1])
            sent.append(index)
            time.sleep(0.05)

    site.answers["/deep/original.pt"] = trickle
    assert "longer than" in refused(entry, tmp_path)
    assert len(sent) < 200  # it did not wait for the end


def test_an_interrupt_in_the_progress_stops_the_fetch(entry, tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(done, total):
        raise Interrupted

    with pytest.raises(Interrupted):
        fetch(entry, tmp_path, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(entry, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written to" in refused(entry, tmp_path / "file" / "folder")


TWO_AT_ONCE = """
import importlib.util, sys
models, folder, url, size, sha256 = sys.argv[1:]
spec = importlib.util.spec_from_file_location("models", models + "/__init__.py", submodule_search_locations=[models])
sys.modules["models"] = importlib.util.module_from_spec(spec)
from models.catalogue import CatalogueEntry, fetch
print(fetch(CatalogueEntry("a", "kept_as.pt", url, int(size), sha256), folder))
"""


def test_two_processes_at_once_end_with_one_good_file(site, entry, tmp_path):
    both_are_here = threading.Barrier(2, timeout=60)

    def together(request):
        both_are_here.wait()
        body(CONTENT)(request)

    site.answers["/deep/original.pt"] = together
    models = Path(annealing_guidance_pack.__file__).parent / "models"
    command = [sys.executable, "-c", TWO_AT_ONCE, str(models), str(tmp_path), entry.url, str(entry.size), entry.sha256]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == [str(tmp_path / "kept_as.pt")] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept_as.pt"]
    assert (tmp_path / "kept_as.pt").read_bytes() == CONTENT
