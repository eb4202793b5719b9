"""Consistency distillation: its equations by hand, a case that is known in closed form, and who gets gradients."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler
from torch import Tensor

from tests.unit.training.test_objective import randomised
from xdyna.config.train import DistillConfig, LossConfig
from xdyna.data.samples import Batch
from xdyna.diffusion.prior import similarity_prior
from xdyna.models.denoiser import Control, Tokens
from xdyna.pipelines.xdyna import XDynaPipeline
from xdyna.training.components import Components, add_lora, as_pipeline, save_lora, without_lora
from xdyna.training.distill import ConsistencyObjective, boundary_scalings
from xdyna.training.draws import TRAINING
from xdyna.training.ema import EMA
from xdyna.training.groups import select_trainable
from xdyna.training.stages import STAGES

MakeBatch = Callable[..., Batch]
RANK = 3


def student(
    components: Components, *, prediction_type: str = "epsilon", seed: int = 2, **settings: Any
) -> ConsistencyObjective:
    """With LoRA factors that say something."""
    components.scheduler = type(components.scheduler).from_config(
        components.scheduler.config, prediction_type=prediction_type
    )
    add_lora(randomised(components).unet, RANK)
    select_trainable(components, ["lora"])
    loss = LossConfig(distill=DistillConfig(**settings))
    objective = STAGES["distill"].objective(components, loss, seed=seed)
    assert isinstance(objective, ConsistencyObjective)
    generator = torch.Generator().manual_seed(1)
    for p in objective.trainable().values():
        p.data = 0.1 * torch.randn(p.shape, generator=generator)
    objective.follow(objective.trainable())
    return objective


@pytest.mark.parametrize("points", [50, 8, 4, 2, 1])
def test_points_and_scalings_are_those_of_diffusers(points: int, components: Components) -> None:
    objective = ConsistencyObjective(components, LossConfig(distill=DistillConfig(points=points)), seed=0)
    schedule = LCMScheduler.from_config(components.scheduler.config)
    schedule.set_timesteps(points)
    assert objective.points == schedule.timesteps.tolist()
    drawn = [t for i in range(400) for t in objective.timesteps([i])]
    assert set(drawn) == set(objective.points)
    assert max(drawn.count(t) for t in objective.points) < 3 * 400 / points
    for t in (0, 1, 19, 259, 999):
        skip, out = boundary_scalings(torch.tensor([t]))
        expected = schedule.get_scalings_for_boundary_condition_discrete(t)
        assert (float(skip), float(out)) == pytest.approx(expected, rel=1e-6)


CASES: dict[str, dict[str, Any]] = {
    "guided, from copies of the reference": {
        "points": 2,
        "solver_steps": 2,
        "guidance": 3.0,
        "prior": 1.0,
        "huber": 0.1,
    },
    "velocity, frames known": {
        "points": 4,
        "windows": 1.0,
        "window_frames": 3,
        "held": 1.0,
        "prior": 0.0,
        "solver_steps": 3,
    },
}


@pytest.mark.parametrize("case", list(CASES))
def test_against_diffusers_schedulers_by_hand(case: str, components: Components, make_batch: MakeBatch) -> None:
    """Each clip of a batch alone: teacher by DPM-Solver++ of first order (which is DDIM), student and target by LCM."""
    settings, velocity = CASES[case], case.startswith("velocity")
    objective = student(
        components, prediction_type="v_prediction" if velocity else "epsilon", **{"guidance": 1.0, **settings}
    )
    c, frames, batch = objective.settings, 4, make_batch([3, 4, 5, 6], frames=4)
    held, shown = (c.held_frames, c.window_frames) if velocity else (0, frames)
    average = {name: p.detach() + 0.05 for name, p in objective.trainable().items()}
    target_net = copy.deepcopy(components)
    for name, p in target_net.unet.named_parameters():
        if f"unet.{name}" in average:
            p.data = average[f"unet.{name}"]
    bare = copy.deepcopy(components)
    bare.unet.unload_lora()
    objective.follow(average)
    with torch.no_grad():
        losses = objective(batch)
        draw = objective._draw(batch, TRAINING)
        assert len(set(draw.timestep.tolist())) > 1
        for k in range(4):
            one = _row(batch, k, shown)
            latents = objective._latents(_row(batch, k), draw.posterior[k : k + 1])
            reference, clean = latents[:, :, :1], latents[:, :, 1 : 1 + shown]
            noise, t = draw.noise[k : k + 1, :, :shown], int(draw.timestep[k])

            def says(networks: Components, x: Tensor, t: int, *, drop: bool = False) -> Tensor:
                return _predict(objective, networks, one, reference, x, t, drop=drop)  # noqa: B023

            begin = clean
            if t == objective.points[0] and c.prior:
                blurred = objective._shown(int(batch.index[k]), tuple(draw.noise.shape[1:]), TRAINING).blurred
                begin = similarity_prior(reference[:, :, 0], blurred[None, :, :shown])
            x = x0 = objective.scheduler.add_noise(begin, noise, torch.tensor([t]))
            below = [*objective.points[1:], -1][objective.points.index(t)]
            for i in range(c.solver_steps):
                now, to = (t + math.trunc((below - t) * n / c.solver_steps) for n in (i, i + 1))
                out = says(bare, x, now)
                if c.guidance is not None and c.guidance > 1:
                    free = says(bare, x, now, drop=True)
                    out = free + c.guidance * (out - free)
                x = _first_order(objective, x, out, now, to)
                known = clean if to < 0 else objective.scheduler.add_noise(clean, noise, torch.tensor([to]))
                x = torch.cat([known[:, :, :held], x[:, :, held:]], dim=2)
            goal = x if below < 0 else _lcm(objective, target_net, says, x, clean, below, held)
            answer = _lcm(objective, components, says, x0, clean, t, held)
            difference = (answer - goal)[:, :, held:]
            expected = ((difference**2 + c.huber**2).sqrt() - c.huber).mean()
            torch.testing.assert_close(losses[k], expected, rtol=2e-3, atol=1e-5)


def _row(batch: Batch, k: int, frames: int | None = None) -> Batch:
    rows = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    one = {name: value[k : k + 1] if value is not None else None for name, value in rows.items()}
    if frames is not None:
        one |= {name: one[name][:, :frames] for name in ("pose", "face")}
    return Batch(**one)


def _predict(
    objective: ConsistencyObjective,
    networks: Components,
    one: Batch,
    reference: Tensor,
    x: Tensor,
    t: int,
    *,
    drop: bool,
) -> Tensor:
    keep = torch.tensor([not drop])
    tokens = Tokens(networks.encode_text([""]), networks.encode_image(one.pixels[:, 0], keep=keep))
    assert networks.face_controlnet is not None
    controls = [Control(networks.pose_controlnet, one.pose), Control(networks.face_controlnet, one.face)]
    return networks.denoise_clip(x, torch.tensor([t]), tokens, reference_BC1hw=reference, controls=controls)


def _first_order(objective: ConsistencyObjective, x: Tensor, out: Tensor, now: int, to: int) -> Tensor:
    """DPM-Solver++ (arXiv 2211.01095, eq. 9) of first order, in its own variables, from diffusers' conversion."""
    solver = DPMSolverMultistepScheduler.from_config(objective.scheduler.config)
    a = solver.alphas_cumprod.double()
    alpha, sigma = a[now].sqrt(), (1 - a[now]).sqrt()
    clean = alpha * x - sigma * out if objective.of_velocity else (x - sigma * out) / alpha
    if to < 0:
        return clean.float()
    alpha_to, sigma_to = a[to].sqrt(), (1 - a[to]).sqrt()
    h = (alpha_to.log() - sigma_to.log()) - (alpha.log() - sigma.log())
    return ((sigma_to / sigma) * x - alpha_to * torch.expm1(-h) * clean).float()


def _lcm(
    objective: ConsistencyObjective, networks: Components, says: Any, x: Tensor, clean: Tensor, t: int, held: int
) -> Tensor:
    """What diffusers' LCMScheduler calls denoised."""
    schedule = LCMScheduler.from_config(objective.scheduler.config)
    schedule.set_timesteps(50)
    x = torch.cat([clean[:, :, :held], x[:, :, held:]], dim=2)
    return schedule.step(says(networks, x, t), t, x, return_dict=False)[1]


@pytest.mark.parametrize("deviation", [0.3, 1.0])
def test_gaussian_data_have_a_consistency_function(
    deviation: float, components: Components, make_batch: MakeBatch
) -> None:
    """For data N(0, d^2) the flow is x_t = x_0 sqrt(a d^2 + 1 - a) / d: the student that knows it has no loss, and the
    teacher, whose answer is the mean of the clean latents, leads there."""
    objective = student(components, prediction_type="v_prediction", points=2, solver_steps=200, guidance=1.0)
    a = objective.alphas_cumprod.double()

    def v(x: Tensor, clean: Tensor, t: int) -> Tensor:
        return (a[t].sqrt() * x - clean) / (1 - a[t]).sqrt()

    def predict(reference: Tensor, noisy: Tensor, t_B: Tensor, *_: Any, by: Any = None, **__: Any) -> Tensor:
        rows = []
        for x, t in zip(noisy.double(), t_B.tolist(), strict=True):
            variance = a[t] * deviation**2 + 1 - a[t]
            if by is objective.teacher:
                rows.append(v(x, a[t].sqrt() * deviation**2 / variance * x, t))
                continue
            wanted, (skip, scale) = x * deviation / variance.sqrt(), boundary_scalings(torch.tensor(t))
            rows.append(v(x, (wanted - skip * x) / scale, t))
        return torch.stack(rows).float()

    objective.predict = predict  # type: ignore[method-assign]
    losses = objective(make_batch([0, 1, 2, 3]))
    assert float(losses.max()) < 0.01
    objective.settings.solver_steps = 1  # a straight line is no flow
    assert float(objective(make_batch([0, 1, 2, 3])).mean()) > 5 * float(losses.mean())


def test_gradients_reach_the_student_alone_and_the_target_follows(
    components: Components, make_batch: MakeBatch
) -> None:
    objective = student(components, points=4, windows=0.5, window_frames=2, held_frames=1, guidance=1.0)
    trainable = objective.trainable()
    assert all(".lora_" in name for name in trainable)
    average = EMA(trainable, decay=0.5, warmup=False)  # type: ignore[arg-type]
    objective.follow(average.state_dict())
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    objective(make_batch([0, 1, 2], frames=3)).mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in trainable.values())
    assert {name for name, p in objective.named_parameters() if p.grad is not None} == {
        f"networks.{n}" for n in trainable
    }
    optimizer.step()
    average.update(1)
    moved = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"networks.{n}" for n in trainable} | {f"copies.target_{n}" for n in trainable}
    for name, value in average.state_dict().items():
        assert torch.equal(objective.state_dict()[f"copies.target_{name}"], value)
    assert not any(".lora_" in name for name, _ in objective.teacher.unet.named_parameters())


def test_the_loss_of_a_clip_does_not_depend_on_its_batch(components: Components, make_batch: MakeBatch) -> None:
    """Windows of several lengths in one batch."""
    objective = student(components, points=4, windows=0.5, window_frames=2, held_frames=1, guidance=1.0)
    batch = make_batch([0, 1, 2, 3, 4, 5, 6, 7], frames=3)
    kinds = {(s.frames, s.held) for s in (objective._shown(i, (4, 3, 8, 8), TRAINING) for i in range(8))}
    assert len(kinds) == 3
    with torch.no_grad():
        torch.testing.assert_close(objective(batch), torch.cat([objective(_row(batch, k)) for k in range(8)]))


def test_whole_weights_can_be_the_student(components: Components, make_batch: MakeBatch) -> None:
    groups = select_trainable(components, ["motion", "adapter"])
    loss = LossConfig(distill=DistillConfig(points=4, guidance=1.0))
    objective = STAGES["distill"].objective(components, loss, seed=0)
    names = {name for parameters in groups.values() for name in parameters}
    teacher = {name: p.clone() for name, p in objective.teacher.unet.named_parameters()}  # type: ignore[attr-defined]
    with torch.no_grad():
        for name, p in components.unet.named_parameters():
            if f"unet.{name}" in names:
                p += 1
    now = dict(objective.teacher.unet.named_parameters())  # type: ignore[attr-defined]
    assert all(torch.equal(value, now[name]) for name, value in teacher.items())
    shared = [name for name, p in components.unet.named_parameters() if p is now[name]]
    assert {f"unet.{name}" for name in now} - {f"unet.{name}" for name in shared} == names
    objective(make_batch([0, 1])).mean().backward()


def test_what_is_handed_on(components: Components, tmp_path: Path) -> None:
    """The LoRA file on the teacher, the network with the LoRA in it, and the student say the same."""
    bare = copy.deepcopy(randomised(components).unet)
    student(components)
    save_lora(components.unet, tmp_path / "lora.safetensors")
    teacher = as_pipeline(components)
    x, t, text = torch.randn(1, 4, 3, 8, 8), torch.tensor([500]), torch.randn(1, 77, 16)
    image = torch.randn(1, 4, 16)
    with torch.no_grad():
        expected = components.unet(x, t, text, image).sample
        fused = without_lora(components.unet)
        assert not any("lora" in name for name in fused.state_dict())
        torch.testing.assert_close(fused(x, t, text, image).sample, expected, rtol=1e-4, atol=1e-5)
        pipeline = XDynaPipeline(**{**teacher.components, "unet": bare})
        assert not torch.allclose(pipeline.unet(x, t, text, image).sample, expected, atol=1e-3)
        pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
        torch.testing.assert_close(pipeline.unet(x, t, text, image).sample, expected, rtol=2e-2, atol=2e-3)
