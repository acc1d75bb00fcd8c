"""Recipes: what is accepted, and that every refusal names file, line and a way out."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe, load_recipe, names, parse_recipe
from cactus_edge.recipe_values import ChannelEps

GOOD = """\
name = "mine"

[data]
set = "digits"
validation_samples = 100
test_samples = 100

[[model.layer]]
kind = "conv"
channels = 8
kept = 4

[[model.layer]]
kind = "dense"
channels = 16

[model]
batch_norm = true

[train]
eps = "1/16"
epochs = 10
learning_rate = 0.01

[certify]
eps = 0.1
"""


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) >= 1
    return GOOD.replace(old, new, 1)


def refusal(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_recipe(text, "mine.toml")
    return str(caught.value)


def test_built_in_recipes_load() -> None:
    cards = "card-biprop-fmnist", "card-lrr-fmnist"
    built_in = {
        "adverfine-fmnist",
        "cactus-mnist",
        *cards,
        "cifar10-2",
        "cifar10-8",
        "csam-cifar10",
        "deck-fmnist",
        "digits",
        "digits-2-4",
        "ecg",
        "fashion-mnist",
    }
    assert names() == tuple(sorted(built_in | {"har", "mnist"}))
    for name in names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert float(recipe.certify.eps) > 0


def test_radii_are_exact_in_every_spelling() -> None:
    recipe = parse_recipe(GOOD, "mine.toml")
    assert recipe.train.eps == Fraction(1, 16)
    assert recipe.certify.eps == Fraction(1, 10)
    assert parse_recipe(changed("eps = 0.1", 'eps = "0.1"'), "x").certify.eps == Fraction(1, 10)


def test_kept_defaults_to_all_channels() -> None:
    assert [layer.width for layer in parse_recipe(GOOD, "x").model.layer] == [4, 16]


def test_a_path_and_a_name_are_both_accepted(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert load_recipe(path) == load_recipe(str(path)) == parse_recipe(GOOD, "anything")


def test_own_data_lie_beside_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(changed('set = "digits"', 'file = "mine.npz"'))
    assert load_recipe(path).data.file == str(tmp_path / "mine.npz")


def test_digest_follows_the_sections() -> None:
    first, second = parse_recipe(GOOD, "x"), parse_recipe(changed("eps = 0.1", "eps = 0.2"), "x")
    assert first.digest() != second.digest()
    assert first.digest("train", "model") == second.digest("train", "model")


def test_json_form_has_only_json_values() -> None:
    record = parse_recipe(GOOD, "x").to_json()
    assert record["train"]["eps"] == "1/16"
    assert record["model"]["layer"][0]["channels"] == 8
    assert record["train"]["threads"] == 0  # no part of digests, but of what decides the weights


@pytest.mark.parametrize(
    ("text", "culprit", "words"),
    [
        pytest.param(
            changed("epochs =", "epoches ="), "epoches", ["'epoches'", "[train]", "try: epochs"], id="misspelt_key"
        ),
        pytest.param(
            changed("kept = 4", "kep = 4"), "kep =", ["'kep'", "[model.layer]", "try: kept"], id="misspelt_key_in_layer"
        ),
        pytest.param(changed("[certify]", "[certfy]"), "[certfy]", ["'certfy'", "try: certify"], id="misspelt_table"),
        pytest.param(
            changed("epochs = 10", 'epochs = "ten"'), 'epochs = "ten', ["epochs = 'ten'", "integer"], id="wrong_type"
        ),
        pytest.param(
            changed("epochs = 10", "epochs = true"),
            "epochs = true",
            ["epochs = True", "integer"],
            id="bool_for_integer",
        ),
        pytest.param(changed("epochs = 10", "epochs = 0"), "epochs = 0", ["integer in [1"], id="out_of_range"),
        pytest.param(
            changed('eps = "1/16"', "eps = -0.1"), "eps = -0.1", ["eps = -0.1", "rational in [0, 1]"], id="eps_negative"
        ),
        pytest.param(changed('eps = "1/16"', "eps = nan"), "eps = nan", ["eps = NaN", "rational"], id="eps_nan"),
        pytest.param(
            changed('eps = "1/16"', 'eps = "17/16"'), 'eps = "17', ["rational in [0, 1]"], id="eps_beyond_the_range"
        ),
        pytest.param(changed('eps = "1/16"', 'eps = "1/0"'), 'eps = "1/0', ["rational"], id="eps_divided_by_zero"),
        pytest.param(
            changed("learning_rate = 0.01", "learning_rate = inf"),
            "learning_rate = inf",
            ["number in [0, 1]"],
            id="rate_infinite",
        ),
        pytest.param(changed("epochs = 10\n", ""), "[train]", ["[train] lacks 'epochs'"], id="missing_key"),
        pytest.param(
            changed('kind = "dense"', 'kind = "lstm"'), 'kind = "lstm', ["conv, dense"], id="unknown_layer_kind"
        ),
        pytest.param(
            changed("kept = 4", "kept = 40"),
            "kept = 40",
            ["kept = 40 exceeds channels = 8"],
            id="kept_exceeds_channels",
        ),
        pytest.param(
            changed("epochs = 10", "epochs = 10\nramp_epochs = 20"),
            "ramp_epochs",
            ["exceed epochs"],
            id="ramp_exceeds_epochs",
        ),
        pytest.param(
            changed("[certify]", "[compress]\nfinetune_epochs = 3\naverage_epochs = 4\n\n[certify]"),
            "average_epochs",
            ["average_epochs = 4 exceeds finetune_epochs = 3", "average at most all"],
            id="average_exceeds_finetuning",
        ),
        pytest.param(
            changed('set = "digits"', 'set = "digits"\nfile = "x.npz"'),
            "[data]",
            ["one of set, file and folder"],
            id="set_and_file",
        ),
        pytest.param(changed('kind = "dense"', "kind = "), "kind = ", ["not TOML"], id="not_toml"),
        pytest.param(changed("[train]", "[[train]]"), "[[train]]", ["expected a table"], id="array_for_table"),
        pytest.param(
            changed("channels = 16", 'channels = 16\n\n[[model.layer]]\nkind = "conv"\nchannels = 2'),
            'kind = "conv"\nchannels = 2',
            ["cannot follow a dense"],
            id="conv_after_dense",
        ),
    ],
)
def test_refusals_name_file_line_and_way_out(text: str, culprit: str, words: list[str]) -> None:
    line = text[: text.rindex(culprit)].count("\n") + 1
    message = refusal(text)
    assert message.startswith(f"mine.toml:{line}: "), message
    for word in words:
        assert word in message


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="try: digits"):
        load_recipe("digit")


def test_an_absent_file_and_a_binary_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_recipe(tmp_path / "absent.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load_recipe(binary)


def test_records_are_frozen() -> None:
    recipe: Recipe = load_recipe("digits")
    with pytest.raises(AttributeError):
        recipe.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(("given", "kept"), [('"none"', "none"), ("0.9", 0.9), ('"2:4"', "2:4"), ('"4:16"', "4:16")])
def test_sparsity_is_a_word_a_share_or_a_row(given: str, kept: str | float) -> None:
    recipe = parse_recipe(GOOD + f"\n[compress]\nsparsity = {given}\n", "mine.toml")
    assert recipe.compress.sparsity == kept


NO_SHARE = ["nan", "inf", "-inf", "-0.5", "0.9999999999999999999999", "1e-400"]
"""Numbers that are no share between 0 and 1 once they are floats."""


@pytest.mark.parametrize("given", ["1.0", "0", "2", '"4:2"', '"2:64"', '"2:4:8"', '"half"', "true", *NO_SHARE])
def test_other_sparsity_is_refused(given: str) -> None:
    assert "mine.toml:29: sparsity = " in refusal(GOOD + f"\n[compress]\nsparsity = {given}\n")


def test_keys_of_compression_need_one_another() -> None:
    assert "mine.toml:11: kept stands beside keep = 0.5" in refusal(GOOD + "\n[compress]\nkeep = 0.5\n")
    assert "mine.toml:29: allocation = 'sensitivity' says nothing without keep" in refusal(
        GOOD + '\n[compress]\nallocation = "sensitivity"\n'
    )
    assert "mine.toml:29: learn_norm says nothing with method = 'cactus', which trains all it has" in refusal(
        GOOD + "\n[compress]\nlearn_norm = true\n"
    )
    ticket = changed("learning_rate = 0.01", 'learning_rate = 0.01\nmethod = "biprop"')
    ticket += "\n[compress]\nlearn_norm = true\n"
    assert parse_recipe(ticket, "mine.toml").compress.learn_norm
    assert "learn_norm says nothing of a network without" in refusal(
        ticket.replace("norm = true\n\n[train]", "norm = false\n\n[train]")
    )
    sparse = changed("learning_rate = 0.01", 'learning_rate = 0.01\nmembers = ["full", "sparse"]')
    assert 'members has "sparse", [compress] has no sparsity' in refusal(sparse)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        pytest.param("weight_bytes = -1", "29: weight_bytes = -1: expected an integer in [0", id="negative"),
        pytest.param("weight_bytes = 2e4", "29: weight_bytes = 2E+4: expected an integer", id="no_integer"),
        pytest.param('weight_bytes = "20 kB"', "29: weight_bytes = '20 kB': expected an integer", id="words"),
        pytest.param('weight_bits = "certified"', "29: weight_bits = 'certified': expected a list", id="bits_in_words"),
        pytest.param(
            "weight_bytes = 9\nweight_bits = [8, 4, 8]", "30: weight_bits stands beside weight_bytes = 9", id="both"
        ),
    ],
)
def test_a_budget_of_weights_is_bytes_and_stands_alone(keys: str, words: str) -> None:
    assert f"mine.toml:{words}" in refusal(GOOD + f"\n[quantise]\n{keys}\n")
    fine = parse_recipe(GOOD + "\n[quantise]\nweight_bytes = 20000\n", "mine.toml")
    assert fine.digest() != parse_recipe(GOOD, "mine.toml").digest()
    assert parse_recipe(fine.to_toml(), "written.toml") == fine


def test_new_keys_leave_old_digests_alone() -> None:
    """A recipe that says nothing of sparsity is the build that it was before the key existed."""
    old, new = (parse_recipe(text, "mine.toml") for text in (GOOD, GOOD + '\n[compress]\nsparsity = "none"\n'))
    assert old.digest() == new.digest()
    assert old.digest() != parse_recipe(GOOD + '\n[compress]\nsparsity = "2:4"\n', "mine.toml").digest()


@pytest.mark.parametrize("name", names())
def test_a_built_in_recipe_is_written_as_it_reads(name: str) -> None:
    recipe = load_recipe(name)
    assert parse_recipe(recipe.to_toml(), "written.toml") == recipe


@pytest.mark.parametrize("net", ["cnn3", "resnet8", "ds-cnn"])
def test_a_named_net_is_written_by_its_name(net: str) -> None:
    start, end = GOOD.index("[[model.layer]]"), GOOD.index("[train]")
    recipe = parse_recipe(f'{GOOD[:start]}[model]\nnet = "{net}"\nwidth = 0.5\n{GOOD[end:]}', "mine.toml")
    assert "[[model.layer]]" not in recipe.to_toml() and parse_recipe(recipe.to_toml(), "written.toml") == recipe


SIGNALS = """\
file = "own.npz"
channel = [{ name = "a", unit = "m/s", low = -1, high = 1 }, { name = "b", unit = "Pa", low = "0", high = "1e5" }]"""
CHANNELED = changed('set = "digits"', SIGNALS).replace('eps = "1/16"', 'eps = { "m/s" = "0.1", Pa = 50 }')


def test_channels_and_their_radii_read_back() -> None:
    recipe = parse_recipe(CHANNELED.replace("eps = 0.1", 'eps = ["1/3", 7]'), "mine.toml")
    assert recipe.train.eps == ChannelEps((Fraction(1, 10), Fraction(50)), ("m/s", "Pa"))
    assert recipe.certify.eps == ChannelEps((Fraction(1, 3), Fraction(7)))
    assert [c.high for c in recipe.data.channel] == [1, 100_000]
    assert parse_recipe(recipe.to_toml(), "written.toml") == recipe
    assert recipe.to_json()["train"]["eps"] == {"m/s": "1/10", "Pa": "50"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(changed('set = "digits"', 'folder = "a"\nsize = [3]'), "list of at least 2", id="size_of_one"),
        pytest.param(changed('set = "digits"', 'folder = "a"\nsize = [3, 3, 3]'), "size has 3", id="size_of_three"),
        pytest.param(changed('set = "digits"', 'set = "digits"\nsize = [3, 3]'), "size means nothing", id="size_of_a_set"),
        pytest.param(changed('set = "digits"', 'set = "har"\nclasses = ["N", "V"]'), "classes means nothing for har", id="classes_of_har"),
        pytest.param(changed('set = "digits"', 'set = "har"\nvalidation_groups = [1]'), "and not both", id="two_validations"),
        pytest.param(changed("validation_samples = 100\n", ""), "needs validation_samples", id="no_validation"),
        pytest.param(CHANNELED.replace('name = "b"', 'name = "a"'), "a second channel 'a'", id="channel_twice"),
        pytest.param(CHANNELED.replace("low = -1", "low = 1"), "is empty", id="empty_range"),
        pytest.param(CHANNELED.replace("channel = [", "channel = [1, "), "at least one [[data.channel]]", id="no_channel_table"),
    ],
)  # fmt: skip
def test_data_keys_that_do_not_fit_are_refused(text: str, words: str) -> None:
    assert words in refusal(text)


def test_what_is_written_reads_back_with_every_kind_of_value() -> None:
    odd = (
        changed('name = "mine"', 'name = "mine"\n' r'description = "quote \" back\\slash \u007f tab\t é 東"')
        + '\n[compress]\nsparsity = "2:4"\n'
    )
    recipe = parse_recipe(odd, "mine.toml")
    written = recipe.to_toml()
    assert parse_recipe(written, "written.toml") == recipe
    assert 'eps = "1/16"' in written and "batch_norm = true" in written and "file" not in written
    assert parse_recipe(written.replace("1/16", "1/15"), "written.toml") != recipe


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\\\\b", ".hidden", "x" * 65, "a\\tb"])
def test_a_name_that_no_folder_can_have_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="at most 64 characters"):
        parse_recipe(f'name = "{name}"\n', "x.toml")
