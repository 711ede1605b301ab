"""The network as a function, and as a module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter, ParameterDict
from torch.nn.functional import conv2d, max_pool2d

from lpfamily.training.backends import check_inputs
from lpfamily.training.networks import ConvMaxout, Dense, Maxout, Network, State, shapes


class TorchModel(Module):
    """A network that maps inputs (n, inputs) to logits (n, classes), its parameters named as in a run.

    It never drops anything: `train` and `eval` change nothing.
    """

    def __init__(self, network: Network, parameters: State) -> None:
        super().__init__()
        self.network = network
        self.layers = ModuleList(
            ParameterDict(
                [
                    (kind, Parameter(torch.tensor(parameters[f"layers.{index}.{kind}"])))
                    for kind in ("weight", "bias")
                ]
            )
            for index in range(len(network.layers))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        check_inputs(self.network, x.shape)
        return logits(self.network, dict(self.named_parameters(remove_duplicate=False)), x)


def logits(
    network: Network, state: Mapping[str, Tensor], x: Tensor, factors: list[Tensor | None] | None = None
) -> Tensor:
    """Return the logits of inputs (n, inputs); `factors` multiply each layer's inputs."""
    for index, (layer, entering) in enumerate(zip(network.layers, shapes(network), strict=False)):
        weight, bias = state[f"layers.{index}.weight"], state[f"layers.{index}.bias"]
        x = x.reshape(-1, *entering)
        if factors is not None and (factor := factors[index]) is not None:
            x = x * factor
        if isinstance(layer, ConvMaxout):
            z = conv2d(x, weight, bias if layer.tied_bias else None, padding=layer.padding)
            z = z if layer.tied_bias else z + bias
            x = max_pool2d(_largest(z, layer.pieces), layer.pool, layer.stride, ceil_mode=True)
            continue
        x = torch.addmm(bias, x, weight)
        if isinstance(layer, Maxout):
            x = _largest(x, layer.pieces)
        elif isinstance(layer, Dense) and layer.activation == "sigmoid":
            x = torch.sigmoid(x)
    return x


def _largest(z: Tensor, pieces: int) -> Tensor:
    """Return the largest of each `pieces` along axis 1; max, unlike amax, gives the gradient to the first."""
    return z.reshape(len(z), -1, pieces, *z.shape[2:]).max(dim=2).values
