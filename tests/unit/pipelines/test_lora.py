"""LoRA files in every spelling: they change the video as the formula says, and leave nothing behind."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from tests.unit.pipelines.test_xdyna import clip, make_pipeline  # noqa: F401  (clip is a fixture)
from tests.unit.pipelines.test_xdyna import run as run_all
from xdyna.models.attention import CrossAttentionCache, TextImageCrossAttention
from xdyna.pipelines.xdyna import XDynaPipeline

TARGETS = ["to_q", "to_out.0", "to_q_ff", "to_out_ff", "to_k_ip", "proj_in", "conv1"]
RANK, ALPHA = 2, 4


def run(pipeline: XDynaPipeline, clip: dict[str, np.ndarray]) -> torch.Tensor:  # noqa: F811
    return run_all(pipeline, clip, num_frames=2, num_inference_steps=1, output_type="latent")


@pytest.fixture
def pipeline() -> XDynaPipeline:
    return make_pipeline()


def bytes_of(pipeline: XDynaPipeline) -> dict[str, bytes]:
    nets = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    return {f"{net}.{k}": v.numpy().tobytes() for net, part in nets.items() for k, v in part.state_dict().items()}


def trained(net: torch.nn.Module, targets: list[str], folder: Path | None = None) -> dict[str, torch.Tensor]:
    """peft's own LoRA of a copy of a network, its factors far from zero: the tensors as peft writes them."""
    from copy import deepcopy

    torch.manual_seed(1)
    model = get_peft_model(deepcopy(net), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    if folder is not None:
        model.save_pretrained(folder)
    return get_peft_model_state_dict(model)


def layers_of(state: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    state = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    names = {re.sub(r"\.lora_[AB]\.weight$", "", name) for name in state}
    return {name: (state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]) for name in names}


def kohya(layers: dict[str, tuple[torch.Tensor, torch.Tensor]], prefix: str) -> dict[str, torch.Tensor]:
    state = {}
    for name, (down, up) in layers.items():
        flat = f"{prefix}_{name.replace('.', '_')}"
        state |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(ALPHA)}
    return state


@torch.no_grad()
def merged(pipeline: XDynaPipeline, layers: dict[str, tuple[torch.Tensor, torch.Tensor]], scale: float = 1) -> None:
    """The formula: W + scale * alpha / rank * B A."""
    for name, (down, up) in layers.items():
        weight = pipeline.unet.get_submodule(name).weight
        delta = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        weight += scale * ALPHA / RANK * delta


def spellings(pipeline: XDynaPipeline, folder: Path) -> dict[str, str | dict[str, torch.Tensor]]:
    state = trained(pipeline.unet, TARGETS, folder / "peft")
    layers = layers_of(state)
    assert any("motion_modules" in name for name in layers)
    assert {name.rsplit(".", 1)[-1] for name in layers} >= {"to_q_ff", "to_out_ff", "to_k_ip", "conv1"}
    scaled = {}
    for name, (down, up) in layers.items():  # diffusers' own files have no alpha of their own: it is in the factors
        scaled |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up * (ALPHA / RANK)}
    old = {
        f"unet.{name.replace('attn1', 'attn1.processor')}.lora.{way}.weight": value
        for name, (down, up) in layers.items()
        for way, value in (("down", down), ("up", up * (ALPHA / RANK)))
    }
    XDynaPipeline.save_lora_weights(folder / "diffusers", {k.removeprefix("unet."): v for k, v in scaled.items()})
    save_file({k: v.contiguous() for k, v in kohya(layers, "lora_unet").items()}, folder / "kohya.safetensors")
    return {
        "peft folder": str(folder / "peft"),
        "diffusers folder": str(folder / "diffusers"),
        "kohya file": str(folder / "kohya.safetensors"),
        "diffusers tensors": scaled,
        "diffusers' old names": old,
        "kohya tensors": kohya(layers, "lora_unet"),
    }


def test_every_spelling_changes_the_video_by_the_formula_and_unloads_to_the_same_bytes(
    pipeline: XDynaPipeline,
    clip: dict[str, np.ndarray],  # noqa: F811
    tmp_path: Path,
) -> None:
    before, plain = bytes_of(pipeline), run(pipeline, clip)
    expected_from = make_pipeline()
    merged(expected_from, layers_of(trained(pipeline.unet, TARGETS)))
    expected = run(expected_from, clip)
    assert not torch.allclose(expected, plain, atol=1e-2)
    for name, source in spellings(pipeline, tmp_path).items():
        pipeline.load_lora_weights(source)
        torch.testing.assert_close(run(pipeline, clip), expected, atol=1e-3, rtol=1e-3, msg=name)
        pipeline.unload_lora_weights()
        assert bytes_of(pipeline) == before, name
        assert torch.equal(run(pipeline, clip), plain), name


@pytest.mark.long
def test_adapters_are_weighted_fused_and_unfused(
    pipeline: XDynaPipeline,
    clip: dict[str, np.ndarray],  # noqa: F811
    tmp_path: Path,
) -> None:
    plain = run(pipeline, clip)
    layers = layers_of(trained(pipeline.unet, TARGETS))
    pipeline.load_lora_weights(kohya(layers, "lora_unet"), adapter_name="first")
    pipeline.load_lora_weights(str(spellings(make_pipeline(), tmp_path)["diffusers folder"]), adapter_name="second")
    assert pipeline.get_active_adapters() == ["second"]
    for weights in ({"first": 0.5}, {"first": 0.25, "second": 0.5}):
        pipeline.set_adapters(list(weights), list(weights.values()))
        expected_from = make_pipeline()
        merged(expected_from, layers, scale=sum(weights.values()))
        expected = run(expected_from, clip)
        torch.testing.assert_close(run(pipeline, clip), expected, atol=1e-3, rtol=1e-3)
    pipeline.fuse_lora()
    torch.testing.assert_close(run(pipeline, clip), expected, atol=1e-3, rtol=1e-3)
    pipeline.unfuse_lora()
    pipeline.disable_lora()
    torch.testing.assert_close(run(pipeline, clip), plain, atol=1e-3, rtol=1e-3)
    pipeline.enable_lora()
    torch.testing.assert_close(run(pipeline, clip), expected, atol=1e-3, rtol=1e-3)
    pipeline.delete_adapters("second")
    assert pipeline.get_list_adapters() == {"unet": ["first"]}


def test_animatediffs_motion_lora_by_diffusers_names(pipeline: XDynaPipeline) -> None:
    ours = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_q"
    theirs = "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn2.to_q.lora"
    width = pipeline.unet.get_submodule(ours).weight.shape[0]
    down, up = torch.randn(RANK, width), torch.randn(width, RANK)
    pipeline.load_lora_weights({f"{theirs}.down.weight": down, f"{theirs}.up.weight": up})
    layer = pipeline.unet.get_submodule(ours)
    torch.testing.assert_close(layer.get_delta_weight("default_0"), up @ down)
    assert [n for n, _ in pipeline.unet.named_parameters() if "lora_A" in n] == [f"{ours}.lora_A.default_0.weight"]


def test_the_text_encoder_takes_its_part(
    pipeline: XDynaPipeline,
    clip: dict[str, np.ndarray],  # noqa: F811
) -> None:
    before = bytes_of(pipeline)
    plain, _ = pipeline.encode_prompt("a person dances")
    layers = layers_of(trained(pipeline.text_encoder, ["q_proj", "fc1"]))
    pipeline.load_lora_weights(kohya(layers, "lora_te_text_model"))
    changed, _ = pipeline.encode_prompt("a person dances")
    assert not torch.allclose(changed, plain, atol=1e-3)
    expected_from = make_pipeline()
    with torch.no_grad():
        for name, (down, up) in layers.items():
            expected_from.text_encoder.get_submodule(name).weight += ALPHA / RANK * up @ down
    torch.testing.assert_close(changed, expected_from.encode_prompt("a person dances")[0], atol=1e-4, rtol=1e-4)
    pipeline.unload_lora_weights()
    assert bytes_of(pipeline) == before


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"unet.down_blocks.9.to_q.lora_A.weight": torch.zeros(2, 8)}, "has no such layer; it was made for another"),
        ({"unet.conv_in.lora_A.weight": torch.zeros(2, 4, 3, 3)}, "one of two factors for conv_in"),
        (
            {
                "unet.mid_block.resnets.0.time_emb_proj.lora_A.weight": torch.zeros(2, 9),
                "unet.mid_block.resnets.0.time_emb_proj.lora_B.weight": torch.zeros(16, 2),
            },
            "which do not make its weight of shape",
        ),
    ],
)
def test_a_lora_of_another_model_is_refused(pipeline: XDynaPipeline, state: dict[str, torch.Tensor], message: str):
    before = bytes_of(pipeline)
    with pytest.raises(ValueError, match=message):
        pipeline.load_lora_weights(state)
    assert bytes_of(pipeline) == before


@pytest.mark.parametrize("change", ["scale", "load", "unload", "nothing"])
def test_a_step_may_change_the_lora(pipeline, clip, change, tmp_path, monkeypatch):  # noqa: F811
    """Keys of tokens are kept from step to step, but not those of other weights."""
    layers = layers_of(trained(pipeline.unet, ["attn2.to_k", "attn2.to_v_ip"]))
    state = {f"unet.{n}.lora_{k}.weight": v for n, pair in layers.items() for k, v in zip("AB", pair, strict=True)}
    save_file(state, tmp_path / "lora.safetensors")
    computed = []
    original = TextImageCrossAttention.keys
    monkeypatch.setattr(TextImageCrossAttention, "keys", lambda *args: computed.append(1) or original(*args))

    def after_step(pipe, step, timestep, tensors):
        if step == 0 and change == "scale":
            pipe.set_adapters("a", 0.5)
        elif step == 0 and change == "load":
            pipe.load_lora_weights(tmp_path / "lora.safetensors", adapter_name="a")
        elif step == 0 and change == "unload":
            pipe.unload_lora_weights()
        return {}

    def made() -> torch.Tensor:
        computed.clear()
        if change in ("scale", "unload"):
            pipeline.load_lora_weights(tmp_path / "lora.safetensors", adapter_name="a")
        out = run_all(
            pipeline, clip, num_frames=2, num_inference_steps=3, output_type="latent", callback_on_step_end=after_step,
            guidance_scale=1.0,
        )  # fmt: skip
        pipeline.unload_lora_weights()
        return out

    out, places = made(), sum(isinstance(m, TextImageCrossAttention) for m in pipeline.unet.modules())
    times = len(computed) / places
    monkeypatch.setattr(CrossAttentionCache, "get", lambda self, place, layer, *tokens: layer.keys(*tokens))
    anew = made()  # weights that lie elsewhere in memory may give another last bit
    assert float((out - anew).abs().max()) < 1e-5 * float(anew.abs().max())
    assert times == (1 if change == "nothing" else 2)
