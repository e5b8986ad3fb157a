"""What :func:`fit` is made of: batches, averaged weights, checkpoints, choices about the machine."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.generative._checks import check_share
from anabranch.generative.couplings import Coupling
from anabranch.generative.sources import GaussianSource, Source


def world() -> tuple[int, int]:
    """Rank and number of processes of the ``torch.distributed`` job; 0 and 1 outside one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class Batches:
    """Rows of the data, each once an epoch, paired with the source's samples."""

    def __init__(
        self,
        model: nn.Module,
        data: Tensor | tuple[Tensor, Tensor],
        batch_size: int,
        accumulate: int,
        source: Source | None,
        coupling: Coupling | None,
        label_dropout: float,
        generator: torch.Generator,
    ) -> None:
        self.x: Tensor = data[0] if isinstance(data, tuple) else data
        self.label: Tensor | None = data[1] if isinstance(data, tuple) else None
        self.rows = len(self.x)
        if self.rows == 0 or self.x.ndim < 2:
            raise ValueError(f"data has shape {tuple(self.x.shape)}: expected [N, ...] with N >= 1")
        if self.label is not None and self.label.shape != (self.rows,):
            raise ValueError(f"data's labels have shape {tuple(self.label.shape)}: expected [{self.rows}]")
        rank, workers = world()
        share = accumulate * workers
        if batch_size % share:
            raise ValueError(f"batch_size={batch_size}: expected a multiple of accumulate x processes = {share}")
        self.batch_size, self.micro, self.rank, self.workers = batch_size, batch_size // share, rank, workers
        check_share("label_dropout", label_dropout)
        self.null: Any = getattr(model, "classes", None)
        if label_dropout and (self.label is None or self.null is None):
            raise ValueError(f"label_dropout={label_dropout} needs labels and a model with classes")
        self.dropout, self.coupling = label_dropout, coupling
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, self.x.dtype if self.x.is_floating_point() else parameter.dtype
        self.source: Source = source or GaussianSource(tuple(self.x.shape[1:]), dtype=self.dtype, device=self.device)
        # The order of the rows has its own generator: common to all processes, whatever noise they draw.
        self.order = torch.Generator().manual_seed(
            int(torch.randint(2**62, (), generator=generator, device=generator.device))
        )
        self.queue = torch.empty(0, dtype=torch.int64)

    def next(self, generator: torch.Generator) -> dict[str, Any]:
        """Arguments of an objective for the next micro-batch."""
        wanted = self.micro * self.workers
        while len(self.queue) < wanted:
            self.queue = torch.cat([self.queue, torch.randperm(self.rows, generator=self.order)])
        rows, self.queue = self.queue[:wanted], self.queue[wanted:]
        rows = rows[self.rank :: self.workers].to(self.x.device)
        x1 = self.x[rows].to(self.device, self.dtype)
        x0 = self.source.sample(len(x1), generator=generator).to(x1)
        label = None if self.label is None else self.label[rows].to(self.device)
        if self.coupling is not None:
            x0, x1, label = self.coupling.pair(x0, x1, label, generator=generator)
        if label is not None and self.dropout:
            coin = torch.rand(len(label), generator=generator, device=generator.device).to(self.device)
            label = torch.where(coin < self.dropout, torch.full_like(label, self.null), label)
        condition = {} if label is None else {"label": label}
        return {"x0": x0, "x1": x1, "generator": generator, **condition}


def average_into(average: nn.Module, model: nn.Module) -> Callable[[float], None]:
    """A function of the decay that moves ``average``'s parameters towards the model's; buffers are copied.

    Raises:
        ValueError: another set of parameters.
    """
    theirs, ours = dict(average.named_parameters()), dict(model.named_parameters())
    if theirs.keys() != ours.keys():
        raise ValueError(f"average has other parameters than the model: {sorted(theirs.keys() ^ ours.keys())[:3]}")
    into, come = [theirs[name].data for name in ours], [p.data for p in ours.values()]
    buffers = list(zip(average.buffers(), model.buffers(), strict=True))

    def step(decay: float) -> None:
        torch._foreach_lerp_(into, come, 1 - decay)
        for mine, other in buffers:
            mine.copy_(other)

    return step


def trains_in_bf16(model: nn.Module, device: torch.device) -> bool:
    """Where bf16 autocast was measured to pay: 1.5 to 1.9 times on convolutions with AVX512-BF16, nothing on transformers."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu" or not any(isinstance(part, nn.Conv2d) and part.kernel_size != part.stride
                                       for part in model.modules()):  # fmt: skip
        return False
    fast = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    return any(supported() for supported in fast)


def chosen_threads(
    one_step: Callable[..., Any], model: nn.Module, generator: torch.Generator, batches: Batches | None
) -> int:
    """1 or torch's current number of threads, whichever makes three steps of a copy faster; nothing is moved."""
    most = torch.get_num_threads()
    if most == 1:
        return 1
    seconds = {}
    for count in (most, 1):
        torch.set_num_threads(count)
        twin = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(twin.parameters(), 0.0, fused=True)
        draw = torch.Generator(generator.device).manual_seed(0)
        feed = copy.copy(batches)
        if feed is not None:
            feed.order = torch.Generator().manual_seed(0)
        one_step(twin, optimizer, draw, feed)
        begin = time.perf_counter()
        for _ in range(3):
            one_step(twin, optimizer, draw, feed)
        seconds[count] = time.perf_counter() - begin
    return min(seconds, key=lambda count: seconds[count])


def save_state(
    path: Path,
    recipe: dict[str, Any],
    state: dict[str, Any],
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    batches: Batches | None,
) -> None:
    """Everything that training goes on from, written beside the file and renamed."""
    everything = {
        **state, "recipe": recipe, "model": model.state_dict(), "average": average.state_dict(),
        "optimizer": optimizer.state_dict(), "generator": generator.get_state(),
        "order": None if batches is None else batches.order.get_state(),
        "queue": None if batches is None else batches.queue,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    torch.save(everything, part)
    part.replace(path)


def load_state(
    path: Path,
    recipe: dict[str, Any],
    *,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    batches: Batches | None,
) -> tuple[int, float, list[dict[str, Any]]]:
    """Step, seconds and history so far; the rest is put into its place.

    Raises:
        ValueError: the checkpoint is of other arguments (each is named) or of another network.
    """
    state = torch.load(path, weights_only=True, map_location=next(model.parameters()).device)
    other = [
        f"{name}={state['recipe'].get(name)} there, {value} here"
        for name, value in recipe.items()
        if state["recipe"].get(name) != value
    ]
    if other:
        raise ValueError(f"checkpoint {path.name} is of another training ({'; '.join(other)}): pass resume=False")
    for name, net in (("model", model), ("average", average)):
        there, here = ({key: value.shape for key, value in part.items()} for part in (state[name], net.state_dict()))
        if there != here:
            different = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
            raise ValueError(f"checkpoint {path.name} is of another network: {', '.join(different[:3])} differ")
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"].cpu())
    if batches is not None:
        batches.order.set_state(state["order"].cpu())
        batches.queue = state["queue"].cpu()
    return state["step"], state["seconds"], state["history"]
