"""Hostile settings and config files: on the command line, as presets, experiments and models of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.hostile.case import Case, Place
from tests.hostile.common import infer

GLOBAL = "# @package _global_\n"


def preset(name: str, text: str | bytes, *, works: bool = False, names: str = "") -> Case:
    """A preset of one's own."""

    def make(place: Place) -> Sequence[str]:
        content = text if isinstance(text, bytes) else (GLOBAL + text).replace("SECRET", str(place.secret / "word.txt"))
        path = place.put("own/preset/mine.yaml", content.replace("CANARY", str(place.canary)) if isinstance(content, str) else content)  # fmt: skip
        return infer(place, "--dry-run", "--config-dir", str(Path(path).parents[1]), "preset=mine", few=False)

    return Case("config", f"preset, {name}", make, works=works, names=names)


def word(name: str, *words: str, works: bool = False, names: str = "") -> Case:
    """Words on infer.py's command line."""

    def make(place: Place) -> Sequence[str]:
        return infer(place, "--dry-run", *(w.replace("CANARY", str(place.canary)) for w in words))

    return Case("config", f"word, {name}", make, works=works, names=names)


def train(name: str, *words: str, works: bool = False, names: str = "") -> Case:
    """Words on train.py's command line."""

    def make(place: Place) -> Sequence[str]:
        made = [w.replace("CANARY", str(place.canary)).replace("SECRET", str(place.secret)) for w in words]
        return ["experiment=dynamics", "--dry-run", *made]

    return Case("config", f"train, {name}", make, program="xdyna.cli.train", works=works, names=names)


def model(name: str, text: str, *, works: bool = False) -> Case:
    """A file with the sizes of networks, for convert.py."""

    def make(place: Place) -> Sequence[str]:
        return ["--model", place.put("sizes.yaml", text), "--official", str(place.given), "--out", "made"]

    return Case("config", f"model, {name}", make, program="xdyna.cli.convert", works=works)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join(['*' + chr(97 + k)] * 9)}]\n" for k in range(8)
)
FILES: dict[str, str | bytes] = {
    "unknown key": "stepz: 3\n",
    "unknown section": "evil: {a: 1}\n",
    "text for a number": "steps: many\n",
    "list for a number": "steps: [1, 2]\n",
    "section for a number": "steps: {a: 1}\n",
    "number for a list": "lora: 7\n",
    "steps 0": "steps: 0\n",
    "steps -1": "steps: -1\n",
    "steps 10^30": f"steps: {10**30}\n",
    "steps of 10,000 digits": f"steps: {'9' * 10_000}\n",
    "steps true": "steps: true\n",
    "steps 1.5": "steps: 1.5\n",
    "guidance NaN": "guidance: .nan\n",
    "guidance infinite": "guidance: .inf\n",
    "guidance interval of one": "guidance_interval: [0.5]\n",
    "guidance interval of text": "guidance_interval: [a, b]\n",
    "seed 2^64": f"seed: {2**64}\n",
    "size 10^9": "height: 1000000000\nwidth: 1000000000\n",
    "size of one side": "height: 64\n",
    "size 7": "height: 7\nwidth: 7\n",
    "cycle of two": "prompt: ${negative_prompt}\nnegative_prompt: ${prompt}\n",
    "cycle of one": "prompt: ${prompt}\n",
    "interpolation of nothing": "prompt: ${nowhere}\n",
    "unknown resolver": "prompt: ${evil:1}\n",
    "decode resolver": "prompt: ${oc.decode:'{{'}\n",
    "environment that is not there": "prompt: ${oc.env:XDYNA_NOWHERE}\n",
    "unclosed interpolation": "prompt: ${oc.env:\n",
    "a Python object": "prompt: !!python/object/apply:os.system ['touch CANARY']\n",
    "a Python name": "prompt: !!python/name:os.system\n",
    "an unknown tag": "prompt: !evil x\n",
    "a million laughs": LAUGHS,
    "alias to itself": "lora: &a [*a]\n",
    "nested 5,000 deep": "prompt: " + "[" * 5000 + "]" * 5000 + "\n",
    "unclosed": "prompt: {a: [\n",
    "twice the same key": "steps: 1\nsteps: 2\n",
    "two documents": "steps: 1\n---\nsteps: 2\n",
    "a list": "- steps\n- 2\n",
    "a number": "7\n",
    "tabs": "steps:\t1\n\t- a\n",
    "not UTF-8": b"prompt: '\xff\xfe\xfa'\n",
    "zeros": bytes(5000),
    "UTF-16": "steps: 1\n".encode("utf-16"),
    "defaults above": "defaults:\n  - ../../secret/word\n",
    "defaults absolute": "defaults:\n  - /etc/passwd\n",
    "defaults of itself": "defaults:\n  - mine\n",
    "defaults of text": "defaults: hello\n",
    "hydra's own": "hydra:\n  run:\n    dir: CANARY\n",
    "hydra's output folder": "hydra:\n  job:\n    chdir: true\n",
    "hydra's callbacks": "hydra:\n  callbacks:\n    evil:\n      _target_: os.system\n      command: touch CANARY\n",
    "hydra's launcher": "hydra:\n  launcher:\n    _target_: os.system\n",
    "hydra's search path": "hydra:\n  searchpath: ['file:///etc']\n",
    "target": "prompt:\n  _target_: os.system\n  command: touch CANARY\n",
    "face source os.abort": "align: global\nface_source: os.abort\n",
    "face source subprocess": "align: global\nface_source: subprocess.Popen\n",
    "face source that is a module": "align: global\nface_source: os.path\n",
    "face source that is text": "align: global\nface_source: a b c\n",
    "face source relative": "align: global\nface_source: ..evil.Evil\n",
    "device evil": "device: evil\n",
    "device cuda:-1": "device: 'cuda:-1'\n",
    "device cuda:10^30": "device: 'cuda:1000000000000000000000000000000'\n",
    "scheduler os.system": "scheduler: os.system\n",
    "scheduler dunder": "scheduler: __init__\n",
    "lora nowhere": "lora: ['/nowhere/at.all']\n",
    "lora of a secret": "lora: ['SECRET']\n",
    "lora with a scale of NaN": "lora: ['SECRET:nan']\n",
    "lora of numbers": "lora: [1, 2]\n",
    "context frames 10^12": "context_frames: 1000000000000\n",
    "context overlap -1": "context_overlap: -1\n",
    "person 10^12": "person: 1000000000000\n",
    "fps 0": "fps: 0\n",
    "fps 1e300": "fps: 1.0e300\n",
    "stride 10^18": "stride: 1000000000000000000\nfps: null\n",
}
FINE = {"lora of numbers", "person 10^12", "hydra's output folder", "hydra's own", "hydra's launcher", "context frames 10^12",
        "hydra's callbacks", "face source os.abort", "face source subprocess", "face source that is a module",
        "face source that is text", "face source relative", "lora nowhere", "lora of a secret", "lora with a scale of NaN",
        "scheduler os.system", "scheduler dunder", "guidance infinite", "steps true", "UTF-16",
        "device cuda:10^30", "two documents"}  # fmt: skip
"""Those that a dry run need not refuse: what they name comes later, or they have a meaning."""
WORDS = ["steps=", "steps==1", "=1", "+=1", "steps=[1", "steps={a:1}", "+evil=1", "++steps=evil", "~steps", "~", "steps=1,2",
         "steps=range(1,5)", "steps=glob(*)", "preset=[fast,slow]", "preset=../../secret/word", "preset=/etc/passwd", "preset=",
         "schema/infer=evil", "hydra.run.dir=CANARY", "hydra/launcher=evil", "hydra.mode=MULTIRUN", "prompt=${prompt}",
         "steps=${oc.env:HOME}", "prompt=${oc.create:{_target_:os.system}}", "__class__=1", "steps.__class__=1", "steps.a.b=1",
         "lora[0]=x", "evil@steps=1", "preset@steps=fast", "prompt='", 'prompt="a', "prompt=\\", "steps=1e400", "steps=0x10",
         "seed=-1", "guidance=nan", "a" * 100_000 + "=1", "prompt=" + "x" * 100_000, "prompt=a\0b", "prompt=\ud800", "\n=1"]  # fmt: skip
FINE_WORDS = {
    "prompt=\\",
    "hydra.run.dir=CANARY",
    "hydra.mode=MULTIRUN",
    "prompt=" + "x" * 100_000,
    "prompt=a\0b",
    "~",
    "prompt=\ud800",
}
TRAINS = {
    "batch 0": "batch=0",
    "batch 10^18": f"batch={10**18}",
    "micro batch above": "micro_batch=1000000",
    "rate NaN": "optim.lr=nan",
    "rate infinite": "optim.lr=inf",
    "rate negative": "optim.lr=-1",
    "steps negative": "max_steps=-5",
    "stage evil": "stage=evil",
    "stage name evil": "data.source=os.system",
    "source dunder": "data.source=builtins.eval",
    "data frames 0": "data.frames=0",
    "data frames 10^12": f"data.frames={10**12}",
    "data size 10^9": "data.height=1000000000",
    "ratio 7": "data.scene_ratio=7",
    "ratio NaN": "data.scene_ratio=nan",
    "model unknown": "model=evil",
    "model key": "+model.unet.evil=1",
    "model channels": "model.unet.block_out_channels=[-1]",
    "out empty": "out=",
    "init evil": "init=SECRET/word.txt",
    "experiment above": "experiment=../../../etc/passwd",
    "workers 10^9": "data.workers=1000000000",
    "precision evil": "precision=fp3",
}
TRAINS_FINE = {"batch 10^18", "stage name evil", "source dunder", "init evil", "workers 10^9", "data frames 10^12", "rate NaN",
               "data size 10^9", "rate infinite", "out empty"}  # fmt: skip
MODELS = {
    "a list": "- 1\n",
    "empty": "",
    "a Python object": "!!python/object/apply:os.system ['true']\n",
    "unknown section": "evil: 1\n",
    "text for a section": "unet: hello\n",
    "unclosed": "unet: {\n",
    "laughs": LAUGHS,
    "cycle": "unet: ${vae}\nvae: ${unet}\n",
    "zeros": "\0" * 100,
}


def cases() -> Iterator[Case]:
    """All of them."""
    for name, text in FILES.items():
        yield preset(name, text, works=name in FINE)
    for number, one in enumerate(WORDS):
        yield word(f"{number} {one[:30]!r}", one, works=one in FINE_WORDS)
    for name, one in TRAINS.items():
        yield train(name, one, works=name in TRAINS_FINE)
    for name, text in MODELS.items():
        yield model(name, text)
