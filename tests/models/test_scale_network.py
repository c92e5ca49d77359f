"""The scale network: bounds, batches, precision, and what a bad sample does to the others."""

import math

import pytest
import torch
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.scale_network import NetworkConfig
from hypothesis import given
from hypothesis import strategies as st
from scales import made_up_network

NETWORK = made_up_network()
CONFIG = NETWORK.config
samples = st.lists(st.tuples(st.floats(-10, 1100), st.floats(0, 1e9), st.floats(-3, 3)), min_size=1, max_size=9)


def scale_of(rows, network=NETWORK):
    timestep, gap_norm, guidance_lambda = torch.tensor(rows, dtype=torch.float32).unbind(-1)
    return network(timestep, gap_norm, guidance_lambda)


@pytest.fixture
def batch():
    return torch.tensor([980.0, 500.0, 0.0]), torch.tensor([0.5, 30.0, 2.0])


@given(samples)
def test_the_scale_is_finite_and_within_bounds_for_any_input(rows):
    scale = scale_of(rows)
    assert scale.shape == (len(rows),) and scale.dtype == torch.float32
    assert ((scale >= CONFIG.min_scale) & (scale <= CONFIG.max_scale)).all()


@given(samples)
def test_each_sample_of_a_batch_is_as_alone(rows):
    alone = torch.cat([scale_of([row]) for row in rows])
    assert torch.allclose(scale_of(rows), alone, atol=1e-6)


@given(samples, st.randoms())
def test_the_order_of_the_batch_does_not_matter(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    assert torch.allclose(scale_of([rows[i] for i in order]), scale_of(rows)[order], atol=1e-6)


@given(samples, st.sampled_from([math.nan, math.inf]))
def test_a_bad_gap_norm_counts_as_the_largest_and_spoils_no_other_sample(rows, bad):
    timestep, _, guidance_lambda = rows[0]
    scale = scale_of([*rows, (timestep, bad, guidance_lambda)])
    assert torch.allclose(scale[:-1], scale_of(rows), atol=1e-6)
    assert torch.allclose(scale[-1:], scale_of([(timestep, CONFIG.max_gap_norm, guidance_lambda)]), atol=1e-6)


@pytest.mark.parametrize(("out_of_range", "nearest"), [(2.0, 1.0), (-1.0, 0.0), (math.inf, 1.0)])
def test_lambda_is_clamped(batch, out_of_range, nearest):
    assert torch.equal(NETWORK(*batch, out_of_range), NETWORK(*batch, nearest))
    assert torch.equal(NETWORK(*batch, torch.tensor(out_of_range)), NETWORK(*batch, nearest))


def test_lambda_nan_is_an_error(batch):
    with pytest.raises(AnnealingError, match="guidance_lambda"):
        NETWORK(*batch, math.nan)


@given(st.floats(min_value=200, allow_nan=False))
def test_beyond_the_trained_range_the_scale_stays_what_it_was_at_its_edge(norm):
    assert torch.equal(scale_of([(500, norm, 0.4)]), scale_of([(500, CONFIG.max_gap_norm, 0.4)]))


def test_the_scale_is_bounded_even_where_the_weights_are_not(batch):
    network = made_up_network(config=NetworkConfig(hidden_width=4, depth=0, min_scale=0.2, max_scale=3.0))
    torch.nn.init.constant_(network.layers[-1].bias, 1e6)
    assert torch.equal(network(*batch, 0.4), torch.full((3,), 3.0))
    torch.nn.init.constant_(network.layers[-1].bias, -1e6)
    assert torch.equal(network(*batch, 0.4), torch.full((3,), 0.2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_computes_in_float32_whatever_comes_in(batch, dtype):
    timestep, gap_norm = batch
    scale = NETWORK(timestep.to(dtype), gap_norm.to(dtype), torch.tensor(0.5, dtype=dtype))
    assert scale.dtype == torch.float32
    assert torch.equal(scale, NETWORK(timestep.to(dtype).float(), gap_norm.to(dtype).float(), 0.5))


def test_autocast_does_not_reach_it(batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scale = NETWORK(*batch, 0.4)
    assert scale.dtype == torch.float32
    assert torch.equal(scale, NETWORK(*batch, 0.4))


@pytest.mark.parametrize("one", [0.4, torch.tensor(0.4), torch.tensor([0.4])])
def test_one_lambda_or_one_timestep_serves_the_whole_batch(batch, one):
    timestep, gap_norm = batch
    assert torch.equal(NETWORK(timestep, gap_norm, one), NETWORK(timestep, gap_norm, torch.full((3,), 0.4)))
    assert torch.equal(NETWORK(timestep[:1], gap_norm, one), NETWORK(timestep[:1].expand(3), gap_norm, one))


def test_gradients_flow_in_a_network_that_sampling_made():
    with torch.inference_mode():
        network = made_up_network()
        network(torch.zeros(2), torch.ones(2), 0.4)
    network(torch.zeros(2), torch.ones(2), 0.4).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("guidance_lambda", [0.4, torch.tensor([0.4, 0.8])])
def test_it_follows_its_inputs_to_their_device_and_never_waits_for_it(guidance_lambda):
    network = made_up_network()
    # Reading a value back from this device raises.
    scale = network(torch.zeros(2, device="meta"), torch.ones(2, device="meta"), guidance_lambda)
    assert scale.device.type == "meta"
    assert {tensor.device.type for tensor in [*network.parameters(), *network.buffers()]} == {"meta"}


def test_the_papers_sizes_are_the_defaults():
    assert sum(math.prod(shape) for shape in NetworkConfig().tensor_shapes.values()) == 51_329
    assert {key: tuple(value.shape) for key, value in NETWORK.state_dict().items()} == CONFIG.tensor_shapes
