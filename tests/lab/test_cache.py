from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anabranch.lab import LabError
from anabranch.lab.cache import DamagedEntry, cache_key, cached, load_tree, save_tree

dtypes = st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_])
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=4), inner, max_size=3),
    ),
    max_leaves=8,
)


def same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(tree=trees)
def test_a_tree_comes_back_as_it_was(tree: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("tree") / "entry.safetensors"
    save_tree(path, tree)
    assert same(tree, load_tree(path))


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "entry.safetensors"
    save_tree(path, {"a": np.arange(4.0), "b": "text"})
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            value = load_tree(path)
        except DamagedEntry:
            continue
        assert same(value, {"a": np.arange(4.0), "b": "text"})  # only a byte that says nothing may change unseen
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedEntry):
            load_tree(path)


def test_a_damaged_entry_is_built_again_and_says_so(tmp_path: Path) -> None:
    notes: list[str] = []
    builds = []

    def build() -> dict[str, np.ndarray]:
        builds.append(1)
        return {"x": np.ones(100)}

    assert cached(tmp_path, "k", build)[1] is False
    assert cached(tmp_path, "k", build)[1] is True
    path = tmp_path / "k.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    value, found = cached(tmp_path, "k", build, note=notes.append)
    assert (len(builds), found) == (2, False)
    assert value["x"].sum() == 100
    assert "damaged" in notes[0]
    assert cached(tmp_path, "k", build, fresh=True)[1] is False
    assert len(builds) == 3


def test_two_processes_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def build() -> list[int]:
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.2)
        return [os.getpid()]

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            cached(tmp_path / "cache", "k", build)
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert log.read_text() == "built\n"


def test_a_crash_while_writing_leaves_no_entry(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os.fsync = lambda fd: os._exit(9)
        cached(tmp_path, "k", lambda: np.ones(1000))
    os.waitpid(child, 0)
    assert not (tmp_path / "k.safetensors").exists()
    assert cached(tmp_path, "k", lambda: np.ones(2))[1] is False


def builder(n: int) -> int:
    return n


def other(n: int) -> int:
    return n


def test_the_key_is_what_it_was_built_from() -> None:
    base = cache_key(builder, (1, {"a": (2.0, "x")}), 0)
    assert base == cache_key(builder, (1, {"a": (2.0, "x")}), 0)
    different = [
        cache_key(other, (1, {"a": (2.0, "x")}), 0),
        cache_key(builder, (2, {"a": (2.0, "x")}), 0),
        cache_key(builder, (1, {"a": (2.0, "y")}), 0),
        cache_key(builder, (1, {"a": (2.0, "x")}), 1),
        cache_key(builder, (1, {"a": (2.0, "x")}), None),
        cache_key(builder, (np.arange(3),), 0),
        cache_key(builder, (np.arange(3.0),), 0),
    ]
    assert len({base, *different}) == 8


def test_what_has_no_stable_key_is_refused() -> None:
    with pytest.raises(LabError, match="no stable name"):
        cache_key(lambda: None, (), 0)
    with pytest.raises(LabError, match="no stable key"):
        cache_key(builder, (object(),), 0)


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="/a/1: object"):
        save_tree(tmp_path / "x", {"a": [1, object()]})
