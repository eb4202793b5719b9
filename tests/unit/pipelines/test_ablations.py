"""The pipeline without the Dynamics-Adapter: with a ReferenceNet (`w/RefNet`), with image tokens alone (`w/IP-A`)."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.unit.pipelines.test_xdyna import OPTIONS, clip, make_pipeline, run  # noqa: F401  (clip is a fixture)
from xdyna.models.reference_net import ReferenceNet
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.xdyna import XDynaPipeline


def without_adapter(*, reference_net: bool) -> XDynaPipeline:
    pipeline = make_pipeline()
    unet = XDynaUNet(**{**pipeline.unet.config, "dynamics_adapter": False})
    unet.load_state_dict({k: v for k, v in pipeline.unet.state_dict().items() if "_ff." not in k})
    parts = {**pipeline.components, "unet": unet.eval()}
    if reference_net:
        parts["reference_net"] = ReferenceNet.from_unet(unet).eval()
    changed = XDynaPipeline(**parts)
    changed.set_progress_bar_config(disable=True)
    return changed


@pytest.mark.parametrize("reference_net", [True, False])
def test_save_and_load_give_the_same_video(reference_net, clip, tmp_path):  # noqa: F811
    pipeline = without_adapter(reference_net=reference_net)
    pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "reference_net").is_dir() == reference_net
    again = XDynaPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert (again.reference_net is not None) == reference_net
    video = run(pipeline, clip)
    assert video.std() > 0
    np.testing.assert_array_equal(run(again, clip), video)


def test_the_reference_is_read_once_per_clip_with_the_tokens_of_each_half(clip, monkeypatch):  # noqa: F811
    pipeline = without_adapter(reference_net=True)
    calls = []
    original = pipeline.reference_net.forward

    def spy(sample, text, image):
        calls.append((sample.shape, text.shape, image.shape))
        assert torch.equal(sample[0], sample[-1])
        assert len(image) == 1 or not torch.equal(image[0], image[1])
        return original(sample, text, image)

    monkeypatch.setattr(pipeline.reference_net, "forward", spy)
    guided = run(pipeline, clip, output_type="latent")
    assert [tuple(shape[:1]) for call in calls for shape in call] == [(2,)] * 3
    calls.clear()
    run(pipeline, clip, options=dataclasses.replace(OPTIONS, guidance=1.0))
    assert [tuple(shape[:1]) for call in calls for shape in call] == [(1,)] * 3
    plain = run(without_adapter(reference_net=False), clip, output_type="latent")
    assert not torch.allclose(guided, plain, atol=1e-3)


def test_a_reference_net_beside_the_adapter_is_refused(clip):  # noqa: F811
    pipeline = make_pipeline()
    pipeline.reference_net = without_adapter(reference_net=True).reference_net
    with pytest.raises(ValueError, match="UNet with the Dynamics-Adapter, which they replace"):
        run(pipeline, clip)
