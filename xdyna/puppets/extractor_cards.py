"""The cards (README.md) of the shipped puppet extractors."""

from collections.abc import Mapping

from torch import nn

from xdyna.puppets.extractor_clips import MOTIONS, SCENES
from xdyna.puppets.networks import CLIP_FRAMES, CLIP_SIDE, FACE_SIDE, PuppetDynamics, PuppetIdentity


def dynamics_card(network: PuppetDynamics, facts: Mapping[str, object], accuracy: Mapping[str, float]) -> str:
    """README.md of puppet-dynamics. Args: facts: "train_clips", "test_clips". accuracy: of `measure_dynamics`."""
    rows = {
        "scene": f"kind of scene, 1 of {len(SCENES)} (a third are static)",
        "scene_background": "the same with the figure cut away",
        "frozen": "moving scene frozen behind a moving figure: called static",
        "motion": f"kind of motion, 1 of {len(MOTIONS)}",
        "motion_figure": "the same with the scene cut away",
        "still": "one frame repeated: called still",
        "order": "in order, or shuffled throughout (a half each)",
    }
    table = "\n".join(f"| {text} | {100 * accuracy[name]:.1f} % |" for name, text in rows.items())
    return f"""# puppet-dynamics

A small 3-D convolutional network ({_size(network):,} parameters) that looks at clips of the puppet world: {CLIP_FRAMES}
frames at 12 per second, scaled to {CLIP_SIDE} x {CLIP_SIDE} px. Its {network.dim} features take the place of I3D's in
`dtfvd[puppet]` and its figure and background halves. Code: `xdyna/puppets/networks.py`. It knows puppets only.

Trained by `python scripts/puppets.py train-extractors dynamics` on {facts["train_clips"]:,} clips of the
training split,
whole or cut to figure or background (the rest black), to tell the kinds of scene ({", ".join(SCENES)}) and motion
({", ".join(MOTIONS)}). Some clips are frozen, repeat one frame or have shuffled frames, and the network is taught to
tell that: **it reacts to freezing and shuffling because it was trained to.** It never saw blurred or noisy clips.

Measured on {facts["test_clips"]:,} clips of identities, motions and scenes that were not trained on:

| told right | share |
| --- | ---: |
{table}
"""


def identity_card(
    network: PuppetIdentity, facts: Mapping[str, object], accuracy: Mapping[str, Mapping[str, float]]
) -> str:
    """README.md of puppet-identity. Args: facts: "train_identities", "test_identities". accuracy: by kind of heads."""
    names = {
        "eer": "equal error rate",
        "tar": "one person accepted at 0.1 % false accepts",
    }
    lines = [
        f"| {text} | {' | '.join(f'{100 * row[n]:.2f} %' for row in accuracy.values())} |" for n, text in names.items()
    ]
    means = {"same": "mean cosine, one person", "other": "mean cosine, two people"}
    lines += [f"| {text} | {' | '.join(f'{row[n]:.3f}' for row in accuracy.values())} |" for n, text in means.items()]
    table = "\n".join(lines)
    return f"""# puppet-identity

A small network ({_size(network):,} parameters) that turns a puppet's head with hair, hat and collar, cut out upright to
{FACE_SIDE} x {FACE_SIDE} px, into a unit vector of {network.dim} numbers. The cosine of two vectors is
`face_cos[puppet]`. Code: `xdyna/puppets/networks.py`. It knows puppets only, and does not find heads by itself:
the places of both ears are taken from the ground truth or the driving keypoints.

Trained by `python scripts/puppets.py train-extractors identity` on {facts["train_identities"]:,} identities of the
training split in two clips each, by a cosine softmax with a margin; heads are blurred, shifted, tinted and
dirtied at random.
Verification on {facts["test_identities"]:,} identities that were not trained on; the two heads of a pair are from clips
with other motions and scenes; "blurred" with a Gaussian of sigma 1 px:

| | {" | ".join(accuracy)} |
| --- |{" ---: |" * len(accuracy)}
{table}

Heads of puppets differ plainly in colours and hair. Do not read these rates as those of a recogniser of people.
"""


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
