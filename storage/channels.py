"""Channels: names such as "production" that are moved from version to version.

A channel is a log. A move is a new entry, create-only, under the next number; nothing is ever replaced, so two movers
cannot overwrite each other, and the history is the log itself.
"""

import uuid
from datetime import UTC, datetime

from storage import keys, manifests, retractions
from storage.errors import CorruptFileError, RetractedError, VersionNotFoundError
from storage.numbered import highest, read_all
from storage.records import ChannelEntry
from storage.sealed import read_sealed, seal
from storage.store import Store


def move(store: Store, dataset: str, channel: str, version: int) -> ChannelEntry:
    """Let a channel mean a version from now on; the channel comes to be with its first move.

    Returns:
        The entry of this move. Of several movers at once each gets one; the highest number counts.

    Raises:
        VersionNotFoundError, RetractedError: the version is not there any more, or never was.
    """
    keys.check_channel(channel)
    store.probe()
    if version < 1 or not store.exists(keys.manifest_key(dataset, version)):
        last = manifests.top(store, dataset)
        raise VersionNotFoundError(
            f"there is no {dataset}@{version} to move {channel!r} to: the last is {dataset}@{last}"
            if last
            else manifests.absent(store, dataset)
        )
    tombstone = retractions.find(store, dataset, version)
    if tombstone is not None:
        raise RetractedError(
            f"{retractions.describe(tombstone)}. {channel!r} stays where it is: move it to a live version"
        )
    entry_id, number = uuid.uuid4().hex, _top(store, dataset, channel) + 1
    while True:
        entry = ChannelEntry(
            dataset=dataset,
            channel=channel,
            number=number,
            version=version,
            moved=datetime.now(UTC).isoformat(timespec="seconds"),
            id=entry_id,
        )
        if store.create(keys.channel_key(dataset, channel, number), seal(entry)):
            return entry
        while store.exists(keys.channel_key(dataset, channel, number)):
            number += 1


def resolve(store: Store, dataset: str, channel: str) -> int | None:
    """The version a channel means, None where there is no such channel.

    Raises:
        RetractedError: the version was retracted since; the message says where the channel could be moved.
    """
    number = _top(store, dataset, channel)
    if not number:
        return None
    version = _read(store, dataset, channel, number).version
    tombstone = retractions.find(store, dataset, version)
    if tombstone is None:
        return version
    live = next((n for n in range(manifests.top(store, dataset), 0, -1) if _is_live(store, dataset, n)), None)
    advice = f"Move it: `sonoforge promote {dataset}@{live} {channel}`" if live else "No version is live: publish one"
    raise RetractedError(f"{dataset}@{channel} is {dataset}@{version}. {retractions.describe(tombstone)}. {advice}")


def history(store: Store, dataset: str, channel: str) -> list[ChannelEntry]:
    """All moves of a channel, the first first; empty where there is no such channel."""
    last = _top(store, dataset, channel)
    return list(read_all(range(1, last + 1), lambda number: _read(store, dataset, channel, number)))


def names(store: Store, dataset: str) -> list[str]:
    """The channels of a dataset, sorted."""
    return store.folders(keys.channel_folder(dataset))


def _top(store: Store, dataset: str, channel: str) -> int:
    found = [key.rsplit("/", 1)[-1].removesuffix(".json") for key in store.list(keys.channel_folder(dataset, channel))]
    listed = [int(name) for name in found if name.isdecimal()]
    return highest(listed, lambda number: store.exists(keys.channel_key(dataset, channel, number)))


def _read(store: Store, dataset: str, channel: str, number: int) -> ChannelEntry:
    key = keys.channel_key(dataset, channel, number)
    entry = read_sealed(store, key, ChannelEntry)
    if (entry.dataset, entry.channel, entry.number) != (dataset, channel, number):
        raise CorruptFileError(f"{store.uri(key)} calls itself move {entry.number} of {entry.dataset}@{entry.channel}")
    return entry


def _is_live(store: Store, dataset: str, version: int) -> bool:
    there = store.exists(keys.manifest_key(dataset, version))
    return there and retractions.find(store, dataset, version) is None
