import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from magicdistill_core.flow import (
    SamplerState,
    add_noise,
    expand_sigma,
    few_step_sigmas,
    sample_euler,
    sample_renoise,
    seeded_noise,
    shift_sigma,
    velocity_to_x0,
    with_image,
    x0_to_velocity,
)

SHAPE = (2, 4, 3, 2, 2)


def randn(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_four_steps_at_shift_five_are_the_papers() -> None:
    assert few_step_sigmas(4, 5.0).tolist() == pytest.approx([1.0, 0.9375, 5 / 6, 0.625, 0.0], abs=1e-7)
    assert few_step_sigmas(1, 5.0).tolist() == [1.0, 0.0]
    assert few_step_sigmas(4, 1.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert few_step_sigmas(28, 5.0).dtype == torch.float32


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 28, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 7.0, 17.0])
def test_schedules_are_those_of_diffusers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1].tolist())
    assert torch.allclose(few_step_sigmas(steps, shift), scheduler.sigmas, atol=1e-6)


@pytest.mark.parametrize(("steps", "shift"), [(0, 5.0), (4, 0.0), (4, -1.0), (4, float("nan"))])
def test_impossible_schedules_are_refused(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        few_step_sigmas(steps, shift)


def test_shift_keeps_the_ends_and_the_order() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    shifted = shift_sigma(t, 5.0)
    assert (shifted[0], shifted[-1]) == (0, 1)
    assert (shifted.diff() > 0).all()
    assert torch.allclose(shift_sigma(shifted, 1 / 5), t)


def test_noising_and_the_two_predictions_agree() -> None:
    z, eps = randn(0), randn(1)
    sigma = torch.tensor([0.3, 0.9])
    x = add_noise(z, eps, sigma)
    assert torch.allclose(x[1], 0.1 * z[1] + 0.9 * eps[1], atol=1e-6)
    assert torch.allclose(velocity_to_x0(x, eps - z, sigma), z, atol=1e-6)
    assert torch.allclose(x0_to_velocity(x, z, sigma), eps - z, atol=1e-5)
    assert expand_sigma(torch.tensor(0.5), z).shape == (1, 1, 1, 1, 1)


def test_euler_is_diffusers_step_on_a_curved_field() -> None:
    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        assert sigma.shape == (x.shape[0],)
        return torch.sin(3 * x) + expand_sigma(sigma, x)

    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    x = noise = randn(2)
    for timestep in scheduler.timesteps:
        x = scheduler.step(velocity(x, (timestep / 1000).expand(2)), timestep, x, return_dict=False)[0]
    assert torch.allclose(sample_euler(velocity, noise, few_step_sigmas(4, 5.0)), x, atol=1e-5)


def test_many_euler_steps_transport_noise_to_a_gaussian() -> None:
    mean, spread = 2.0, 0.5

    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """E[eps - z | x] for z ~ N(mean, spread^2)."""
        s = expand_sigma(sigma, x)
        residual = (x - (1 - s) * mean) / ((1 - s) ** 2 * spread**2 + s**2)
        return s * residual - (mean + (1 - s) * spread**2 * residual)

    noise = randn(3).double()
    end = sample_euler(velocity, noise, few_step_sigmas(2000, 1.0))
    assert torch.allclose(end, mean + spread * noise, atol=1e-2)


@pytest.mark.parametrize("steps", [1, 4])
def test_both_samplers_reach_a_point_mass_exactly(steps: int) -> None:
    target = randn(4)
    sigmas = few_step_sigmas(steps, 5.0)
    states: list[SamplerState] = []

    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return (x - target) / expand_sigma(sigma, x)

    assert torch.allclose(sample_euler(velocity, randn(5), sigmas, states.append), target, atol=1e-5)
    assert [state.step for state in states] == list(range(steps))
    assert [state.sigma for state in states] == pytest.approx(sigmas[:-1].tolist())
    assert all(torch.allclose(state.x0, target, atol=1e-5) for state in states)

    calls: list[int] = []
    fresh: list[torch.Tensor] = []

    def noise(step: int, like: torch.Tensor) -> torch.Tensor:
        calls.append(step)
        fresh.append(randn(10 + step))
        return fresh[-1]

    states.clear()
    assert torch.allclose(sample_renoise(velocity, randn(5), sigmas, noise, states.append), target, atol=1e-5)
    assert calls == list(range(steps - 1))
    for state, drawn, sigma in zip(states[1:], fresh, sigmas[1:], strict=False):
        assert torch.allclose(state.x, add_noise(target, drawn, sigma), atol=1e-5)


class HostCopies(TorchDispatchMode):
    """Counts copies from the host's memory to the device `meta`, which represents any device here."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):  # type: ignore[no-untyped-def]
        out = function(*arguments, **(settings or {}))
        given = {a.device.type for a in arguments if isinstance(a, torch.Tensor)}
        self.count += isinstance(out, torch.Tensor) and out.is_meta and "cpu" in given
        return out


def test_copies_to_the_device_do_not_grow_with_the_steps() -> None:
    for steps in (2, 20):
        sigmas = few_step_sigmas(steps, 5.0)
        with HostCopies() as copies:
            sample_euler(lambda x, _: x.float(), torch.zeros(SHAPE, device="meta", dtype=torch.bfloat16), sigmas)
        assert copies.count == 1
        with HostCopies() as copies:
            sample_renoise(lambda x, _: x, torch.zeros(SHAPE, device="meta"), sigmas, lambda _, like: like + 1)
        assert copies.count == 1


def test_seeded_noise_repeats_for_a_seed_and_is_not_the_starting_noise() -> None:
    first, second = seeded_noise(6), seeded_noise(6)
    draws = [first(step, torch.zeros(SHAPE)) for step in range(2)]
    assert torch.equal(draws[0], second(0, torch.zeros(SHAPE)))
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], randn(6))
    assert not torch.equal(draws[0], seeded_noise(7)(0, torch.zeros(SHAPE)))
    assert first(2, torch.zeros(SHAPE, dtype=torch.float64)).dtype == torch.float64
    seeded_noise(2**64 - 1)(0, torch.zeros(1))


def test_starting_noise_with_an_image_is_a_mixture_over_all_frames() -> None:
    generator = torch.Generator().manual_seed(3)
    noise, image = torch.randn(2, 16, 3, 4, 4, generator=generator), torch.randn(2, 16, 1, 4, 4, generator=generator)
    mixed = with_image(noise, image, 0.25)
    for frame in range(3):
        torch.testing.assert_close(mixed[:, :, frame], 0.75 * noise[:, :, frame] + 0.25 * image[:, :, 0])
    assert with_image(noise, image, 0.0) is noise
