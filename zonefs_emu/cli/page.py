"""The picture of all zones as one HTML page that needs nothing else: ``map --html``.

Pure but for reading its own template, which is beside this file. The zones travel as compressed bytes, so that a
million of them take little room, and the page draws them itself.
"""

import json
import struct
import zlib
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from zonefs_emu.daemon.framing import Json
from zonefs_emu.model.zone import Zone

#: What the page tells of a zone's counters.
ZONE_COUNTERS: Final = ("writes", "appends", "reads", "resets", "refused")
_TEMPLATE: Final = Path(__file__).with_name("page.html")
#: What the page takes of the verb ``info``; sizes in sectors.
_FIELDS: Final = (
    "nr_zones", "size", "zone_size", "zone_capacity", "conventional", "nr_open", "nr_active", "max_open_zones",
    "max_active_zones",
)  # fmt: skip


def pack(zones: Iterable[Zone]) -> str:
    """Return the conditions, a byte each, and the sectors with data, 8 bytes each, of all *zones*, as base64."""
    conds = bytearray()
    written = bytearray()
    for zone in zones:
        conds.append(zone.cond)
        written += struct.pack("<Q", max(zone.wp - zone.start, 0))
    return b64encode(zlib.compress(bytes(conds + written), 6)).decode()


def shape(info: Mapping[str, Json]) -> dict[str, Json]:
    """Return what the page needs of the verb ``info``."""
    return {name: info[name] for name in _FIELDS}


def page(
    zones: Iterable[Zone], info: Mapping[str, Json], *, title: str, counters: Mapping[int, Mapping[str, int]],
    live: bool,
) -> str:  # fmt: skip
    """Return the page. *counters*: of the zones that were used most. *live*: the server's events renew the page."""
    data: dict[str, Json] = {
        **shape(info),
        "title": title,
        "zones": pack(zones),
        "counters": {str(zone_no): {**row} for zone_no, row in counters.items()},
        "live": live,
    }
    # Without "<" the text cannot end the element that it is in.
    text = json.dumps(data).replace("<", "\\u003c")
    return _TEMPLATE.read_text(encoding="utf-8").replace("@DATA@", text)
