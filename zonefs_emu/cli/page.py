"""The picture of all zones as one HTML page without further files: ``map --html``.

Pure, except that it reads its template, which is beside this file. The page has the zones as compressed bytes, so that
a million zones take little room, and draws them itself.
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

#: The counters of a zone that the page shows.
ZONE_COUNTERS: Final = ("writes", "appends", "reads", "resets", "refused")
_TEMPLATE: Final = Path(__file__).with_name("page.html")
#: The fields of the verb ``info`` that the page uses; sizes in sectors.
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
    """Return the fields of *info*, the reply to the verb ``info``, that the page uses."""
    return {name: info[name] for name in _FIELDS}


def page(
    zones: Iterable[Zone], info: Mapping[str, Json], *, title: str, counters: Mapping[int, Mapping[str, int]],
    live: bool,
) -> str:  # fmt: skip
    """Return the page, as HTML. *zones* are all of them, in their order, and *info* is the reply to the verb ``info``.

    *counters*: those of the zones that were used most, by zone number. *live*: events of the server update the page.
    """
    data: dict[str, Json] = {
        **shape(info),
        "title": title,
        "zones": pack(zones),
        "counters": {str(zone_no): {**row} for zone_no, row in counters.items()},
        "live": live,
    }
    # Text without "<" cannot end its element.
    text = json.dumps(data).replace("<", "\\u003c")
    return _TEMPLATE.read_text(encoding="utf-8").replace("@DATA@", text)
