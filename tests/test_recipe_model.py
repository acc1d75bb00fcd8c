"""Networks in recipes: layers by name, named nets and modules; every refusal names file, line and a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe, load_recipe, parse_recipe
from cactus_edge.recipe_model import NETS, LayerRecipe, places

REST = """
[data]
set = "digits"
validation_samples = 100
test_samples = 100

[train]
eps = "1/16"
epochs = 10

[certify]
eps = 0.1
"""

RESIDUAL = """
[model]
pool = "global"

[[model.layer]]
kind = "conv"
channels = 8
kernel = [3, 1]
stride = [2, 1]
name = "stem"

[[model.layer]]
kind = "depthwise"

[[model.layer]]
kind = "conv"
channels = 8
kernel = 1
adds = "stem"
"""


def recipe(model: str) -> Recipe:
    top = model if model.startswith("model") else ""
    return parse_recipe(f'name = "mine"\n{top}\n{REST}{"" if top else model}', "mine.toml")


def test_layers_read_and_add_by_name() -> None:
    layers = recipe(RESIDUAL).model.layer
    assert (layers[0].kernel, layers[0].stride) == ((3, 1), (2, 1))
    assert [(p.reads, p.adds, p.channels) for p in places(layers)] == [(-1, None, 8), (0, None, 8), (1, 0, 8)]


def test_later_keys_leave_digests_as_they_were() -> None:
    """Known since before a layer could read another than the one before it."""
    text = '[[model.layer]]\nkind = "conv"\nchannels = 8\n'
    assert recipe(text).digest("model") == "51adc3030b4c675f3cbd8fa106da15c2ce34f1936e9adb9375a7b15f2bb76b8c"
    assert recipe(text + 'name = "a"\n').digest("model") != recipe(text).digest("model")


@pytest.mark.parametrize("net", NETS)
def test_named_nets_in_both_spellings(net: str) -> None:
    short, long = recipe(f'model = "{net}"'), recipe(f'[model]\nnet = "{net}"\n')
    assert short.model == long.model and short.model.layer == NETS[net][0]
    half = recipe(f'[model]\nnet = "{net}"\nwidth = 0.5\n').model.layer
    assert [a.channels for a in half] == [a.channels // 2 for a in short.model.layer]
    places(half, 1)


def test_a_module_is_looked_for_beside_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nmodel = "my_pkg.nets:make"\n' + REST)
    model = load_recipe(path).model
    assert (model.module, model.folder, model.layer) == ("my_pkg.nets:make", str(tmp_path), ())


def test_the_residual_recipe_loads() -> None:
    layers = load_recipe(Path(__file__).parents[1] / "bench/suites/digits-residual.toml").model.layer
    assert [(p.reads, p.adds, p.channels, p.kept) for p in places(layers, 1)] == [
        (-1, None, 32, 24), (0, None, 32, 24), (1, 0, 32, 24), (2, None, 48, 32), (2, 3, 48, 32)
    ]  # fmt: skip


@pytest.mark.parametrize("model", [RESIDUAL, *(f'[model]\nnet = "{net}"\nwidth = 0.25\n' for net in NETS)])
def test_what_is_written_down_is_read_again(model: str) -> None:
    first = recipe(model)
    assert parse_recipe(first.to_toml(), "written.toml") == first


LAYER = '[[model.layer]]\nkind = "conv"\nchannels = 8\n'


@pytest.mark.parametrize(
    ("model", "words"),
    [
        pytest.param('model = "cnn9"', ["no net is called 'cnn9'", "cnn7"], id="unknown_net"),
        pytest.param('model = "nets:"', ["package.module:function"], id="module_without_function"),
        pytest.param("model = 3", ["expected a table"], id="model_is_a_number"),
        pytest.param("[model]\nbatch_norm = true\n", ["has none"], id="no_layers"),
        pytest.param(f'[model]\nnet = "cnn3"\n{LAYER}', ["layer and net"], id="net_and_layers"),
        pytest.param(f"[model]\nwidth = 0.5\n{LAYER}", ["width goes with net"], id="width_without_net"),
        pytest.param('[[model.layer]]\nkind = "conv"\n', ["lacks 'channels'"], id="no_channels"),
        pytest.param(
            LAYER + '[[model.layer]]\nkind = "depthwise"\nchannels = 8\n', ["what it reads"], id="depthwise_channels"
        ),
        pytest.param(LAYER + 'adds = "stem"\n', ["no earlier layer", "try: one of input"], id="adds_nobody"),
        pytest.param(LAYER + 'reads = "self"\nname = "self"\n', ["no earlier layer"], id="reads_itself"),
        pytest.param(
            f'{LAYER}name = "a"\n{LAYER.replace("8", "9")}adds = "a"\n', ["of 8 channels"], id="adds_other_widths"
        ),
        pytest.param(f'{LAYER}name = "a"\n{LAYER}kept = 4\nadds = "a"\n', ["8 kept"], id="adds_other_kept"),
        pytest.param(f'{LAYER}name = "a"\n{LAYER}name = "a"\n', ["a second layer 'a'"], id="second_name"),
        pytest.param(f'{LAYER}name = "input"\n', ["a second layer 'input'"], id="name_of_the_input"),
        pytest.param(LAYER + "pool = 2\n", ["averages the input"], id="pools_the_input"),
        pytest.param(LAYER + 'pool = "all"\n', ['"global"'], id="unknown_pool"),
        pytest.param(LAYER + "kernel = [3, 3, 3]\n", ["[down, right]"], id="three_sides"),
    ],
)
def test_refusals(model: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        recipe(model)
    assert str(caught.value).startswith("mine.toml:")
    assert all(word in str(caught.value) for word in words)


def test_a_layer_has_the_width_that_is_kept() -> None:
    assert LayerRecipe(kind="conv", channels=8, kept=5).width == 5
