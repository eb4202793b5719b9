"""The published release and the initialisation of training, arranged as published, small and with random weights."""

import json
import shutil
from pathlib import Path

import torch
import yaml
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file

from tests.process.small import SMALL
from xdyna.checkpoints.io import load_state_dict
from xdyna.pipelines.untrained import build_pipeline
from xdyna.pipelines.xdyna import XDynaPipeline

State = dict[str, torch.Tensor]


def published_resampler(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our Resampler weights under the names of the published file (written out, not our map turned round)."""
    names = {"latents": "latents"}
    for part in ("proj_in", "proj_out", "norm_out"):
        names |= {f"{part}.{end}": f"{part}.{end}" for end in ("weight", "bias")}
    for end in ("weight", "bias"):
        names |= {f"layers.0.ln0.{end}": f"layers.0.0.norm1.{end}", f"layers.0.ln1.{end}": f"layers.0.0.norm2.{end}"}
        names[f"layers.0.ff.0.{end}"] = f"layers.0.1.0.{end}"
    names["layers.0.attn.to_q.weight"] = "layers.0.0.to_q.weight"
    names["layers.0.attn.to_out.0.weight"] = "layers.0.0.to_out.weight"
    names["layers.0.ff.1.net.0.proj.weight"] = "layers.0.1.1.weight"
    names["layers.0.ff.1.net.2.weight"] = "layers.0.1.3.weight"
    state = {name.removeprefix("projection."): tensor for name, tensor in state.items()}
    out = {names[name]: tensor for name, tensor in state.items() if name in names}
    keys, values = state["layers.0.attn.to_k.weight"], state["layers.0.attn.to_v.weight"]
    return {**out, "layers.0.0.to_kv.weight": torch.cat([keys, values])}


def write_published(root: Path) -> XDynaPipeline:
    """Fill a folder as the published release is arranged, and write `model.yaml` beside it. Returns its pipeline."""
    pipeline = build_pipeline(SMALL, seed=3)
    for name in ("unet", "controlnet", "controlnet_face", "initialization/IP-Adapter/models"):
        (root / name).mkdir(parents=True)
    state = pipeline.unet.state_dict()
    torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}}, root / "unet/unet-checkpoint-epoch-5.ckpt")
    torch.save(pipeline.pose_controlnet.state_dict(), root / "controlnet/controlnet-checkpoint-epoch-5.ckpt")
    torch.save(pipeline.face_controlnet.state_dict(), root / "controlnet_face/controlnet-face-checkpoint-epoch-2.ckpt")
    sd15 = root / "initialization" / "stable-diffusion-v1-5"
    for part in ("vae", "text_encoder", "tokenizer"):
        getattr(pipeline, part).save_pretrained(sd15 / part)
    (sd15 / "model_index.json").write_text("{}")
    ip_adapter = root / "initialization" / "IP-Adapter" / "models"
    pipeline.image_encoder.save_pretrained(ip_adapter / "image_encoder")
    resampler = published_resampler(pipeline.image_projection.state_dict())
    torch.save(
        {"image_proj": resampler, "ip_adapter": {"1.to_k_ip.weight": torch.zeros(1)}},
        ip_adapter / "ip-adapter-plus_sd15.bin",
    )
    sizes = {
        "unet": SMALL.unet,
        "controlnet": SMALL.controlnet,
        "resampler": SMALL.resampler,
        "scheduler": SMALL.scheduler,
    }
    (root.parent / "model.yaml").write_text(yaml.safe_dump(sizes))
    return pipeline


def write_initial(root: Path, pipeline: XDynaPipeline) -> tuple[UNet2DConditionModel, ControlNetModel, State, State]:
    """Add what training starts from. Returns the UNet, ControlNet openpose, motion modules and image tokens."""
    base = root / "initialization"
    blocks = {k: v for k, v in SMALL.unet.items() if k in ("block_out_channels", "layers_per_block", "norm_num_groups")}
    sd15 = UNet2DConditionModel(
        **blocks,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    sd15.save_pretrained(base / "stable-diffusion-v1-5" / "unet")
    openpose = ControlNetModel(**SMALL.controlnet, conditioning_channels=3)
    openpose.save_pretrained(base / "control_v11p_sd15_openpose")
    motion = {n: torch.randn_like(t) for n, t in pipeline.unet.state_dict().items() if "motion_modules" in n}
    motion |= {n: t for n, t in pipeline.unet.state_dict().items() if n.endswith(".pe")}
    torch.save(motion, base / "mm_sd_v15.ckpt")
    image_proj = published_resampler(pipeline.image_projection.state_dict())
    numbered = [n.removesuffix(".processor") for n in sd15.attn_processors]
    tokens = {
        f"{i}.{kind}.weight": torch.randn_like(pipeline.unet.state_dict()[f"{layer}.{kind}.weight"])
        for i, layer in enumerate(numbered)
        if layer.endswith("attn2")
        for kind in ("to_k_ip", "to_v_ip")
    }
    path = base / "IP-Adapter/models/ip-adapter-plus_sd15.bin"
    torch.save({"image_proj": image_proj, "ip_adapter": tokens}, path)
    return sd15, openpose, motion, tokens


def write_hub(folder: Path) -> None:
    """The files of pretrained/registry.yaml by repository, "OWNER/NAME/PATH", and `model.yaml` beside the folder."""
    made = folder.parent / f"{folder.name}-release"
    _, _, _, tokens = write_initial(made, write_published(made))
    base, model = made / "initialization", folder / "Boese0601" / "X-Dyna"
    model.mkdir(parents=True)
    for checkpoint in made.glob("*/*.ckpt"):
        if checkpoint.parent != base:
            shutil.copy(checkpoint, model)
    sd15 = folder / "stable-diffusion-v1-5" / "stable-diffusion-v1-5"
    shutil.copytree(base / "stable-diffusion-v1-5", sd15)
    (sd15 / "scheduler").mkdir()
    (sd15 / "scheduler" / "scheduler_config.json").write_text(json.dumps(SMALL.scheduler))
    words = json.loads((sd15 / "tokenizer" / "tokenizer.json").read_text())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in words["merges"]]
    (sd15 / "tokenizer" / "vocab.json").write_text(json.dumps(words["vocab"]))
    (sd15 / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (sd15 / "tokenizer" / "special_tokens_map.json").write_text("{}")
    shutil.copytree(base / "IP-Adapter" / "models", folder / "h94" / "IP-Adapter" / "models")
    file = folder / "h94" / "IP-Adapter" / "models" / "ip-adapter-plus_sd15.bin"
    flat = {name: tensor.contiguous() for name, tensor in load_state_dict(file).items()}
    assert {name for name in flat if name.startswith("ip_adapter")} == {f"ip_adapter.{name}" for name in tokens}
    save_file(flat, file.with_suffix(".safetensors"))
    file.unlink()
    shutil.copytree(base / "control_v11p_sd15_openpose", folder / "lllyasviel" / "control_v11p_sd15_openpose")
    (folder / "guoyww" / "animatediff").mkdir(parents=True)
    shutil.copy(base / "mm_sd_v15.ckpt", folder / "guoyww" / "animatediff")
    shutil.move(made.parent / "model.yaml", folder.parent / "model.yaml")
