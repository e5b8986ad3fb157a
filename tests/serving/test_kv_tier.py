"""Caches that leave and come back bit by bit, whatever is full."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from anabranch.serving import KVTier, gather_pages, scatter_pages


def cache(seed: int, tokens: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kinds = [torch.float32, torch.bfloat16]
    return [torch.randn(tokens, 2, 4, generator=generator).to(kinds[layer % 2]) for layer in range(3)]


BYTES = sum(x.numel() * x.element_size() for x in cache(0))


def put(tier: KVTier, key: str, layers: list[torch.Tensor]) -> bool:
    return all(tier.offload(key, i, layer) for i, layer in enumerate(layers))


@pytest.mark.parametrize("room", [10, 2, 1])
def test_what_comes_back_is_what_left(tmp_path: Path, room: int) -> None:
    tier = KVTier(room * BYTES, tmp_path)
    caches = {f"chat/{i} é": cache(i) for i in range(6)}
    for key, layers in caches.items():
        assert put(tier, key, layers)
        layers[0].view(-1)[0] += 0  # the original may change
    generator = np.random.default_rng(0)
    for _ in range(30):
        key = str(generator.choice(list(caches)))
        for got, wanted in zip(tier.restore(key), caches[key], strict=True):
            assert got.dtype == wanted.dtype
            assert torch.equal(got.view(torch.uint8), wanted.view(torch.uint8))
            assert got.is_contiguous()
        assert tier.in_memory_bytes <= room * BYTES
        assert tier.in_memory_bytes + tier.on_disk_bytes == 6 * BYTES
    assert len(list(tmp_path.iterdir())) == 6 - min(6, room)
    tier.close()
    assert not list(tmp_path.iterdir())


def test_the_longest_unused_leave_first(tmp_path: Path) -> None:
    tier = KVTier(2 * BYTES, tmp_path)
    for key in "abc":
        put(tier, key, cache(ord(key)))
    assert len(list(tmp_path.iterdir())) == 1
    tier.restore("b")
    tier.restore("a")  # from disk, and c leaves
    assert {path.stem for path in tmp_path.iterdir()} == {b"c".hex()}


def test_the_copy_is_a_copy() -> None:
    tier = KVTier(BYTES)
    layers = cache(0)
    put(tier, "a", layers)
    before = layers[0].clone()
    layers[0].zero_()
    assert torch.equal(tier.restore("a")[0], before)


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = KVTier(2 * BYTES, tmp_path, disk_bytes=BYTES)
    kept = {key: cache(ord(key)) for key in "abcde" if put(tier, key, cache(ord(key)))}
    assert set(kept) == {"a", "b", "c"}
    assert tier.full
    for key in kept:
        assert all(torch.equal(x, y) for x, y in zip(tier.restore(key), kept[key], strict=True))
    tier.drop("a")
    tier.drop("b")
    assert put(tier, "f", cache(6))
    tier.close()

    import anabranch.serving.kv_tier as module

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(module, "save_file", no_room)
    tier = KVTier(BYTES, tmp_path)
    assert put(tier, "a", cache(0))
    assert not put(tier, "b", cache(1))
    assert tier.full
    assert all(torch.equal(x, y) for x, y in zip(tier.restore("a"), cache(0), strict=True))
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_disk_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import anabranch.serving.kv_tier as module

    def denied(*_: object) -> None:
        raise OSError(errno.EACCES, "denied")

    monkeypatch.setattr(module, "save_file", denied)
    tier = KVTier(BYTES, tmp_path)
    put(tier, "a", cache(0))
    with pytest.raises(OSError, match="denied"):
        put(tier, "b", cache(1))
    assert torch.equal(tier.restore("a")[0], cache(0)[0])


@pytest.mark.parametrize("tokens", [1, 4, 9, 12])
def test_pages_hold_what_was_scattered(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    pages = torch.randn(10, 4, 2, 3, generator=generator)
    before = pages.clone()
    table = [7, 2, 5]
    contiguous = torch.randn(tokens, 2, 3, generator=generator)
    scatter_pages(contiguous, pages, table)
    assert torch.equal(gather_pages(pages, table, tokens), contiguous)
    slow = before.clone()
    for token in range(tokens):
        slow[table[token // 4], token % 4] = contiguous[token]
    assert torch.equal(pages, slow)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="host_bytes must be >= 0"):
        KVTier(-1)
    tier = KVTier(BYTES)
    with pytest.raises(ValueError, match="no cache 'x'"):
        tier.restore("x")
    put(tier, "a", cache(0))
    with pytest.raises(ValueError, match="layer 1 of 'a' is here already"):
        tier.offload("a", 1, cache(0)[1])
    with pytest.raises(ValueError, match="expected room for 9"):
        gather_pages(torch.zeros(3, 4), [0, 1], 9)
    with pytest.raises(ValueError, match="expected different pages of 0 to 2"):
        scatter_pages(torch.zeros(4), torch.zeros(3, 4), [3])
