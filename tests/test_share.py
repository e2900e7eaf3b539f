"""Heads that are shared by folders and by the hub, whose client is met here with a small server on this machine."""

import hashlib
import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch
from heads_made import content

from siglip2_dense import head_file, hub, share
from siglip2_dense.card import card, data_licence
from siglip2_dense.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def run(tmp_path):
    """A work dir with a head, its record and a picture."""
    folder = tmp_path / "run"
    made = content()
    head_file.save(folder / "head.safetensors", made)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "00001_b.png").write_bytes(b"picture")
    record = {
        "metrics": {"mIoU": 41.234, "aAcc": None},
        "intervals": {"mIoU": [9.5, 42.5], "aAcc": [None, None]},
        "oracle": {"mIoU": 93.5, "aAcc": None},
        "data": {"name": "ade20k", "split": "val", "images": 2000},
        "encoder": {"name": "siglip2-base-16-256", "taps": []},
    }
    (folder / "results.json").write_text(json.dumps(record))
    return folder


def test_what_is_pushed_is_pulled_and_known_to_sha256sum(run, tmp_path):
    assert share.push(run, str(tmp_path / "shelf" / "sky")) == [
        "README.md", "picture.png", "head.safetensors", "SHA256SUMS",
    ]  # fmt: skip
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "shelf" / "sky", capture_output=True)
    assert done.returncode == 0 and done.stdout.count(b": OK") == 3
    head = share.pull(str(tmp_path / "shelf" / "sky"), tmp_path / "mine")
    assert head.read_bytes() == (run / "head.safetensors").read_bytes()
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {*share.FILES, "SHA256SUMS"}
    assert torch.equal(head_file.read(head).tensors["segmentation.conv.weight"], torch.ones(2, 8, 1, 1))
    (one,) = share.listing(str(tmp_path / "shelf"))
    assert one["place"].endswith("shelf/sky") and one["encoder"] == "siglip2-base-16-256"
    assert one["heads"]["segmentation"] == {
        "task": "Segmentation", "head": "LinearHead", "metric": "mIoU", "value": 41.234,
    }  # fmt: skip


def test_the_card_says_scores_with_intervals_and_the_terms(run, tmp_path):
    share.push(run, str(tmp_path / "sky"), licence="mit")
    said = (tmp_path / "sky" / "README.md").read_text()
    assert "| mIoU | 41.23 | 9.50 to 42.50 | 93.50 |" in said and "| aAcc | - | - | - |" in said
    assert "Of 2000 images of ade20k, split val, at step 12." in said and "](picture.png)" in said
    assert "- the encoder, siglip2-base-16-256: apache-2.0" in said and "- this head: mit" in said
    assert "- trained on ade20k, train: images for non-commercial research" in said
    assert said.count("heads pull") == 1 and '"iterations": 12' in said
    from huggingface_hub import ModelCard

    front = ModelCard(said).data.to_dict()
    assert front["license"] == "mit" and "siglip2_dense" in front["tags"]
    assert front["base_model"] == "timm/vit_base_patch16_siglip_256.v2_webli"
    assert front["siglip2_dense"] == json.loads(json.dumps(share.summary(content())))


def test_what_is_not_known_is_not_claimed(tmp_path):
    made = content(weights="/mine/vit.safetensors", data="my set + visual_genome")
    head_file.save(tmp_path / "best_head.safetensors", made)
    (tmp_path / "results.json").write_text(json.dumps({"metrics": {"mIoU": 9.0}, "intervals": {"mIoU": [8, 10]}}))
    share.push(tmp_path / "best_head.safetensors", str(tmp_path / "sky"))
    said = (tmp_path / "sky" / "README.md").read_text()
    assert "- the encoder, siglip2-base-16-256: unknown" in said and "- this head: its author has not said" in said
    assert "- trained on my set, train: unknown" in said and "visual_genome, train: CC BY 4.0" in said
    assert (
        "| mIoU | 41.23 | - | - |" in said and "Oracle" not in said and "picture" not in said
    )  # the record is of another head
    assert "license:" not in said and "base_model:" not in said
    assert data_licence("nyuv2") == "unknown" and "Flickr" in data_licence("voc20")
    random = card("x", content(weights="random:3"), None, "x", None, None)
    assert "random weights" in random and "base_model:" not in random
    assert "None were measured" in card(
        "x", head_file.HeadFile(**{**vars(content()), "metrics": {}}), None, "x", None, None
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "head.safetensors").write_bytes(b"other"), "head.safetensors is not as its SHA256SUMS has it"),
        (lambda f: (f / "README.md").unlink(), "has no README.md"),
        (lambda f: (f / "SHA256SUMS").unlink(), "has no SHA256SUMS"),
        (lambda f: (f / "SHA256SUMS").write_text("0" * 64 + "  run.py\n"), "shares 'run.py' beside its head"),
        (lambda f: (f / "SHA256SUMS").write_text("0" * 64 + "  ../head.safetensors\n"), "shares '../head.safetensors'"),
        (lambda f: (f / "SHA256SUMS").write_text("what is this\n"), "SHA256SUMS cannot be read"),
        (lambda f: (f / "SHA256SUMS").write_text(""), "has no head.safetensors"),
    ],
)
def test_what_is_damaged_or_more_than_a_head_leaves_nothing(run, tmp_path, change, sentence):
    share.push(run, str(tmp_path / "shelf"))
    change(tmp_path / "shelf")
    with pytest.raises(UserError, match=sentence):
        share.pull(str(tmp_path / "shelf"), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_pickle_that_is_called_a_head_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("it ran",))

    folder = tmp_path / "shelf"
    folder.mkdir()
    torch.save({"x": Bomb()}, folder / "head.safetensors")
    digest = hashlib.sha256((folder / "head.safetensors").read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  head.safetensors\n")
    with pytest.raises(UserError, match="truncated or not a file of tensors"):
        share.pull(str(folder), tmp_path / "mine")
    torch.save({"x": Bomb()}, tmp_path / "head.pth")
    with pytest.raises(UserError, match=r"a head file ends in \.safetensors"):
        share.push(tmp_path / "head.pth", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_another_head_is_replaced_only_by_force(run, tmp_path):
    shelf = str(tmp_path / "shelf")
    share.push(run, shelf)
    share.push(run, shelf)  # the same again
    head_file.save(run / "head.safetensors", content(value=2.0))
    before = {path.name: path.read_bytes() for path in (tmp_path / "shelf").iterdir()}
    with pytest.raises(UserError, match=r"head\.safetensors is there already and is another"):
        share.push(run, shelf)
    assert {path.name: path.read_bytes() for path in (tmp_path / "shelf").iterdir()} == before
    mine = share.pull(shelf, tmp_path / "mine")
    share.push(run, shelf, force=True)
    with pytest.raises(UserError, match="--force"):
        share.pull(shelf, tmp_path / "mine")
    assert head_file.read(mine).tensors["segmentation.conv.weight"][0, 0] == 1
    share.pull(shelf, tmp_path / "mine", force=True)
    assert head_file.read(mine).tensors["segmentation.conv.weight"][0, 0] == 2


@pytest.fixture
def api(monkeypatch):
    """A double of the hub's client that takes only the calls that the real one takes."""
    from huggingface_hub import HfApi

    double = create_autospec(HfApi, instance=True)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: double)
    return double


def test_a_push_to_the_hub_is_one_commit_of_the_whole(run, api, tmp_path):
    seen = {}
    api.file_exists.return_value = False
    api.upload_folder.side_effect = lambda repo_id, folder_path, commit_message: seen.update(
        {path.name: path.read_bytes() for path in folder_path.iterdir()}, repo=repo_id
    )
    share.push(run, "hub:me/sky", private=True)
    api.create_repo.assert_called_once_with("me/sky", private=True, exist_ok=True)
    assert seen["repo"] == "me/sky" and set(seen) == {*share.FILES, "SHA256SUMS", "repo"}
    assert b"heads pull hub:me/sky" in seen["README.md"]
    (tmp_path / "SUMS").write_text("0" * 64 + "  head.safetensors\n")  # what is there is of another head
    api.file_exists.return_value, api.hf_hub_download.return_value = True, str(tmp_path / "SUMS")
    with pytest.raises(UserError, match="hub:me/sky shares another head already"):
        share.push(run, "hub:me/sky")
    share.push(run, "hub:me/sky", force=True)
    assert api.upload_folder.call_count == 2
    with pytest.raises(UserError, match="push to hub:me/sky;"):
        share.push(run, "hub:me/sky@v1", force=True)


def _http_error(kind, status):
    return kind("an error", response=SimpleNamespace(status_code=status, headers={}, request=None))


def test_what_the_hub_refuses_is_a_sentence(run, api):
    from huggingface_hub import errors

    api.file_exists.return_value = False
    for error, sentence in (
        (errors.LocalTokenNotFoundError("no"), "no token is set; run `hf auth login`"),
        (_http_error(errors.HfHubHTTPError, 403), "no token is set that may do that"),
        (_http_error(errors.HfHubHTTPError, 500), "the hub answers"),
        (_http_error(errors.RepositoryNotFoundError, 404), "there is no such repository, or it is private"),
        (errors.HFValidationError("bad"), "the hub takes no such name"),
        (errors.OfflineModeIsEnabled("offline"), "the hub cannot be reached"),
        (OSError("connection refused"), "the hub cannot be reached .* try where there is a network"),
    ):
        api.create_repo.side_effect = error
        with pytest.raises(UserError, match=rf"^hub:me/sky: the head could not be pushed: {sentence}"):
            share.push(run, "hub:me/sky")
    for target in ("hub:sky", "hub:", "hub:me/", "hub:a/b/c"):
        with pytest.raises(UserError, match="a head on the hub is hub:OWNER/NAME"):
            share.push(run, target)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The address of a hub with the files of a folder in the repository me/sky, which the real client talks to."""
    folder = tmp_path / "served"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            parts = self.path.partition("?")[0].strip("/").split("/")
            if self.path.startswith("/api/models?"):
                said = share.summary(content())
                models = [
                    {"id": "me/sky", "cardData": {"siglip2_dense": said}},
                    {"id": "me/odd", "cardData": {"siglip2_dense": {"heads": [1]}}},
                    {"id": "me/bare"},
                ]
                return self.reply(200, json.dumps(models).encode())
            if parts[:2] != ["me", "sky"] or parts[2] != "resolve":
                return self.reply(404, b"", **{"X-Error-Code": "RepoNotFound"})
            path = folder / parts[-1]
            if parts[3] not in ("main", COMMIT):
                return self.reply(404, b"", **{"X-Error-Code": "RevisionNotFound"})
            if not path.is_file():
                return self.reply(404, b"", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            body = path.read_bytes()
            return self.reply(200, body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', **{"X-Repo-Commit": COMMIT})

        do_HEAD = do_GET

        def reply(self, status, body, **headers):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    from huggingface_hub import constants

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{served.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield folder
    served.shutdown()


def test_a_hub_that_does_not_answer_is_a_sentence(server, monkeypatch, tmp_path):
    import socket

    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)  # where nobody listens any more
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client tries again, later and later
    with pytest.raises(UserError, match=r"SHA256SUMS could not be fetched: the hub cannot be reached \(\w+: "):
        share.pull("hub:me/sky", tmp_path / "mine")
    with pytest.raises(UserError, match=r"the heads could not be listed: the hub cannot be reached \(\w+: "):
        share.listing("hub:me")


def test_a_pull_from_the_hub_by_its_real_client(run, server, tmp_path):
    share.push(run, str(server))
    head = share.pull("hub:me/sky", tmp_path / "mine")
    assert head.read_bytes() == (run / "head.safetensors").read_bytes()
    assert share.read(f"hub:me/sky@{COMMIT}").metrics["mIoU"] == 41.234
    assert [one["place"] for one in share.listing("hub:me")] == ["hub:me/sky", "hub:me/odd", "hub:me/bare"]
    assert share.listing("hub:me")[0]["heads"]["segmentation"]["value"] == 41.234
    with pytest.raises(UserError, match="hub:me/none: SHA256SUMS could not be fetched: there is no such repository"):
        share.pull("hub:me/none", tmp_path / "other")
    with pytest.raises(UserError, match="the repository has no such revision"):
        share.pull("hub:me/sky@v9", tmp_path / "other")
    (server / "README.md").unlink()
    with pytest.raises(UserError, match=r"README.md could not be fetched: it is not there"):
        share.pull("hub:me/sky", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_without_a_network_the_hub_is_a_sentence(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"hub:me/sky: SHA256SUMS could not be fetched: the hub cannot be reached"):
        share.pull("hub:me/sky", tmp_path / "mine")  # tests run offline
    with pytest.raises(UserError, match="hub:me: the heads could not be listed: the hub cannot be reached"):
        share.listing("hub:me")
    assert str(hub.Repository("a/b", "v1")) == "hub:a/b@v1"
