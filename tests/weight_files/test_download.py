"""Downloads from a real server on loopback: each file once, whole and checked, or one line and nothing lost."""

import hashlib
import multiprocessing
import os
import pathlib

import numpy as np
import pytest

from kmaskrcnn.errors import WeightsError
from kmaskrcnn.weight_files import download
from kmaskrcnn.weight_files.download import Published, cache_folder, fetch
from tests.weight_files import server as servers

DATA = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for name in (download.OFFLINE, download.MIRROR):
        monkeypatch.delenv(name, raising=False)
    with servers.running() as server:
        server.files["/models/w-01.pth"] = DATA
        yield server


def published(server, sha256=SHA[:8], path="/models/w-01.pth"):
    return Published(server.base + path, sha256)


def kept(suffix=""):
    return cache_folder() / f"w-01.pth{suffix}"


def test_a_file_is_downloaded_once_and_checked_after(server):
    path = fetch(published(server))
    assert path == kept() and path.read_bytes() == DATA
    assert kept(".sha256").read_text() == f"{SHA}  w-01.pth\n"
    assert not kept(".part").exists() and not kept(".part.json").exists()
    fetch(published(server))
    assert server.requests == [("/models/w-01.pth", None)]
    path.write_bytes(DATA[:-1] + b"\0")
    with pytest.raises(WeightsError, match=rf"has changed since it was downloaded, .* not {SHA[:8]}: delete it"):
        fetch(published(server))


def test_without_a_published_sum_the_first_one_counts(server):
    fetch(published(server, ""))
    kept().write_bytes(b"another")
    with pytest.raises(WeightsError, match="has changed since"):
        fetch(published(server, ""))


def test_cut_connections_go_on_where_they_were(server):
    server.cut_after = 100_000
    assert fetch(published(server)).read_bytes() == DATA
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=200000-"]


def test_an_answer_that_holds_less_than_the_rest_is_not_the_whole_file(server):
    """Proxies answer a range in pieces; without a published sum nothing else would tell."""
    server.cut_after = server.most = 100_000
    assert fetch(published(server, "")).read_bytes() == DATA
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=200000-"]


def test_another_process_goes_on_with_what_is_there(server):
    kept().parent.mkdir(parents=True)
    kept(".part").write_bytes(DATA[:250_000])
    kept(".part.json").write_text('{"version": "\\"one\\""}')
    assert fetch(published(server)).read_bytes() == DATA
    assert server.requests == [("/models/w-01.pth", "bytes=250000-")]


@pytest.mark.parametrize("about", ['{"version": "\\"old\\""}', '{"version": "W/\\"one\\""}', "{", None])
def test_parts_of_another_version_are_not_mixed(server, about):
    kept().parent.mkdir(parents=True)
    kept(".part").write_bytes(b"x" * 250_000)
    if about:
        kept(".part.json").write_text(about)
    assert fetch(published(server, "")).read_bytes() == DATA


def test_a_part_longer_than_the_file_is_begun_anew(server):
    kept().parent.mkdir(parents=True)
    kept(".part").write_bytes(b"x" * 400_000)
    kept(".part.json").write_text('{"version": "\\"one\\""}')
    assert fetch(published(server)).read_bytes() == DATA


def test_a_server_without_ranges_sends_it_from_the_beginning(server):
    server.ranges, server.cut_after = False, 100_000
    with pytest.raises(WeightsError, match=r"cannot be downloaded, the connection is cut \(100000 bytes are kept"):
        fetch(published(server))
    server.cut_after = None
    assert fetch(published(server)).read_bytes() == DATA


def test_a_server_that_only_cuts_is_one_line(server):
    server.cut_after = 0
    with pytest.raises(
        WeightsError, match=r"/models/w-01\.pth: cannot be downloaded, .*; download it yourself to .*w-01"
    ):
        fetch(published(server))
    assert len(server.requests) == 3
    assert not kept().exists()


def test_a_wrong_sum_is_not_kept(server):
    with pytest.raises(WeightsError, match=rf"begins with {SHA[:8]}, not 00000000: .* not kept; download it yourself"):
        fetch(published(server, "00000000"))
    assert not kept().exists() and not kept(".part").exists()


def test_redirects_are_followed_and_resumed(server):
    server.redirects["/a"] = "/b"
    server.redirects["/b"] = server.base + "/models/w-01.pth"
    server.cut_after = 200_000
    file = Published(server.base + "/a", SHA[:8], "w-01.pth")
    assert fetch(file).read_bytes() == DATA
    assert ("/models/w-01.pth", "bytes=200000-") in server.requests
    server.redirects["/b"] = "/a"
    with pytest.raises(WeightsError, match="the server answered 302"):
        fetch(Published(server.base + "/a", "", "other"))


def test_no_such_file_and_no_server_are_one_line(server):
    with pytest.raises(WeightsError, match=r"/absent\.pth: the server answered 404 Not Found; download it yourself to"):
        fetch(published(server, path="/absent.pth"))
    with pytest.raises(WeightsError, match=r"^http://127\.0\.0\.1:9/w: cannot be downloaded, .*refused; .*models/w$"):
        fetch(Published("http://127.0.0.1:9/w"))
    with pytest.raises(WeightsError, match="not a URL to download from"):
        fetch(Published("https://example.org/w"), mirror="nonsense")


def test_a_page_in_the_place_of_the_file_is_refused(server):
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(WeightsError, match="a web page, not a file"):
        fetch(published(server))
    assert not kept().exists()


def test_offline_never_asks(server, monkeypatch):
    with pytest.raises(WeightsError, match=rf"network is off: download {server.base}/models/w-01\.pth to .*w-01"):
        fetch(published(server), offline=True)
    monkeypatch.setenv(download.OFFLINE, "1")
    with pytest.raises(WeightsError, match="network is off"):
        fetch(published(server))
    assert server.requests == []
    kept().parent.mkdir(parents=True, exist_ok=True)
    kept().write_bytes(DATA)  # put there by hand
    assert fetch(published(server)) == kept()
    assert kept(".sha256").exists()


def test_a_mirror_takes_the_place_of_the_server(server, monkeypatch):
    file = Published("https://download.example.org/models/w-01.pth", SHA[:8])
    monkeypatch.setenv(download.MIRROR, server.base + "/")
    assert fetch(file).read_bytes() == DATA
    kept().unlink()
    monkeypatch.setenv(download.MIRROR, "http://127.0.0.1:9")
    assert fetch(file, mirror=server.base).read_bytes() == DATA


def test_a_full_disk_is_one_line_and_keeps_what_was_there(server, monkeypatch):
    kept().parent.mkdir(parents=True)
    kept(".part").symlink_to("/dev/full")
    with pytest.raises(WeightsError, match=r"No space left on device; download .* or set KERAS_HOME"):
        fetch(published(server))
    assert not kept().exists()
    kept(".part").unlink()
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(WeightsError, match=r"no space for the 0 MB of w-01\.pth; set KERAS_HOME"):
        fetch(published(server))


def test_a_cache_that_cannot_be_made_is_one_line(server, tmp_path, monkeypatch):
    (tmp_path / "keras").write_text("a file")
    with pytest.raises(WeightsError, match=r"keras/models: Not a directory; download .* or set KERAS_HOME"):
        fetch(published(server))


def test_https_is_not_left_for_http():
    handler = download._Redirects()
    request = download.urllib.request.Request("https://example.org/a")
    with pytest.raises(download.urllib.error.HTTPError, match="from https to http"):
        handler.redirect_request(request, None, 302, "Found", {}, "http://example.org/a")


def _fetch_in_process(url, results):
    results.put(fetch(Published(url, SHA[:8])).read_bytes() == DATA)


def test_eight_processes_download_once(server):
    server.cut_after = 150_000
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=_fetch_in_process, args=(server.base + "/models/w-01.pth", results)) for _ in range(8)
    ]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [True] * 8
    for process in processes:
        process.join()
    assert len(server.requests) == 2  # the file, and the rest of it after the cut


def test_a_process_that_dies_leaves_no_lock(server):
    kept().parent.mkdir(parents=True)
    child = os.fork()
    if child == 0:
        with download.locked(kept()):
            os._exit(1)
    os.waitpid(child, 0)
    assert fetch(published(server)) == pathlib.Path(kept())
