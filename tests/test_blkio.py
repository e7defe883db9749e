"""libblkio as a client of our vhost-user-blk: a front-end from outside this project.

It does not accept ZONED. So it sees a disk, on which what a zone allows works and all else is an error.
"""

import errno
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.served import Served
from tools.blkio import Blkio, BlkioError
from tools.guest.kit import find_kit

pytestmark = pytest.mark.qemu  # the library is part of the guest kit

ZONE_BYTES: Final = 1 << 20
BUFFER_BYTES: Final = 1 << 20


@pytest.fixture
def library() -> str:
    kit = find_kit()
    assert kit is not None
    return kit.library("libblkio.so.1")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    create = "--size 64M --zone-size 1M --nr-conv 2 --block-size 512 --max-open-zones 8"
    with Served(tmp_path, create=create, front_ends=["blk"]) as running:
        running.wait_until_ready()
        yield running


def test_nobody_listens(library: str, tmp_path: Path) -> None:
    with pytest.raises(BlkioError, match="No such file"):
        Blkio(library, tmp_path / "socket", buffer_bytes=4096)


def test_it_sees_the_disk(library: str, served: Served) -> None:
    with Blkio(library, served.blk_socket, buffer_bytes=BUFFER_BYTES) as disk:
        assert disk.capacity == 64 << 20
        assert disk.properties["request-alignment"] == 512
        assert disk.properties["max-queues"] >= 1
        assert disk.properties["max-segments"] > 1
        assert disk.flush() == 0


def test_reads_writes_and_what_a_zone_refuses(library: str, served: Served) -> None:
    with Blkio(library, served.blk_socket, buffer_bytes=BUFFER_BYTES) as disk:
        start = 5 * ZONE_BYTES
        disk.buffer[: 3 * 4096] = b"a" * 4096 + b"b" * 4096 + b"c" * 4096
        assert disk.write(start, 4096) == 0
        assert disk.write(start + 4096, 8192, at=4096) == 0
        assert disk.flush() == 0
        assert disk.read(start, 5 * 4096, at=65536) == 0
        assert disk.buffer[65536 : 65536 + 3 * 4096] == disk.buffer[: 3 * 4096]
        assert not any(disk.buffer[65536 + 3 * 4096 : 65536 + 5 * 4096])
        assert served.written(5) == 24

        # Without ZONED there are no words for it but one.
        assert disk.write(start, 4096) == -errno.EIO
        assert disk.write(start + 65536, 4096) == -errno.EIO
        assert disk.write(2 * ZONE_BYTES - 4096, 8192) == -errno.EIO  # from a conventional zone into a sequential one
        assert [refusal["rule"] for refusal in served.refusals()][:2] == ["UNALIGNED_WP", "UNALIGNED_WP"]
        assert len(served.refusals()) == 3
        assert disk.write(ZONE_BYTES + 512, 512) == 0  # conventional
        assert disk.read(64 << 20, 512) < 0
        assert disk.write(start + 3 * 4096, 512) == 0
        assert served.written(5) == 25


@pytest.mark.parametrize("depth", [1, 7, 64])
def test_many_requests_at_a_time(library: str, served: Served, depth: int) -> None:
    """In the order in which they were put into the ring, as a sequential zone wants them."""
    nr_blocks = 8 * ZONE_BYTES // 4096
    with Blkio(library, served.blk_socket, buffer_bytes=depth * 4096) as disk:
        assert disk.run(range(8 * ZONE_BYTES, 16 * ZONE_BYTES, 4096), 4096, depth=depth, write=True) == 0
        offsets = [random.Random(1).randrange(nr_blocks) * 4096 for _ in range(2000)]
        assert disk.run(offsets, 4096, depth=depth, write=False) == 0
    assert served.conds()[7:17] == ["em", *["fu"] * 8, "em"]
    assert served.refusals() == []


def test_front_ends_come_and_go(library: str, served: Served) -> None:
    for number in range(5):
        with Blkio(library, served.blk_socket, buffer_bytes=4096) as disk:
            disk.buffer[:8] = struct.pack("<Q", number)
            assert disk.write(3 * ZONE_BYTES + number * 4096, 4096) == 0
    with Blkio(library, served.blk_socket, buffer_bytes=5 * 4096) as disk:
        assert disk.read(3 * ZONE_BYTES, 5 * 4096) == 0
        found = [number for (number,) in struct.iter_unpack("<Q4088x", disk.buffer)]
    assert found == [0, 1, 2, 3, 4]
