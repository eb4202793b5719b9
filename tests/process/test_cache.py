import pytest
import torch
from diffusers import AutoencoderKL

from xdyna.cli.preprocess import main
from xdyna.config.data import DataConfig
from xdyna.core import program as guard
from xdyna.data.cache import vae_digest
from xdyna.data.clips import build_dataset
from xdyna.data.write_cache import Encoder

SMALL = ["data.height=64", "data.width=64", "data.frames=2", "data.stride=[1,1]", "data.video_frames=4"]


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory):
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = AutoencoderKL(block_out_channels=[8] * 4, norm_num_groups=4, latent_channels=4, **blocks)
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return folder


def test_a_cache_holds_the_posterior_of_the_autoencoder(vae_folder, tmp_path, capsys) -> None:
    out = tmp_path / "cache"
    assert (
        main(["cache", "--vae", str(vae_folder), "--out", str(out), "--clips", "2", *SMALL, "data.scene_ratio=0"]) == 0
    )
    assert f"2 clips in {out}" in capsys.readouterr().out
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    config = DataConfig(
        source="cache", cache=str(out), height=64, width=64, frames=2, stride=[1, 1], video_frames=4, scene_ratio=0
    )
    dataset = build_dataset(config, seed=1, vae=vae_digest(vae))
    take, sample = dataset.take(0), dataset[0]
    frames = take.video.origin.window(take.rows, reference=take.reference).frames
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    torch.testing.assert_close(sample.latents_mean[1:], posterior.mean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(sample.latents_std[1:], posterior.std, atol=1e-3, rtol=1e-3)
    assert sample.latents_mean[1:].std() > 10 * (sample.latents_mean[1:] - posterior.mean).abs().max()


def test_a_pipeline_folder_will_do(vae_folder, tmp_path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "vae").symlink_to(vae_folder)
    encoder = Encoder(tmp_path, torch.device("cpu"))
    mean, std = encoder(torch.zeros(17, 3, 64, 64, dtype=torch.uint8))
    assert mean.shape == std.shape == (17, 4, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.heigth=64"], "unknown key 'data.heigth'; did you mean 'data.height'"),
        (["data.height=60"], "data.height: got 60, expected a multiple of 8"),
        (["--vae", "nowhere"], "--vae nowhere: no autoencoder there"),
        (["--seed", "-1"], "seed: got -1"),
    ],
)
def test_wrong_usage_is_one_message(vae_folder, tmp_path, capsys, options, message) -> None:
    arguments = ["cache", "--vae", str(vae_folder), "--out", str(tmp_path / "cache"), "--clips", "2", *options]
    assert guard.run(main, arguments) == guard.USAGE
    assert message in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
