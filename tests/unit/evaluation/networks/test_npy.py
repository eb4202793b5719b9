"""Dictionaries of arrays in .npy files are read; whatever else such a file asks for is not done."""

import contextlib
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xdyna.evaluation.networks.fixture import random_weights
from xdyna.evaluation.networks.mtcnn import MTCNN, ONet, PNet, RNet
from xdyna.evaluation.networks.npy import read_arrays


def npy(path: Path, tree: Any, *, protocol: int = 4) -> Path:
    """What numpy.save writes for a dictionary, with the protocol of any of its versions."""
    array = np.empty((), object)
    array[()] = tree
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
    pickle.dump(array, stream, protocol=protocol)
    path.write_bytes(stream.getvalue())
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_arrays_come_back(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(0)
    tree = {
        "plain": rng.standard_normal((3, 4)).astype(np.float32),
        "fortran": np.asfortranarray(rng.standard_normal((2, 3, 5))),
        "big": rng.standard_normal(7).astype(">f4"),
        "empty": np.zeros((0, 2), np.float32),
        "one": np.float32([1.5]),
        "whole": np.arange(4),
    }
    for kind in (dict, OrderedDict):
        read = read_arrays(npy(tmp_path / "a.npy", kind(tree), protocol=protocol))
        assert list(read) == list(tree)
        for name, array in tree.items():
            np.testing.assert_array_equal(read[name].numpy(), array.astype(np.float32))


def test_what_numpy_itself_saves(tmp_path: Path) -> None:
    states = [random_weights(net().state_dict()) for net in (PNet, RNet, ONet)]
    read = []
    for k, state in enumerate(states):
        np.save(tmp_path / f"{k}.npy", {name: tensor.numpy() for name, tensor in state.items()}, allow_pickle=True)
        read.append(read_arrays(tmp_path / f"{k}.npy"))
    MTCNN(*read)
    assert all((read[k][name] == tensor).all() for k in range(3) for name, tensor in states[k].items())


class Evil:
    """Makes a directory when it is unpickled."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


def test_a_hostile_file_does_nothing(tmp_path: Path) -> None:
    target = tmp_path / "made"
    for number, evil in enumerate(
        (
            Evil(os.mkdir, str(target)),
            Evil(eval, f"__import__('os').mkdir({str(target)!r})"),
            Evil(getattr, "abc", "upper"),
            Evil(np.lib.format.open_memmap, str(target), "w+"),
        )
    ):
        for tree in (evil, {"a": evil}, {evil: np.zeros(1)}):
            path = npy(tmp_path / f"{number}.npy", tree)
            with pytest.raises(ValueError, match="asks for"):
                read_arrays(path)
    assert not target.exists()
    np.load(npy(tmp_path / "really.npy", {"a": Evil(os.mkdir, str(target))}), allow_pickle=True)
    assert target.exists()  # numpy's own reader does it


def test_damaged_and_other_files(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", {"a": np.zeros(3, np.float32), "b": np.ones((2, 2), np.float32)})
    whole = path.read_bytes()
    for length in (0, 5, 20, 128, 140, 200, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a dictionary of arrays"):
            read_arrays(path)
    rng = np.random.default_rng(0)
    for _ in range(300):  # changed bytes: another array or a message, never another error
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            changed[at] = rng.integers(256)
        path.write_bytes(bytes(changed))
        with contextlib.suppress(ValueError):
            read_arrays(path)
    for tree in (
        {"a": "text"},
        {1: np.zeros(1)},
        {},
        [np.zeros(1)],
        {"a": np.array(["x", None])},
        {"a": np.array("s")},
    ):
        with pytest.raises(ValueError, match="not a dictionary of arrays"):
            read_arrays(npy(path, tree))
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match="it holds one array of float64"):
        read_arrays(path)
    with pytest.raises(ValueError, match=r"missing\.npy"):
        read_arrays(tmp_path / "missing.npy")
