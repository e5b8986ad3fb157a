"""The process that workers are forked from; imports nothing heavy itself."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from typing import Any

_HEAVY = [  # what loading a model imports, mostly
    "anabranch.serving._worker_loops",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
]


def worker_context() -> Any:
    """Workers are forked from a server that has loaded torch and transformers once and has no threads; spawned elsewhere."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_HEAVY)
    return context


def prepare_workers() -> None:
    """Have torch and transformers loaded for the workers of a server to come, by another process while this one goes on.

    Only saves time, of a program that has something else to do first. Where processes cannot be forked, nothing is done.
    """
    if worker_context().get_start_method() == "forkserver":
        forkserver.ensure_running()
