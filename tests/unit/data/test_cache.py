import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xdyna.config.data import DataConfig, DataError
from xdyna.data import cached
from xdyna.data.cache import vae_digest, write_cache
from xdyna.data.clips import ClipDataset, build_dataset
from xdyna.data.loader import build_loader

Small = Callable[..., DataConfig]
VAE = "ab" * 32


def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Stands for an autoencoder: means of 8 x 8 blocks in four channels, exact in float16."""
    assert pixels.dtype == torch.uint8
    means = nn.functional.avg_pool2d(pixels.float(), 8).round()
    mean = torch.cat([means, means[:, :1] - 128], dim=1)
    return mean, mean / 256


@pytest.fixture(autouse=True)
def shards_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "SHARD_CLIPS", 3)


@pytest.fixture(scope="module")
def master(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("master") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached, "SHARD_CLIPS", 3)
        write_cache(folder, source(small), clips=8, encode=encode, vae=VAE)
    return folder


@pytest.fixture
def written(master: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(master, tmp_path / "cache"))


def source(small: Small, **changes: object) -> ClipDataset:
    return build_dataset(small(**{"face": "cross", "scene_ratio": 0.5, **changes}), seed=7)


def reader(small: Small, folder: Path, *, vae: str | None = VAE, seed: int = 3, **changes: object) -> ClipDataset:
    config = small(**{"source": "cache", "cache": str(folder), "scene_ratio": 0.5, **changes})
    return build_dataset(config, seed=seed, vae=vae)


def read_all(dataset: ClipDataset) -> None:
    for index in range(8):
        dataset[index]


def assert_same_maps(maps: torch.Tensor | None, expected: np.ndarray | None) -> None:
    """Of a sample (T, C, H, W) and as they are drawn (T, H, W, C); both may be absent."""
    assert (maps is None) == (expected is None)
    assert maps is None or torch.equal(maps, torch.from_numpy(expected).permute(0, 3, 1, 2))


@pytest.mark.parametrize("face", ["cross", "self", "landmarks", "none"])
def test_what_is_read_is_what_would_be_rendered(small: Small, written: Path, face: str) -> None:
    """Samples of the cache against the same frames of the same videos, rendered and encoded here."""
    dataset = reader(small, written, face=face)
    rendering = build_dataset(small(face=face, scene_ratio=0.5), seed=3)
    seen = set()
    for index in range(8):
        take, sample = dataset.take(index), dataset[index]
        seen.add((take.kind, take.video.clip_id))
        video = take.video.origin
        shot = video.window(take.rows, reference=take.reference)
        pose, patches = rendering._conditions(dataclasses.replace(take, video=video), shot)
        frames = torch.from_numpy(np.concatenate([shot.reference[None], shot.frames])).permute(0, 3, 1, 2)
        mean, std = encode(frames)
        assert torch.equal(sample.pixels, frames[:1])
        assert torch.equal(sample.latents_mean, mean)
        assert torch.equal(sample.latents_std, std)
        assert_same_maps(sample.pose, pose)
        assert_same_maps(sample.face, patches)
        assert sample.latents_mean.dtype == sample.latents_std.dtype == torch.float32
        np.testing.assert_array_equal(video.truth(take.rows).frames, shot.frames)
    assert len(seen) == 8  # the four humans and the four scenes, each once per epoch


def test_start_and_reference_are_drawn_anew_in_each_epoch(small: Small, written: Path) -> None:
    takes = [reader(small, written).take(index) for index in range(64)]
    name = takes[0].video.clip_id
    drawn = {(take.rows[0], take.reference) for take in takes if take.video.clip_id == name}
    assert len(drawn) > 4


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_latents(small: Small, written: Path, workers: int) -> None:
    config = small(source="cache", cache=str(written), workers=workers)
    batch = next(
        iter(build_loader(config, seed=0, batch_size=2, vae=VAE, start_method="fork"))
    )  # keeps the patch above
    assert batch.latents_mean.shape == batch.latents_std.shape == (2, 4, 4, 8, 8)
    assert batch.pixels.shape == (2, 1, 3, 64, 64)
    assert batch.pose.shape == (2, 3, 3, 64, 64)


def test_num_clips_takes_the_first(small: Small, written: Path) -> None:
    names = {reader(small, written, num_clips=2).take(index).video.clip_id for index in range(40)}
    videos = [source(small).take(index) for index in range(8)]
    firsts = [[take.video.clip_id for take in videos if take.kind == kind][:2] for kind in ("human", "scene")]
    expected = {name for names in firsts for name in names}
    assert names == expected


def test_interrupted_and_continued_gives_the_same_bytes(small: Small, written: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int) -> None:
        if done == 5:
            raise Stop

    folder = tmp_path / "interrupted"
    with pytest.raises(Stop):
        write_cache(folder, source(small), clips=8, encode=encode, vae=VAE, progress=stop)
    assert sorted(path.name for path in folder.iterdir()) == ["clips-00000.safetensors", "index.json"]
    with pytest.raises(DataError, match=r"incomplete: clips-00001.safetensors of 3 shards.*continues"):
        reader(small, folder)
    (folder / ".clips-00001.12-ab.part.safetensors").write_bytes(b"left by a killed writer")
    before = (folder / "clips-00000.safetensors").stat().st_mtime_ns
    done: list[int] = []
    write_cache(folder, source(small), clips=8, encode=encode, vae=VAE, progress=done.append)
    assert (folder / "clips-00000.safetensors").stat().st_mtime_ns == before
    assert done == [3, 4, 5, 6, 6, 7, 8, 8]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in written.iterdir()
    }


def test_damage_is_found_and_mended(small: Small, written: Path) -> None:
    path = written / "clips-00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"clips-00001.safetensors' is damaged or truncated.*run the same scripts"):
        reader(small, written)
    flipped = bytearray(whole)
    flipped[-5000] ^= 1
    path.write_bytes(flipped)
    dataset = reader(small, written)
    with pytest.raises(DataError, match=r"the checksum of clip \d differs"):
        read_all(dataset)
    write_cache(written, source(small), clips=8, encode=encode, vae=VAE)
    assert path.read_bytes() == whole
    path.write_bytes((written / "clips-00000.safetensors").read_bytes())
    with pytest.raises(DataError, match="is part of another cache"):
        reader(small, written)


def test_every_byte_of_a_shard_is_guarded(small: Small, written: Path) -> None:
    path = written / "clips-00002.safetensors"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    beginning = int.from_bytes(whole[:8], "little")  # of the data: the names, sizes and description come before
    assert beginning < len(whole) / 2
    for place in [*range(8), *rng.integers(8, beginning, 150), *rng.integers(beginning, len(whole), 40)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(DataError):
            read_all(reader(small, written))


def test_a_changed_description_is_damage(small: Small, written: Path) -> None:
    path = written / "clips-00000.safetensors"
    place = path.read_bytes().index(b"motion") + len(b'motion\\": ')
    whole = bytearray(path.read_bytes())
    assert chr(whole[place]).isdigit()
    whole[place] = ord("1") if whole[place] != ord("1") else ord("2")
    path.write_bytes(whole)
    with pytest.raises(DataError, match="the checksum of its description differs"):
        reader(small, written)


def test_an_open_cache_can_go_to_another_process(small: Small, written: Path) -> None:
    dataset = reader(small, written)
    before = dataset[0]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0].latents_mean, before.latents_mean)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": "cd" * 32}, "written with another autoencoder .abababababab, this run has cdcdcdcdcdcd"),
        ({"vae": None}, "the digest of the autoencoder"),
        ({"height": 128}, "data.height is 128, but cache '.*' was written with 64; set data.height=64"),
        ({"split": "test"}, "data.split is test"),
        ({"crop_scale": [1, 1]}, "data.crop_scale"),
        ({"video_frames": 9}, "data.video_frames is 9"),
        ({"num_clips": 5}, "data.num_clips is 5, but cache '.*' has 4 human videos"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(small: Small, written: Path, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        reader(small, written, **changes)


def test_what_a_cache_lacks_is_named(small: Small, tmp_path: Path) -> None:
    humans = source(small, scene_ratio=0, face="none")
    write_cache(tmp_path / "cache", humans, clips=2, encode=encode, vae=VAE)
    with pytest.raises(DataError, match=r"data.face is 'cross', but cache .* holds no other faces"):
        reader(small, tmp_path / "cache", face="cross")
    with pytest.raises(DataError, match=r"data.scene_ratio is 0.5, but there are no scene videos; set it to 0"):
        reader(small, tmp_path / "cache")
    assert reader(small, tmp_path / "cache", scene_ratio=0)[0].kind == "human"


def test_no_cache_is_named(small: Small, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no index.json; give one written by scripts/preprocess.py cache"):
        reader(small, tmp_path)
    for text, message in (
        ("{", "is damaged"),
        ('{"format": "x", "shard_clips": 64}', "has format 'x'"),
        ("[]", "damag"),
    ):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(DataError, match=message):
            reader(small, tmp_path)


def test_a_writer_refuses_what_it_cannot_do(small: Small, written: Path, tmp_path: Path) -> None:
    def write(folder: Path, dataset: ClipDataset, **changes: object) -> None:
        write_cache(folder, dataset, **{"clips": 8, "encode": encode, "vae": VAE, **changes})

    with pytest.raises(DataError, match=r"other settings: clips 8 \(now 9\); give the same"):
        write(written, source(small), clips=9)
    with pytest.raises(DataError, match=r"other settings: crop_scale \[0.85, 1.0\] \(now \[1, 1\]\)"):
        write(written, source(small, crop_scale=[1, 1]))
    with pytest.raises(DataError, match="clips: got 0"):
        write(tmp_path / "new", source(small), clips=0)
    with pytest.raises(DataError, match=r"data.num_clips=2"):
        write(tmp_path / "new", source(small, num_clips=2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(DataError, match="holds other files; choose an empty or a new folder"):
        write(tmp_path / "mine", source(small))
    with pytest.raises(DataError, match="latents_std is not finite"):
        write(tmp_path / "new", source(small), encode=lambda x: (encode(x)[0], encode(x)[1] * float("nan")))


def test_the_index_says_what_is_in_it(written: Path) -> None:
    index = json.loads((written / "index.json").read_text())
    assert (index["format"], index["clips"], index["vae"], index["seed"]) == ("xdyna-clips-1", 8, VAE, 7)
    assert index["options"]["other_faces"] is True


def test_digest_is_of_what_makes_latents() -> None:
    def parts() -> torch.nn.ModuleDict:
        torch.manual_seed(0)
        names = ("encoder", "quant_conv", "decoder", "post_quant_conv")
        return torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in names})

    whole = vae_digest(parts())
    for name, counts in (("encoder", True), ("quant_conv", True), ("decoder", False), ("post_quant_conv", False)):
        changed = parts()
        changed[name].weight.data += 1
        assert (vae_digest(changed) != whole) == counts, name


def test_digest_of_an_autoencoder() -> None:
    one = nn.Linear(3, 2)
    half = nn.Linear(3, 2)
    half.load_state_dict({name: tensor.half().float() for name, tensor in one.state_dict().items()})
    assert vae_digest(half) == vae_digest(half.half())
    assert vae_digest(one) != vae_digest(half)
    assert len(vae_digest(one)) == 64


def test_frame_rates_are_those_the_cache_was_written_for(tmp_path: Path) -> None:
    """Where the run names neither; a stride of caches before counts, too."""
    cases = ({"fps": [6, 15], "stride": None}, ([6, 15], None)), ({"stride": [2, 3]}, (None, [2, 3]))
    for options, expected in cases:
        index = {"format": cached.FORMAT, "shard_clips": cached.SHARD_CLIPS, "vae": VAE, "seed": 0, "clips": 0}
        (tmp_path / cached.INDEX).write_text(json.dumps({**index, "options": options}))
        found = cached.paced(DataConfig(source="cache", cache=str(tmp_path)))
        assert (found.fps, found.stride) == expected
        asked = DataConfig(source="cache", cache=str(tmp_path), stride=[1, 1])
        assert cached.paced(asked) == asked
