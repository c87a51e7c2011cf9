"""How many images fit into memory at a time, by what training keeps of one."""

import torch

from vitrail.models.registry import create_model
from vitrail.transfer.memory import count_fitting_images, find_memory, measure_activations


def test_activations_are_those_that_are_kept_and_grow_with_the_image() -> None:
    small = create_model("twins_svt_small", num_classes=5, image_size=64)
    large = create_model("twins_svt_small", num_classes=5, image_size=128)
    kept = measure_activations(small)
    assert 3 < measure_activations(large) / kept < 5  # four times the pixels
    assert not small.head.weight.grad
    assert 1 <= count_fitting_images(large) < count_fitting_images(small)
    assert count_fitting_images(small) * kept < find_memory(torch.device("cpu"))


def test_published_sizes_need_less_than_ten_gigabytes_for_a_batch_in_parts() -> None:
    model = create_model("twins_svt_small", num_classes=5)
    assert 50 * 2**20 < measure_activations(model) < 200 * 2**20
