"""New versions under load: taken, or refused while the old one stays. With a real registry."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch

from maep import artifact
from maep.artifact import Artifact
from maep.errors import ArtifactError, ConfigError
from maep.models.build import load_purifier_artifact
from maep.tracking.client import TrackingConfig
from maep.tracking.registry import register, roll_back, set_alias
from maep_serve.api import create_api
from maep_serve.config import ServeConfig
from maep_serve.engine import suspicion
from maep_serve.engine.loading import Models
from maep_serve.engine.service import Service
from maep_serve.engine.suspicion import Calibration
from maep_serve.release import golden, releases
from maep_serve.release.releases import Releases

PNG = {"content-type": "image/png"}
CHAMPION = "models:/purifier@champion"


@pytest.fixture
def tracking(empty_store: Path, tmp_path: Path) -> TrackingConfig:
    database = tmp_path / "mlflow.db"
    shutil.copyfile(empty_store, database)
    return TrackingConfig(uri=f"sqlite:///{database}")


@pytest.fixture
def following(config: ServeConfig, tracking: TrackingConfig) -> Releases:
    return Releases.of(dataclasses.replace(config, model=CHAMPION, follow_s=0.01), tracking)


def another(first: Artifact, folder: Path, value: float) -> Artifact:
    """`first` with its weights multiplied by `value`."""
    weights = {name: tensor * value for name, tensor in first.weights().items()}
    return artifact.write(folder, "purifier", first.config, weights, "# Another\n")


def promote(tracking: TrackingConfig, purifier: Artifact, outputs: str | None = None) -> int:
    recorded = outputs or golden.record(load_purifier_artifact(purifier))
    version = register(tracking, purifier, evaluation={"golden": recorded})
    set_alias(tracking, "champion", version)
    return version


def num_refused(service: Service, purifier: Artifact) -> float | None:
    labels = {"version": purifier.sha256[:12]}
    return service.metrics.registry.get_sample_value("maep_refused_version_total", labels)


def test_golden_outputs_are_reproduced_and_other_purifiers_refused(purifier_artifact, models, tmp_path):
    recorded = golden.record(models.purifier)
    assert len(bytes.fromhex(recorded)) == 512
    golden.check(load_purifier_artifact(purifier_artifact), recorded)
    other = load_purifier_artifact(another(purifier_artifact, tmp_path / "other", 1.5))
    with pytest.raises(ArtifactError, match="golden"):
        golden.check(other, recorded)
    for damaged in (recorded[:-2], "no", ""):
        with pytest.raises(ArtifactError, match="512"):
            golden.check(models.purifier, damaged)


def test_golden_patterns_are_the_same_everywhere():
    pictures = golden.patterns((16, 16))
    assert pictures.shape == (4, 3, 16, 16)
    assert pictures[0, 0, 0, :4].tolist() == [255, 244, 233, 222]
    assert len({picture.numpy().tobytes() for picture in pictures}) == 4


def test_a_randomised_purifier_has_no_golden_outputs():
    class Drawing(torch.nn.Module):
        randomised = True

    assert golden.record(Drawing()) is None


def test_only_an_alias_is_followed(config):
    assert Releases.of(dataclasses.replace(config, model=CHAMPION)).followed
    assert not Releases.of(dataclasses.replace(config, model=CHAMPION, follow_s=0)).followed
    for fixed in ("models:/purifier/3", "bundled:cifar10", "runs:/1", "a@b"):
        assert not Releases.of(dataclasses.replace(config, model=fixed)).followed


def test_a_promotion_under_load_switches_versions_and_fails_no_request(
    purifier_artifact, following, tracking, tmp_path, png
):
    second = another(purifier_artifact, tmp_path / "second", 1.01)
    promote(tracking, purifier_artifact)
    service = Service(following.config, following.load_first())
    app = create_api(service)

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            answers: list[httpx.Response] = []

            async def ask(until: str) -> None:
                while True:
                    answers.append(await client.post("/v1/purify", content=png(), headers=PNG))
                    if answers[-1].headers["x-maep-purifier"] == until:
                        return

            follower = asyncio.create_task(following.follow(service))
            for sha256 in (purifier_artifact.sha256, second.sha256, purifier_artifact.sha256):
                await asyncio.wait_for(asyncio.gather(*(ask(sha256) for _ in range(4))), 120)
                if sha256 == second.sha256:
                    await asyncio.to_thread(roll_back, tracking, "champion")
                else:
                    await asyncio.to_thread(promote, tracking, second)
            follower.cancel()
            await service.close()
            return answers

    answers = asyncio.run(main())
    assert {answer.status_code for answer in answers} == {200}
    pictures = {answer.headers["x-maep-purifier"]: answer.content for answer in answers}
    assert set(pictures) == {purifier_artifact.sha256, second.sha256}
    assert len(set(pictures.values())) == 2


@pytest.mark.parametrize("bad", ["golden", "not finite", "tampered"])
def test_a_bad_version_takes_no_traffic_and_the_old_one_stays(
    purifier_artifact, following, tracking, tmp_path, png, pixels_of, offline, models, bad, caplog
):
    promote(tracking, purifier_artifact)
    service = Service(following.config, following.load_first())
    value = float("nan") if bad == "not finite" else 1.5
    second = another(purifier_artifact, tmp_path / "second", value)
    outputs = golden.record(models.purifier) if bad != "tampered" else None
    number = promote(tracking, second, outputs)
    if bad == "tampered":
        from maep.tracking.registry import by_version

        weights = Path(by_version(tracking, number).uri.removeprefix("file://")) / artifact.WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert following.take(service, number) is False
    assert num_refused(service, second) == 1
    assert second.sha256[:12] in caplog.text
    assert ("was changed" in caplog.text) == (bad == "tampered")

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=create_api(service)), base_url="http://test"
        ) as client:
            answer = await client.post("/v1/purify", content=png(), headers=PNG)
            await service.close()
            return answer

    answer = asyncio.run(main())
    assert answer.headers["x-maep-purifier"] == purifier_artifact.sha256
    assert torch.equal(pixels_of(answer.content), offline(models, png()))
    # A replica that starts now serves what its elders serve
    assert following.load_first().purifier_sha256 == purifier_artifact.sha256
    with pytest.raises(ArtifactError):  # and a new endpoint does not start with it at all
        following.load(following.find())


def test_a_replica_started_after_two_bad_promotions_serves_the_last_good_version(
    purifier_artifact, models, following, tracking, tmp_path
):
    promote(tracking, purifier_artifact)
    outputs = golden.record(models.purifier)
    for value in (1.5, 1.6):
        promote(tracking, another(purifier_artifact, tmp_path / str(value), value), outputs)
        assert following.load_first().purifier_sha256 == purifier_artifact.sha256


def test_a_calibration_applies_to_its_own_version_and_blocks_no_other(
    purifier_artifact, models, following, tracking, tmp_path
):
    known = Calibration(purifier_artifact.sha256, models.classifier.sha256, "none", "0", (16, 16), (0.0,), ())
    suspicion.write(known, tmp_path / "calibration.json")
    measured = dataclasses.replace(following.config, calibration=str(tmp_path / "calibration.json"))
    following = dataclasses.replace(following, config=measured)
    first = promote(tracking, purifier_artifact)
    service = Service(following.config, following.load_first())
    assert service.models.calibration == known
    second = another(purifier_artifact, tmp_path / "second", 1.01)
    number = register(tracking, second)
    set_alias(tracking, "champion", number)
    assert following.take(service, number)
    assert service.models.calibration is None
    late = following.load_first()  # a replica that starts now serves what its elders serve
    assert (late.purifier_sha256, late.calibration) == (second.sha256, None)
    assert following.take(service, first)  # as after a rollback
    assert service.models.calibration == known
    with pytest.raises(ConfigError, match="calibration: "):  # a starting endpoint raises it
        following.load(following.find())


def test_refusing_every_earlier_version_is_an_error(purifier_artifact, models, following, tracking, tmp_path):
    outputs = golden.record(models.purifier)
    first, _ = (promote(tracking, another(purifier_artifact, tmp_path / str(v), v), outputs) for v in (1.5, 1.6))
    set_alias(tracking, "champion", first)  # each had it before the other
    with pytest.raises(ArtifactError, match="golden"):
        following.load_first()


def test_no_error_of_a_version_ends_the_polling(purifier_artifact, following, tracking, tmp_path, monkeypatch):
    """Not even one that is no UserError, such as a library's on unexpected weights."""
    promote(tracking, purifier_artifact)
    service = Service(following.config, following.load_first())
    bad, good = (another(purifier_artifact, tmp_path / name, value) for name, value in (("bad", 1.5), ("good", 1.01)))
    build = releases.build_models

    def build_or_fail(given: Artifact, config: ServeConfig) -> Models:
        if given.sha256 == bad.sha256:
            raise RuntimeError("size mismatch")
        return build(given, config)

    monkeypatch.setattr(releases, "build_models", build_or_fail)

    async def until(reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(120):
            while not reached():
                await asyncio.sleep(0.01)

    async def main() -> None:
        follower = asyncio.create_task(following.follow(service))
        await asyncio.to_thread(promote, tracking, bad)
        await until(lambda: num_refused(service, bad) == 1)
        assert service.models.purifier_sha256 == purifier_artifact.sha256
        await asyncio.to_thread(promote, tracking, good)
        await until(lambda: service.models.purifier_sha256 == good.sha256)
        follower.cancel()
        await service.close()

    asyncio.run(main())


def test_an_unavailable_registry_changes_nothing(config, models, tmp_path, png):
    away = dataclasses.replace(config, model=CHAMPION, follow_s=0.01)
    following = Releases.of(away, TrackingConfig(uri="http://127.0.0.1:1"))
    service = Service(following.config, models)

    async def main() -> int:
        follower = asyncio.create_task(following.follow(service))
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=create_api(service)), base_url="http://test"
        ) as client:
            answer = await client.post("/v1/purify", content=png(), headers=PNG)
        assert not follower.done()
        follower.cancel()
        await service.close()
        return answer.status_code

    assert asyncio.run(main()) == 200
