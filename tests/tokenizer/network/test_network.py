"""The autoencoder: parity with the public image network, causality, shapes."""

from __future__ import annotations

import pytest
import torch

from tokenizer.codec.image_import import inflate
from tokenizer.config import NetworkConfig
from tokenizer.network.network import Network, pixels, to_uint8


def test_parity_with_the_public_image_network(golden: dict[str, torch.Tensor], golden_network: Network) -> None:
    image = golden["image_u8"].float() / 127.5 - 1
    with torch.no_grad():
        features = golden_network.encoder(image[:, :, None])
        recon = golden_network.decoder(golden["quantized"][:, :, None])
    assert (features[:, :, 0] - golden["feature"]).abs().max() < 1e-4
    assert (recon[:, :, 0].clamp(-1, 1) - golden["recon"]).abs().max() < 1e-4


def test_a_video_encodes_its_first_frame_as_the_image_network(golden: dict[str, torch.Tensor], golden_network: Network) -> None:
    image = golden["image_u8"].float() / 127.5 - 1
    video = torch.stack((image, image.flip(0), image.flip(2), image.flip(3), image), dim=2)
    with torch.no_grad():
        features = golden_network.encoder(video)
        recon = golden_network.decoder(features)
        first = golden_network.decoder(features[:, :, :1])
    assert features.shape[2] == 2
    assert (features[:, :, 0] - golden["feature"]).abs().max() < 1e-4
    assert (recon[:, :, 0] - first[:, :, 0]).abs().max() < 1e-4


def test_zero_older_slices_make_every_frame_an_image_where_time_is_not_halved(golden_2d: dict[str, torch.Tensor]) -> None:
    network = Network(NetworkConfig(bits=16, width=32, temporal_stride=1)).eval()
    network.load_state_dict(inflate(golden_2d, network.shapes()))
    video = torch.rand(1, 3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        whole = network.encoder(video)
        single = torch.cat([network.encoder(video[:, :, t : t + 1]) for t in range(3)], dim=2)
    assert (whole - single).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["small_f8", "small_f16"])
def test_no_latent_depends_on_a_later_frame(name: str, request: pytest.FixtureRequest) -> None:
    network: Network = request.getfixturevalue(name)
    stride = network.config.spatial_stride
    video = (torch.rand(1, 3, 13, 2 * stride, 2 * stride) * 2 - 1).requires_grad_()
    features = network.encoder(video)
    assert features.shape == (1, network.config.bits, 4, 2, 2)
    for latent in range(4):
        (gradient,) = torch.autograd.grad(features[:, :, latent].square().sum(), video, retain_graph=True)
        touched = gradient.abs().sum((0, 1, 3, 4)) > 0
        assert touched[: 1 + 4 * latent].all(), "every frame up to the latent's own matters"
        assert not touched[1 + 4 * latent :].any(), "no later frame does"


@pytest.mark.parametrize("name", ["small_f8", "small_f16"])
def test_no_frame_depends_on_a_later_latent(name: str, request: pytest.FixtureRequest) -> None:
    network: Network = request.getfixturevalue(name)
    latents = torch.randn(1, network.config.bits, 4, 2, 2, requires_grad=True)
    frames = network.decoder(latents)
    assert frames.shape[2] == 13
    for t in range(13):
        (gradient,) = torch.autograd.grad(frames[:, :, t].square().sum(), latents, retain_graph=True)
        touched = gradient.abs().sum((0, 1, 3, 4)) > 0
        own = (t + 3) // 4
        assert touched[own], "a frame depends on its own latent"
        assert not touched[own + 1 :].any(), "no later latent matters"


@pytest.mark.parametrize(
    ("patch", "multipliers", "temporal", "want"),
    [(1, (1, 1, 1, 1), 4, (3, 4, 4)), (2, (1, 1, 1), 4, (3, 4, 4)), (1, (1, 1, 1), 2, (5, 8, 8)), (1, (1, 1, 1), 1, (9, 8, 8))],
)
def test_strides_follow_the_configuration(
    patch: int, multipliers: tuple[int, ...], temporal: int, want: tuple[int, ...]
) -> None:
    config = NetworkConfig(
        bits=8,
        width=8,
        blocks=1,
        patch=patch,
        multipliers=multipliers,
        temporal_stride=temporal,
        groups=4,  # type: ignore[arg-type]
    )
    network = Network(config)
    with torch.no_grad():
        features = network.encoder(torch.rand(2, 3, 9, 32, 32))
        assert features.shape == (2, 8, *want)
        assert network.decoder(features).shape == (2, 3, 9, 32, 32)


def test_pixels_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).repeat(1, 2, 1, 1, 3)
    x = pixels(frames)
    assert x.shape == (1, 3, 2, 16, 16)
    assert x.min() == -1
    assert x.max() == 1
    assert torch.equal(to_uint8(x), frames)


@pytest.mark.parametrize("name", ["small_f8", "small_f16"])
def test_the_path_without_gradients_computes_the_same(name: str, request: pytest.FixtureRequest) -> None:
    network: Network = request.getfixturevalue(name)
    stride = network.config.spatial_stride
    video = torch.rand(1, 3, 9, 2 * stride, 3 * stride) * 2 - 1
    with torch.no_grad():
        features = network.encoder(video)
        frames = network.decoder(features)
    assert (network.encoder(video) - features).abs().max() < 1e-5
    assert (network.decoder(features) - frames).abs().max() < 1e-5
