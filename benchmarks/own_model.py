"""`python -m benchmarks.own_model`: the cost of a regularised step for a custom torch model.

The models are like ResNet-18 for small images and like a small vision transformer, on synthetic images,
trained by SGD at p = inf unless another p is named. `time` is the median over interleaved rounds (on a CPU of
the time of this process) divided by that of the plain step. `memory` is the peak of memory allocated in a
step beyond that of a plain step, in units of one input gradient (the size of the batch).

`by hand` are loops as a user writes them. `input gradient` asks autograd for that gradient alone, and updates
the statistics of batch norm twice; `backward` is the textbook loop, whose first backward pass computes the
gradients of the weights, too; `double backward` is the penalty. The peers are the attacks of other packages
in the same loop, and ART's trainer. They also clip to [0, 1], and torchattacks and ART use the running
statistics of batch norm. They come with `pip install --group benchmarks`, torchattacks with `--no-deps`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

from benchmarks.timing import device_clock, medians, threads

MODELS = ("resnet", "vit")
PEERS = {"torchattacks": "torchattacks", "foolbox": "foolbox", "cleverhans": "cleverhans", "ART": "art"}
SIGMA = 0.01
OURS: dict[str, dict[str, Any]] = {
    "perturb": {},
    "perturb, running statistics": {"batch_norm": "running"},
    "perturb, log-odds": {"direction": "log-odds"},
    "perturb, p = 2": {"p": 2},
    "perturb, in the box": {"bounds": (0, 1)},
    "penalty, p = 2": {"p": 2, "objective": "penalty"},
    "penalty, p = 2, by difference": {"p": 2, "objective": "penalty", "penalty_by": "difference"},
}
PLAIN, BY_HAND = ("plain", ""), ("by hand", "input gradient")
RESTORED = ("lpfamily", "restoring what a forward pass changes")
AS_PEERS = ("lpfamily", "perturb, running statistics")
"""The step of torchattacks and ART, which put the model into evaluation mode."""


def main() -> None:
    """Print the table of each model, and the goals that are met."""
    peers = [name for name, module in PEERS.items() if importlib.util.find_spec(module)]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers)
    parser.add_argument("--batch", type=int, default=32, help="(default: 32)")
    parser.add_argument("--width", type=int, default=32, help="channels of the first layer (default: 32)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: 9)")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    options = parser.parse_args()
    threads(options.threads)
    os.environ["TQDM_DISABLE"] = "1"  # ART's trainer draws bars

    import torch

    torch.backends.cudnn.allow_tf32 = False  # as for matrix products; TF32 would round differences to zero
    for fused in torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.enable_mem_efficient_sdp:
        fused(False)  # these have no second derivative
    print(f"torch {torch.__version__} on {options.device}, batches of {options.batch}", end="; ")
    print(f"{options.threads} {'thread' if options.threads == 1 else 'threads'}")
    for name in options.models:
        calls = _calls(name, options)
        times = medians(calls, options.rounds, clock=device_clock(options.device))
        peaks = {row: _peak(call, options.device) for row, call in calls.items()}
        gradient = options.batch * 3 * 32 * 32 * 4
        restored = 1e3 * times.pop(RESTORED)
        print(f"\n{name}: plain {1e3 * times[PLAIN]:.1f} ms, {peaks[PLAIN] / 2**20:.1f} MiB", end="; ")
        print(f"{RESTORED[1]}: {restored:.2f} ms")
        print(f"{'':42}{'time':>8}{'memory':>10}")
        for row in times:
            extra = (peaks[row] - peaks[PLAIN]) / gradient
            print(f"{' '.join(row):42}{times[row] / times[PLAIN]:8.2f}{extra:10.1f}")
        _print_goals(times, peaks, gradient)


def _print_goals(times: dict[Any, float], peaks: dict[Any, int], gradient: int) -> None:
    by_hand = times["lpfamily", "perturb"] / times[BY_HAND]
    others = {row: time for row, time in times.items() if row[0] in PEERS}
    extra = (peaks["lpfamily", "perturb"] - peaks[PLAIN]) / gradient
    goals = [(f"perturb over the loop by hand {by_hand:.3f}, at most 1", by_hand <= 1)]
    if others:
        best = min(others, key=lambda row: others[row])
        ratio = times[AS_PEERS] / others[best]
        goals.append((f"{AS_PEERS[1]}, over the fastest peer ({best[0]}) {ratio:.3f}, below 1", ratio < 1))
    goals.append((f"memory beyond plain {extra:.1f} input gradients, at most 1", extra <= 1))
    for text, met in goals:
        print(f"{'met' if met else 'MISSED':>8}: {text}")


def _calls(name: str, options: argparse.Namespace) -> dict[tuple[str, str], Callable[[], object]]:
    import torch
    from torch.nn.functional import cross_entropy

    from benchmarks.training_peers import ATTACKS, art_trainer
    from lpfamily_torch import regularized_loss
    from lpfamily_torch.side_effects import without_side_effects

    torch.manual_seed(0)
    model = (resnet if name == "resnet" else _vit)(options.width)
    x = torch.rand(options.batch, 3, 32, 32)
    y = torch.randint(10, (options.batch,))
    x, y, model = (each.to(options.device) for each in (x, y, model))
    each_loss = functools.partial(cross_entropy, reduction="none")

    def new() -> tuple[Any, Any]:
        twin = copy.deepcopy(model)
        return twin, torch.optim.SGD(twin.parameters(), 1e-3)

    def step(loss_of: Callable[[Any], Any]) -> Callable[[], None]:
        twin, optimizer = new()

        def call() -> None:
            optimizer.zero_grad()
            loss_of(twin).backward()
            optimizer.step()

        return call

    def input_gradient(twin: Any) -> Any:
        at = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(twin(at), y), at)
        return cross_entropy(twin(x + SIGMA * gradient.sign()), y)

    def double_backward(twin: Any) -> Any:
        at = x.clone().requires_grad_()
        losses = each_loss(twin(at), y)
        (gradient,) = torch.autograd.grad(losses.sum(), at, create_graph=True)
        return losses.mean() + SIGMA * gradient.flatten(1).norm(dim=1).mean()

    def attacked(peer: str) -> Callable[[], None]:
        twin, optimizer = new()
        attack = ATTACKS[peer](twin, SIGMA)

        def call() -> None:
            perturbed = attack(x, y)
            twin.train()  # a peer may leave it in evaluation mode
            optimizer.zero_grad()
            cross_entropy(twin(perturbed), y).backward()
            optimizer.step()

        return call

    calls: dict[tuple[str, str], Callable[[], object]] = {
        PLAIN: step(lambda twin: cross_entropy(twin(x), y)),
        BY_HAND: step(input_gradient),
        ("by hand", "backward"): attacked("eager loop"),
        ("by hand", "double backward, p = 2"): step(double_backward),
    }
    unchanged, _ = new()

    def restore() -> None:
        with without_side_effects(unchanged, x.device, "none", "batch"):
            pass

    calls[RESTORED] = restore
    for kind, given in OURS.items():
        arguments = {"p": math.inf, "sigma": SIGMA} | given
        calls["lpfamily", kind] = step(
            lambda twin, arguments=arguments: regularized_loss(twin, each_loss, x, y, **arguments)
        )
    for peer in options.peers:
        if peer == "ART":
            fit = art_trainer(*new(), x.shape[1:], 10, options.batch, SIGMA)
            calls[peer, "its trainer"] = functools.partial(fit, x.cpu().numpy(), y.cpu().numpy())
        else:
            calls[peer, "its attack"] = attacked(peer)
    return calls


def _peak(call: Callable[[], object], device: str) -> int:
    """Return the peak of allocated bytes while `call` runs, beyond those before it."""
    import torch

    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        call()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def resnet(width: int) -> Any:
    """Return a network like ResNet-18: four stages of two blocks, a first layer for small images."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, in_channels: int, channels: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
            self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
            self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
            self.short: nn.Module = nn.Identity()
            if stride != 1:
                self.short = nn.Sequential(
                    nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
                )

        def forward(self, x: Any) -> Any:
            inner = torch.relu(self.norms[0](self.first(x)))
            return torch.relu(self.norms[1](self.second(inner)) + self.short(x))

    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    in_channels = width
    for stage in range(4):
        channels = width * 2**stage
        layers += [Block(in_channels, channels, 1 if stage == 0 else 2), Block(channels, channels, 1)]
        in_channels = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, 10))


def _vit(width: int) -> Any:
    """Return a vision transformer of 64 tokens and four layers."""
    import torch
    from torch import nn

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            size = 4 * width
            self.patches = nn.Conv2d(3, size, 4, 4)
            self.positions = nn.Parameter(torch.zeros(64, size))
            layer = nn.TransformerEncoderLayer(
                size, 4, 4 * size, 0.1, "gelu", batch_first=True, norm_first=True
            )
            self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
            self.head = nn.Linear(size, 10)

        def forward(self, x: Any) -> Any:
            tokens = self.patches(x).flatten(2).mT + self.positions
            return self.head(self.encoder(tokens).mean(dim=1))

    return ViT()


if __name__ == "__main__":
    main()
