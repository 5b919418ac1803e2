"""Backbones by Hugging Face id: the local cache first, then the hub, and one clear sentence where neither has it.

A small server stands in for the hub, so that nothing here needs a network or can hang on one.
"""

import hashlib
import http.server
import json
import shutil
import threading
from urllib.parse import urlsplit

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

import emi
from extract.backbones import TRANSFORMERS, identify
from extract.errors import BackboneError
from extract.plan import make_header
from extract.settings import ExtractSettings

COMMIT, OLDER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
NAME = "some-org/tiny"


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves the files of one repository as huggingface.co does, as far as its client looks."""

    folder = None
    older = None
    asked = None

    def do_HEAD(self):
        parts = urlsplit(self.path).path.strip("/").split("/")
        listing = parts[:2] == ["api", "models"]
        parts = parts[2:] if listing else parts
        repository, kind, revision, names = "/".join(parts[:2]), *parts[2:4], parts[4:]
        self.asked.append(f"{self.command} {'/'.join(names) or kind}")
        if repository != NAME:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT, "v1", OLDER):
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        commit, folder = (OLDER, self.older) if revision in ("v1", OLDER) else (COMMIT, self.folder)
        if listing:
            return self.answer(200, {"Content-Type": "application/json"}, self.listing(kind, commit, folder))
        path = folder.joinpath(*names)
        if not path.is_file():
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = path.read_bytes()
        etag = hashlib.sha1(content).hexdigest()
        return self.answer(200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, content)

    do_GET = do_HEAD  # noqa: N815

    def listing(self, kind, commit, folder):
        files = [(path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file()]
        if kind == "revision":
            return json.dumps(
                {"id": NAME, "sha": commit, "siblings": [{"rfilename": name} for name, _ in files]}
            ).encode()
        entries = [
            {
                "type": "file",
                "path": name,
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for name, path in files
        ]
        return json.dumps(entries).encode()

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
    for name in ("hub", "older"):
        (tmp_path / name).mkdir()
    handler = type("Handler", (Hub,), {"folder": tmp_path / "hub", "older": tmp_path / "older", "asked": []})
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


def test_only_files_that_are_used_are_downloaded(hub, tiny, load):
    tiny.model("wav2vec2").save_pretrained(hub.folder)
    tiny.save_preprocessor(hub.folder)
    for name in ("pytorch_model.bin", "optimizer.pt", "onnx/model.safetensors", "sample.wav", "README.md"):
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).write_bytes(b"x")
    load(NAME)
    got = {line.removeprefix("GET ") for line in hub.asked if line.startswith("GET ")} - {"revision", "tree"}
    assert got == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def test_pickled_weights_are_downloaded_where_there_are_no_others(hub, tiny, load):
    tiny.save_audeering(hub.folder)
    load(NAME)
    assert "GET pytorch_model.bin" in hub.asked


def test_a_revision_is_what_is_downloaded_and_recorded(hub, tiny, load, point_to, tmp_path):
    tiny.save_audeering(hub.folder)
    tiny.save_audeering(hub.older)
    weights = hub.older / "pytorch_model.bin"
    tensors = torch.load(weights)
    tensors["classifier.dense.bias"] += 1
    torch.save(tensors, weights)
    main, older = identify(NAME), identify(NAME, "v1")
    assert (main.revision, older.revision) == (COMMIT, OLDER)
    assert main.fingerprint["weights_sha256"] != older.fingerprint["weights_sha256"]
    point_to("http://127.0.0.1:9")
    assert identify(NAME) == main
    assert identify(f"{NAME}@v1") == identify(NAME, OLDER) == older
    header = make_header(older, ExtractSettings(), "fp32")
    assert (header.provenance["source"], header.provenance["revision"]) == (NAME, OLDER)
    assert header.fingerprint["backbone"] == NAME
    bias = TRANSFORMERS.load(older, torch.device("cpu"), "fp32").head.dense.bias
    torch.testing.assert_close(bias, tensors["classifier.dense.bias"])


def test_a_cache_made_without_a_revision_is_filled_with_the_same_weights_by_name(hub, tiny, labelled, tmp_path):
    tiny.save_audeering(hub.folder)
    shutil.copytree(hub.folder, hub.older, dirs_exist_ok=True)
    few, media = [tmp_path / name for name in ("few", "media")], sorted((labelled / "audio").glob("*.wav"))[:2]
    for folder, files in zip(few, (media[:1], media), strict=True):
        folder.mkdir()
        for file in files:
            shutil.copy(file, folder)
    emi.extract(few[0], tmp_path / "a.zarr", backbone=NAME, max_seconds=0.5)
    assert emi.extract(few[1], tmp_path / "a.zarr", backbone=NAME, revision="v1", max_seconds=0.5).written == 1


def test_a_missing_processor_file_is_downloaded(hub, tiny, cache, point_to):
    """transformers fetches what it needs for weights alone; without the processor's file clips are normalised."""
    tiny.save_audeering(hub.folder)
    tiny.save_preprocessor(hub.folder, do_normalize=False)
    wanted = identify(NAME)
    for file in cache.rglob("preprocessor_config.json"):
        file.unlink()
    address = constants.ENDPOINT
    point_to("http://127.0.0.1:9")
    assert identify(NAME).fingerprint["normalisation"] != wanted.fingerprint["normalisation"]
    point_to(address)
    assert identify(NAME) == wanted


def test_a_revision_that_the_hub_does_not_have_is_named(hub, tiny):
    tiny.save_audeering(hub.folder)
    with pytest.raises(BackboneError, match=r"no revision 'v9' on the hub; --revision takes"):
        identify(NAME, "v9")


@pytest.mark.parametrize("name", ["silero", "FOLDER", f"{NAME}@main"])
def test_a_revision_of_anything_but_an_id_is_refused(name, tmp_path):
    with pytest.raises(BackboneError, match="--revision v1 chooses a branch, tag or commit"):
        identify(str(tmp_path) if name == "FOLDER" else name, "v1")


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


def test_without_a_network_one_attempt_is_made_and_the_error_lists_alternatives(cache, point_to, monkeypatch):
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
def test_a_name_that_is_no_folder_and_no_id_is_refused_without_a_request(cache, name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail("asked the hub"))
    message = refused(name)
    assert "--backbone FOLDER" in message
    assert "--backbone silero" in message


def test_settings_within_the_processors_file_are_downloaded_too(hub, tiny):
    tiny.model("wav2vec2").save_pretrained(hub.folder)
    nested = {"feature_extractor": {"do_normalize": False, "sampling_rate": 16_000}}
    (hub.folder / "processor_config.json").write_text(json.dumps(nested))
    assert identify(NAME).fingerprint["normalisation"] == "none"
