"""Small networks and golden vectors for the tokenizer's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tokenizer.codec.image_import import inflate
from tokenizer.config import NetworkConfig
from tokenizer.network.network import Network


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def shake(network: Network, seed: int = 0) -> Network:
    """Give every weight a value that matters, so that no path of the network is dead at its starting zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 5:
                weight.normal_(std=(weight[0].numel()) ** -0.5, generator=generator)
            else:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return network.eval()


@pytest.fixture(scope="session")
def small_f8() -> Network:
    """f8 t4, width 8, all temporal kernels live."""
    return shake(Network(NetworkConfig(bits=8, width=8, multipliers=(1, 1, 2, 2), blocks=1, groups=4)))


@pytest.fixture(scope="session")
def small_f16() -> Network:
    """f16 t4, width 8, attention in the middle."""
    config = NetworkConfig(bits=16, width=8, multipliers=(1, 1, 1, 2, 2), blocks=1, groups=4, middle_attention=True)
    return shake(Network(config))


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict[str, torch.Tensor]:
    """What the public image network computed."""
    return dict(load_file(shared / "golden" / "infinity2d_d16.vectors.safetensors"))


@pytest.fixture(scope="session")
def golden_2d(shared: Path) -> dict[str, torch.Tensor]:
    """State dict of the public format (encoder and decoder only)."""
    whole = torch.load(shared / "golden" / "infinity2d_d16.pth", weights_only=True)["vae"]
    return {name: weight for name, weight in whole.items() if name.startswith(("encoder.", "decoder."))}


@pytest.fixture(scope="session")
def golden_network(golden_2d: dict[str, torch.Tensor]) -> Network:
    """The inflated network."""
    network = Network(NetworkConfig(bits=16, width=32)).eval()
    network.load_state_dict(inflate(golden_2d, network.shapes()))
    return network
