"""Backbones by Hugging Face id: the local cache first, then the hub, and one clear sentence where neither has it.

A small server stands in for the hub, so that nothing here needs a network or can hang on one.
"""

import hashlib
import http.server
import threading

import huggingface_hub
import pytest
from huggingface_hub import constants

from extract.backbones import identify
from extract.errors import BackboneError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "some-org/tiny"


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves the files of one repository as huggingface.co does, as far as its client looks."""

    folder = None
    asked = None

    def do_HEAD(self):
        parts = self.path.strip("/").split("/")
        self.asked.append(f"{self.command} {parts[-1]}")
        if "/".join(parts[:2]) != NAME:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        path = self.folder / parts[-1]
        if not path.is_file():
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = path.read_bytes()
        etag = hashlib.sha1(content).hexdigest()
        return self.answer(200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, content)

    do_GET = do_HEAD  # noqa: N815

    def answer(self, status, headers, content=b""):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty local cache of the hub's client."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return tmp_path / "cache"


@pytest.fixture
def point_to(monkeypatch):
    """Let the hub's client talk to another address."""

    def point(address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        huggingface_hub.close_session()

    yield point
    huggingface_hub.close_session()


@pytest.fixture
def hub(tmp_path, cache, point_to):
    """The stand-in: put files into its `folder`, see what was `asked`."""
    (tmp_path / "hub").mkdir()
    handler = type("Handler", (Hub,), {"folder": tmp_path / "hub", "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    point_to(f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def refused(name) -> str:
    with pytest.raises(BackboneError) as caught:
        identify(name)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_id_is_downloaded_once_and_found_in_the_cache_without_network(hub, tiny, load, point_to):
    tiny.save_audeering(hub.folder)
    backbone, identity = load(NAME)
    assert identity.vad_names == ("arousal", "dominance", "valence")
    assert identity.fingerprint["backbone"] == NAME
    assert dict(identity.fingerprint) == dict(identify(str(hub.folder)).fingerprint) | {"backbone": NAME}
    assert backbone.head is not None
    hub.asked.clear()
    point_to("http://127.0.0.1:9")
    assert load(NAME)[1] == identity
    assert hub.asked == []


def test_a_checkpoint_in_several_files_is_downloaded_whole(hub, tiny, load):
    tiny.model("wav2vec2").save_pretrained(hub.folder, max_shard_size="30KB")
    load(NAME)
    assert {f"GET {path.name}" for path in hub.folder.glob("*.safetensors")} <= set(hub.asked)


def test_an_interrupted_download_is_completed(hub, tiny, load):
    tiny.model("wav2vec2").save_pretrained(hub.folder, max_shard_size="30KB")
    part = sorted(hub.folder.glob("model-*"))[-1]
    content = part.read_bytes()
    part.unlink()
    assert NAME in refused(NAME)
    part.write_bytes(content)
    load(NAME)


def test_a_repository_without_weights_is_named(hub, tiny):
    tiny.model("wav2vec2").config.save_pretrained(hub.folder)
    message = refused(NAME)
    assert NAME in message
    assert "model.safetensors" in message


@pytest.mark.parametrize("name", ["some-org/unknown", "silerro"])
def test_an_id_that_the_hub_does_not_know_names_the_ways_out(hub, name):
    message = refused(name)
    assert repr(name) in message
    assert "--backbone FOLDER" in message
    assert "--backbone silero" in message


def test_without_a_network_one_sentence_names_the_ways_out_after_one_attempt(cache, point_to, monkeypatch):
    point_to("http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("the hub's client is waiting to try again"))
    message = refused(NAME)
    assert repr(NAME) in message
    assert "ConnectError" in message
    assert "--backbone FOLDER" in message
    assert "--backbone silero" in message


def test_offline_mode_is_respected(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused(NAME)
    assert "--backbone FOLDER" in message
    assert "--backbone silero" in message


@pytest.mark.parametrize("name", ["./no-such-folder", "/no/such/folder", "a/b/c", "no such id", "", "~nobody/x"])
def test_what_is_neither_folder_nor_id_is_refused_without_asking_the_hub(cache, name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail("asked the hub"))
    message = refused(name)
    assert "--backbone FOLDER" in message
    assert "--backbone silero" in message
