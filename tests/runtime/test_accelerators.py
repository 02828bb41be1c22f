"""The cards that are known: their names, their memory, and what XLA reads of them."""

import re

from pytest import mark, raises

from runtime.accelerators import CARDS, UnknownCard, card_named, size
from runtime.card_report import cards_of

# What XLA's own description of every NVIDIA card has; without one of these it divides by zero.
NEEDED = {
    *("threads_per_block_limit", "threads_per_warp", "shared_memory_per_block"),
    *("shared_memory_per_core", "threads_per_core_limit", "core_count", "fpus_per_core"),
    *("block_dim_limit_x", "block_dim_limit_y", "block_dim_limit_z", "memory_bandwidth"),
    *("l2_cache_size", "clock_rate_ghz", "device_memory_size", "shared_memory_per_block_optin"),
    *("registers_per_core_limit", "registers_per_block_limit", "thread_dim_limit_x"),
    *("thread_dim_limit_y", "thread_dim_limit_z"),
}


@mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_a_description_has_all_that_xla_divides_by(card):
    """Each field is there once, and more than zero."""
    found = dict(re.findall(r"^  (\w+): ([\d.]+)$", card.target_config, re.MULTILINE))

    assert set(found) >= NEEDED
    assert all(float(value) > 0 for value in found.values())
    assert f"major: {card.capability[0]} minor: {card.capability[1]} " in card.target_config
    assert card.target_config.count("{") == card.target_config.count("}")
    assert card.target_config.splitlines()[-2] == 'platform_name: "CUDA"'


@mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_a_card_is_found_by_its_names_and_by_no_others(card):
    """Its name here, Vertex AI's and Google Cloud's mean the same card, and no two share one."""
    names = (card.name, card.vertex, card.google_cloud)

    assert [card_named(name) for name in names] == [card] * 3
    assert [other for other in CARDS.values() if {other.name, other.vertex} & set(names)] == [card]
    assert 0.74 * card.memory_bytes < card.usable_bytes() < 0.76 * card.memory_bytes


@mark.parametrize("name", ["t5", "T4", "sm_77", "", "nvidia"])
def test_a_card_that_is_not_known_is_refused_with_those_that_are(name):
    """XLA compiles for an architecture that no card has without a word."""
    with raises(UnknownCard) as error:
        card_named(name)

    assert str(error.value) == (
        f"expected a card among t4, l4, a100, a100-80gb, h100, h200, got {name!r}"
    )


def test_a_list_of_cards_has_each_once():
    """A card that is named twice, or by two names, is compiled for once."""
    assert [card.name for card in cards_of("l4,t4,NVIDIA_L4,l4")] == ["l4", "t4"]
    with raises(UnknownCard, match="got ''"):
        cards_of("t4,")


@mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (15_655_829_504, "15.7 GB")],
)
def test_bytes_have_three_digits(count, text):
    """A size is written with the unit that leaves one to three digits before the point."""
    assert size(count) == text
