"""Captured networks with gates on the CUDA kernels: recurrent ones, and dense layers of their own blocks."""

import pytest

from tests.capture.capture_checks import check_on
from tests.capture.capture_checks import make_images as make_maps
from tests.capture.chosen_networks import make_chosen
from tests.capture.test_recurrent import cell, make
from tests.capture.test_zoo import make as make_zoo
from tests.networks import make_images


@pytest.mark.parametrize("batch", [1, 6])
def test_recurrent_gates(place, batch):
    check_on(place, make(cell, kind="cell"), make_maps(6)[:batch])


def test_dense_layers(place):
    model = make_zoo("concat-bc-100")
    check_on(place, model, make_images(model, 3))


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("name", ["together", "one by one", "by torch"])
def test_filters_that_are_chosen_on_the_way(place, name, batch):
    check_on(place, make_chosen(name), make_maps(6)[:batch], whole=name != "by torch")


def test_filters_of_a_gaternet(place):
    model = make_zoo("gaternet-resnet-20")
    check_on(place, model, make_images(model, 3))
