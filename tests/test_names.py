"""Names of groups: short and plain enough for every channel layer, whatever models are called, and each its own."""

from __future__ import annotations

import pytest
from channels.layers import InMemoryChannelLayer

from pgnotify_gql.names import heartbeat_group, model_group

LABELS = ["chat.message", "chat.grüße", "chat.größe", "chat.gr__e", "chat.gr__e_1", "x" * 120, "x" * 121]


@pytest.mark.parametrize("label", LABELS)
def test_a_channel_layer_takes_the_group_of_every_model(label: str) -> None:
    assert InMemoryChannelLayer().require_valid_group_name(model_group(label))


def test_no_two_models_have_a_group_together() -> None:
    assert len({heartbeat_group(), *map(model_group, LABELS)}) == len(LABELS) + 1


def test_a_name_that_is_plain_and_short_is_shown_as_it_is() -> None:
    assert model_group("chat.message") == "pgnotify_gql.chat.message"
