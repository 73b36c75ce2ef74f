"""`maep purify`: its files equal the purifier's output, a rerun resumes, and failures are named and counted."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import serving

from maep import storage
from maep.artifact import Artifact
from maep.errors import UserError
from maep_jobs.pipeline.endpoint import offline
from maep_jobs.purify import image_files
from maep_serve.api import create_api
from maep_serve.config import ServeConfig
from maep_serve.engine.loading import build_models
from maep_serve.engine.service import Service
from maep_serve.http.tokens import Tokens, digest_of

TOKEN = "a-token"


def pixels(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def numbers(summary: str) -> list[int]:
    """Files purified, skipped, failed (where there are any), from the line that ends a run."""
    return [int(word) for word in re.findall(r"\b(\d+) ", summary.partition(":")[0])]


def load(path: Path) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, one of them in a subfolder, and a text file."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(("a.png", "b.png", "deep/er/c.png")):
        save(folder / name, pixels(seed))
    (folder / "notes.txt").write_text("hello")
    (folder / ".hidden.png").write_text("hello")
    return folder


@pytest.fixture
def server(make_purifier: Callable[[int], Artifact], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An endpoint that requires a token, which is in the environment."""
    model = make_purifier(0)
    config = ServeConfig(str(model.folder), max_batch_size=4)
    service = Service(config, build_models(model, config))
    monkeypatch.setenv("MAEP_SERVE_TOKEN", TOKEN)
    with serving(create_api(service, Tokens((digest_of(TOKEN),)))) as url:
        yield url


def by_server(server: str, model: Artifact) -> list[str]:
    return ["--server", server]


def in_process(server: str, model: Artifact) -> list[str]:
    return ["--model", str(model.folder)]


@pytest.mark.parametrize("by", [by_server, in_process])
def test_a_folder_is_purified_and_a_rerun_skips_it(
    maep: Any, make_purifier: Callable[[int], Artifact], server: str, photos: Path, by: Callable[..., list[str]]
) -> None:
    model = make_purifier(0)
    line = ["purify", *by(server, model), "photos", "-o", "clean", "--json"]
    ran = maep(*line)
    told = {"failed": [], "output": "clean", "purifier": model.sha256}
    assert (ran.status, json.loads(ran.out)) == (0, {"purified": 3, "skipped": 0, **told})
    clean = photos.parent / "clean"
    made = sorted(path.relative_to(clean).as_posix() for path in clean.rglob("*") if path.is_file())
    assert made == ["a.png", "b.png", "deep/er/c.png"]
    for name in made:
        assert np.array_equal(load(clean / name), offline(model, load(photos / name)))
        assert not np.array_equal(load(clean / name), load(photos / name))

    cut = (clean / "b.png").read_bytes()
    (clean / "b.png").write_bytes(cut[:-20])
    save(photos / "a.png", pixels(9))
    before = (clean / "deep/er/c.png").stat()
    assert json.loads(maep(*line).out) == {"purified": 2, "skipped": 1, **told}
    assert (clean / "b.png").read_bytes() == cut
    assert np.array_equal(load(clean / "a.png"), offline(model, pixels(9)))
    assert (clean / "deep/er/c.png").stat().st_mtime_ns == before.st_mtime_ns
    assert numbers(maep(*line[:-1]).out) == [0, 3]


def test_another_purifier_purifies_again(maep: Any, make_purifier: Callable[[int], Artifact], photos: Path) -> None:
    for seed in (0, 1):
        model = make_purifier(seed)
        ran = maep("purify", "photos", "-o", "clean", "--model", model.folder)
        assert (ran.status, numbers(ran.out) == [3]) == (0, True)
        assert np.array_equal(load(photos.parent / "clean" / "b.png"), offline(model, pixels(1)))


def test_bad_files_are_named_and_counted_and_the_rest_is_purified(
    maep: Any, make_purifier: Callable[[int], Artifact], photos: Path
) -> None:
    (photos / "empty.png").write_bytes(b"")
    (photos / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    save(photos / "large.png", pixels(0, 60, 60))
    line = ["purify", "photos", "-o", "clean", "--model", make_purifier(0).folder, "--max_pixels", "3000"]
    ran = maep(*line, "--json")
    assert ran.status == 1
    told = json.loads(ran.out)
    assert told["purified"] == 3
    codes = {Path(entry["file"]).name: entry["code"] for entry in told["failed"]}
    assert codes == {"empty.png": "not-an-image", "cut.jpg": "not-an-image", "large.png": "too-many-pixels"}
    for entry in told["failed"]:
        assert f"{entry['file']}: {entry['reason']}" in ran.err
    assert not list((photos.parent / "clean").glob("[!abd]*"))
    assert numbers(maep(*line).out) == [0, 3, 3]


def test_one_file_and_images_of_other_sizes_and_kinds(
    maep: Any, make_purifier: Callable[[int], Artifact], tmp_path: Path
) -> None:
    save(tmp_path / "in" / "one.jpg", pixels(0, 33, 50))
    model = make_purifier(0).folder
    assert maep("purify", "in/one.jpg", "-o", "made/here.PNG", "--model", model).status == 0
    assert maep("purify", "in/one.jpg", "-o", "made", "--model", model).status == 0
    assert load(tmp_path / "made" / "here.PNG").shape == (33, 50, 3)
    assert (tmp_path / "made" / "one.png").read_bytes() == (tmp_path / "made" / "here.PNG").read_bytes()


def test_overwriting_inputs_is_refused_before_anything_is_written(
    maep: Any, photos: Path, everything: Callable[[], set[str]]
) -> None:
    before = everything()
    assert maep("purify", "nowhere", "-o", "clean").is_mistake("nowhere")
    assert maep("purify", "photos", "-o", "photos").is_mistake("photos/a.png")
    assert maep("purify", "photos/a.png", "-o", "photos/a.png").is_mistake("photos/a.png")
    assert maep("purify", "photos").is_mistake("-o", "maep purify --help")
    assert maep("purify", "photos", "-o", "x", "--server", "http://x", "--model", "y").is_mistake("server")
    assert maep("purify", "photos", "-o", "x", "--in_flight", "0").is_mistake("in_flight: 0")
    assert maep("purify", "photos", "-o", "x", "--model", "bundled:cifar").is_mistake("cifar10")
    save(photos / "a.jpg", pixels(0))
    assert maep("purify", "photos", "-o", "x").is_mistake("a.jpg .*a.png .*x/a.png")
    assert everything() == before | {"photos/a.jpg"}


def test_foreign_files_in_the_output_folder_are_not_overwritten(
    maep: Any, make_purifier: Callable[[int], Artifact], photos: Path
) -> None:
    model = make_purifier(0).folder
    kept = save(photos.parent / "album" / "b.png", pixels(7)).read_bytes()
    refused = maep("purify", "photos", "-o", "album", "--model", model)
    assert refused.is_mistake("album/b.png")
    assert [path.name for path in (photos.parent / "album").iterdir()] == ["b.png"]
    assert (photos.parent / "album" / "b.png").read_bytes() == kept
    assert maep("purify", "photos/b.png", "-o", "album/b.png", "--model", model).status == 0  # it was named
    assert numbers(maep("purify", "photos", "-o", "album", "--model", make_purifier(1).folder).out) == [3]


def test_a_dry_run_counts_and_writes_nothing(maep: Any, photos: Path, everything: Callable[[], set[str]]) -> None:
    before = everything()
    ran = maep("purify", "--server", "http://gone.invalid", "photos", "-o", "clean", "--dry-run")
    assert (ran.status, ran.err) == (0, "")
    assert "server: http://gone.invalid" in ran.out
    assert re.search(r"# .* 3 .*clean .*http://gone.invalid.* 1 ", ran.out)
    assert everything() == before


def test_an_output_inside_its_own_input_is_not_purified_again(
    maep: Any, make_purifier: Callable[[int], Artifact], photos: Path
) -> None:
    line = ["purify", "photos", "-o", "photos/clean", "--model", make_purifier(0).folder]
    assert numbers(maep(*line).out) == [3]
    assert numbers(maep(*line).out) == [0, 3]


def test_several_folders_keep_their_names(photos: Path) -> None:
    other = photos.parent / "other"
    shutil.copytree(photos, other)
    found = image_files.find([photos, other], Path("out"))
    assert [pair.target.as_posix() for pair in found.pairs][::3] == ["out/photos/a.png", "out/other/a.png"]
    with pytest.raises(UserError, match=r"out/a\.png"):
        image_files.find([photos / "a.png", other / "a.png"], Path("out"))


def test_a_wrong_token_and_an_unreachable_server_are_one_line(
    maep: Any, server: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAEP_SERVE_TOKEN", "another")
    assert maep("purify", "photos", "-o", "clean", "--server", server).is_mistake("unauthorized")
    assert maep("purify", "photos", "-o", "clean", "--server", "http://127.0.0.1:9").is_mistake("http://127.0.0.1:9 ")
    assert not (photos.parent / "clean").exists()


def test_finished_files_stay_when_the_server_refuses_midway(
    maep: Any, make_purifier: Callable[[int], Artifact], photos: Path
) -> None:
    """The application purifies two images and then refuses, as after a token was revoked."""
    model = make_purifier(0)
    config = ServeConfig(str(model.folder))
    service = Service(config, build_models(model, config))
    api, taken = create_api(service), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            taken.append(scope["path"])
            if len(taken) > 2:
                scope = {**scope, "path": "/gone"}
        await api(scope, receive, send)

    with serving(app) as url:
        line = ["purify", "photos", "-o", "clean", "--server", url, "--in_flight", "1"]
        ran = maep(*line)
        assert (ran.status, ran.out) == (1, "")
        assert "not-found" in ran.end.err
        assert "2 of 3 " in ran.end.err
        taken.clear()
        assert numbers(maep(*line).out) == [1, 2]


def test_decoders_read_the_stamp(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels(0)).save(buffer, "PNG")
    stamp = image_files.stamp("ab" * 32, b"source")
    image_files.write(tmp_path / "made.png", buffer.getvalue(), stamp)
    with Image.open(tmp_path / "made.png") as image:
        image.load()
        assert image.text == {"maep": f"purifier {'ab' * 32} source {storage.sha256(b'source')}"}
    assert image_files.is_complete(tmp_path / "made.png", stamp)
    assert not image_files.is_complete(tmp_path / "made.png", image_files.stamp("ab" * 32, b"other"))
    assert not image_files.is_complete(tmp_path / "none.png", stamp)
