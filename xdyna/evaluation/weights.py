"""Weight files of metrics: found in a folder, checked, downloaded where they have an address, made into networks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from xdyna.checkpoints.io import load_state_dict
from xdyna.core.errors import UsageError, WeightsError
from xdyna.core.files import file_sha256
from xdyna.core.hub import fetch
from xdyna.evaluation.networks import insightface
from xdyna.evaluation.networks.npy import read_arrays
from xdyna.evaluation.networks.registry import EXTRACTORS, ExtractorSpec, WeightFile, how_to_get


class MissingWeights(Exception):
    """A metric cannot be computed because files are missing; says which and where to get them."""


@dataclass
class WeightsFolder:
    """Where weight files of metrics lie.

    Attributes:
        folder: searched in depth; None: there is none.
        download: fetch what is missing and has an address.
        device: where networks run.
        batch: images that a network sees at once; None: its own number.
        dtype: what networks compute in (by autocast, which the caller switches on): part of their version.
        used: sha256 of the files that were used, by name.
    """

    folder: Path | None
    download: bool = False
    device: str | None = None
    batch: int | None = None
    dtype: str = "float32"
    used: dict[str, str] = field(default_factory=dict)
    _built: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.folder is not None and not self.folder.is_dir() and not self.download:
            raise UsageError(f"--weights-dir {self.folder} does not exist; give the folder that holds the weight files")
        if self.download and self.folder is None:
            raise UsageError("--download needs --weights-dir, the folder that files are put into")

    def extractor(self, name: str) -> Any:
        """The network of a specification, made once.

        Args:
            name: key of `EXTRACTORS`, or "insightface", whose models are in a folder of that name.

        Raises:
            MissingWeights: files are not there.
            WeightsError: a file has another hash, or is damaged.
            PerceptionError: insightface is not installed, or one of its models cannot be loaded.
            ValueError: its tensors are not those of the network.
        """
        if name == insightface.NAME and name not in self._built:
            self._built[name] = self._insightface()
        if name not in self._built:
            spec = EXTRACTORS[name]
            paths = self._files(spec)
            hashes = [_checked(path, file) for path, file in zip(paths, spec.files, strict=True)]
            self.used.update({file.name: digest for file, digest in zip(spec.files, hashes, strict=True)})
            states = [_tensors(path) for path in paths]
            network = spec.build(states, "".join(digest[:6] for digest in hashes), self.device)
            if self.batch is not None:
                network.batch = self.batch
            if self.dtype != "float32":
                network.version += f"-{self.dtype}"
            self._built[name] = network
        return self._built[name]

    def release(self) -> None:
        """Let go of the networks; they are made anew when they are asked for."""
        self._built.clear()

    def _insightface(self) -> insightface.InsightFaceEmbedder:
        folder = self.folder / insightface.NAME if self.folder is not None else None
        files = sorted(folder.glob("*.onnx")) if folder is not None else []
        if folder is None or not files:
            raise MissingWeights(insightface.HOW)
        embedder = insightface.InsightFaceEmbedder(folder)
        self.used.update({f"{insightface.NAME}/{file.name}": file_sha256(file) for file in files})
        return embedder

    def _files(self, spec: ExtractorSpec) -> list[Path]:
        found = {file.name: self._find(file) for file in spec.files}
        if self.download and self.folder is not None:
            for file in spec.files:
                if found[file.name] is None and (published := file.published) is not None:
                    found[file.name] = fetch(published, self.folder)
        missing = [file for file in spec.files if found[file.name] is None]
        if missing:
            raise MissingWeights(how_to_get(spec, missing))
        return [path for path in found.values() if path is not None]

    def _find(self, file: WeightFile) -> Path | None:
        if self.folder is None or not self.folder.is_dir():
            return None
        found = (path for name in (file.name, *file.also) for path in sorted(self.folder.rglob(name)))
        return next((path for path in found if path.is_file()), None)


def _checked(path: Path, file: WeightFile) -> str:
    digest = file_sha256(path)
    if file.sha256 is not None and digest != file.sha256:
        raise WeightsError(
            f"'{path}' is not the published {file.name}: its sha256 is {digest[:16]}..., expected "
            f"{file.sha256[:16]}...; get it again from {file.source}"
        )
    return digest


def _tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, below "module", "state_dict" or "model" where it has such an entry."""
    if path.suffix == ".npy":
        return read_arrays(path)
    state = load_state_dict(path)
    for prefix in ("state_dict.", "module.", "model."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
