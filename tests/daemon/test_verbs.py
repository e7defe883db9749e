from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.daemon.framing import OBJECT_BYTES_MAX, Json, Message, encode, unpack_zones
from zonefs_emu.daemon.verbs import TRANSFER_BYTES_MAX, Verbs
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.front_ends.known import EXTENSIONS
from zonefs_emu.model.zone import Condition


@pytest.fixture
def verbs(image: Path) -> Iterator[Verbs]:
    device = ZonedDevice.open(image)
    yield Verbs(device, extensions=EXTENSIONS)
    device.close()


def ask(verbs: Verbs, payload: bytes = b"", **request: Json) -> Message:
    (reply,) = verbs.execute({name.replace("set_cond", "set-cond"): value for name, value in request.items()}, payload)
    return reply


def error(verbs: Verbs, payload: bytes = b"", **request: Json) -> tuple[str, Json]:
    reply, data = ask(verbs, payload, **request)
    assert data == b""
    sentence = reply["error"]
    assert isinstance(sentence, str)
    return sentence, reply["exit_code"]


def test_write_read_append(verbs: Verbs) -> None:
    assert ask(verbs, b"a" * 4096, verb="write", zone_no=1) == ({"sector": 2048, "nr_sectors": 8}, b"")
    assert ask(verbs, b"b" * 4096, verb="write", sector=2056) == ({"sector": 2056, "nr_sectors": 8}, b"")
    assert ask(verbs, b"c" * 4096, verb="append", zone_no=1) == ({"append_sector": 2064, "nr_sectors": 8}, b"")
    data = b"a" * 4096 + b"b" * 4096 + b"c" * 4096 + bytes(4096)
    assert ask(verbs, verb="read", sector=2048, nr_sectors=32) == ({}, data)
    assert ask(verbs, verb="flush") == ({}, b"")


def test_report_comes_in_portions(verbs: Verbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zonefs_emu.daemon.verbs.ZONES_PER_REPLY", 3)
    replies = list(verbs.execute({"verb": "report"}, b""))
    assert [reply for reply, _ in replies] == [{"more": True}] * 3 + [{}]
    assert [len(unpack_zones(payload)) for _, payload in replies] == [3, 3, 2, 0]
    replies = list(verbs.execute({"verb": "report", "zone_no": 2, "count": 4, "conds": [1]}, b""))
    assert [zone.zone_no for _, payload in replies for zone in unpack_zones(payload)] == [2, 3, 4, 5]


def test_a_dump_says_how_far_it_is(verbs: Verbs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zonefs_emu.persist.copy._REPORT_BYTES", 1)
    for zone_no in (1, 2):
        ask(verbs, b"a" * 4096, verb="write", zone_no=zone_no)
    replies = verbs.execute({"verb": "dump", "path": str(tmp_path / "dump")}, b"")
    assert next(replies) == ({"more": True, "done": 2048}, b"")
    assert list(verbs.execute({"verb": "dump", "path": str(tmp_path / "again")}, b""))[-1] == ({}, b""), "beside it"
    assert list(replies)[-1] == ({}, b"")
    assert error(verbs, verb="dump", path=str(tmp_path / "dump")) == (
        f"cannot create {tmp_path / 'dump'}: File exists",
        1,
    )
    assert error(verbs, verb="dump", path="here") == ("'path' must be an absolute path, not 'here'", 2)


def test_a_filter_reports_from_anywhere(verbs: Verbs) -> None:
    ask(verbs, verb="manage", operation="open", zone_no=6)
    replies = list(verbs.execute({"verb": "report", "conds": [int(Condition.EXP_OPEN), 0]}, b""))
    assert [zone.zone_no for _, payload in replies for zone in unpack_zones(payload)] == [0, 6]


def test_refusals_carry_the_devices_sentence(verbs: Verbs) -> None:
    sentence, code = error(verbs, bytes(4096), verb="write", sector=4104)
    assert sentence.startswith("write of 8 sectors at sector 4104 was refused (UNALIGNED_WP): a sequential zone is")
    assert code == 1
    refusals = ask(verbs, verb="why")[0]["refusals"]
    assert isinstance(refusals, list)
    (refusal,) = refusals
    assert isinstance(refusal, dict)
    assert (refusal["front_end"], refusal["zone_no"], refusal["wp"]) == ("cli", 2, 4096)


def test_power_cycle(verbs: Verbs) -> None:
    ask(verbs, verb="manage", operation="open", zone_no=6)
    assert ask(verbs, verb="power-cycle") == ({}, b"")
    assert ask(verbs, verb="stats")[0]["device"]["nr_open"] == 0  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    ("request_", "sentence", "code"),
    [
        ({}, "there is no verb None: there are info, report,", 2),
        ({"verb": "format"}, "there is no verb 'format'", 2),
        ({"verb": ["info"]}, "there is no verb ['info']", 2),
        ({"verb": "read", "sector": 0}, "'nr_sectors' must be a number, not None", 2),
        ({"verb": "read", "sector": "0", "nr_sectors": 8}, "'sector' must be a number, not '0'", 2),
        ({"verb": "read", "sector": True, "nr_sectors": 8}, "'sector' must be a number, not True", 2),
        ({"verb": "read", "sector": -1, "nr_sectors": 8}, "'sector' must lie between 0 and", 1),
        ({"verb": "read", "sector": 0, "nr_sectors": 1 << 40}, "'nr_sectors' must lie between 1 and 32768", 1),
        ({"verb": "read", "sector": 1 << 62, "nr_sectors": 8}, "(OUT_OF_RANGE)", 1),
        ({"verb": "write", "zone_no": 8}, "0 bytes are not a whole number of blocks", 1),
        ({"verb": "manage", "zone_no": 1}, "there is no zone operation None: there are open, close, finish, reset", 2),
        ({"verb": "manage", "operation": "erase", "all": True}, "there is no zone operation 'erase'", 2),
        ({"verb": "manage", "operation": "reset", "zone_no": 8}, "there is no zone 8", 1),
        ({"verb": "manage", "operation": "reset", "zone_no": 0}, "(CONVENTIONAL)", 1),
        ({"verb": "set-cond", "zone_no": 1, "cond": 7}, "7 is not the number of a zone condition", 2),
        ({"verb": "set-cond", "zone_no": 1}, "None is not the number of a zone condition", 2),
        ({"verb": "report", "conds": 3}, "'conds' must be a list", 2),
        ({"verb": "report", "conds": ["em"]}, "'em' is not the number", 2),
        ({"verb": "report", "zone_no": 9}, "'zone_no' must lie between 0 and 8", 1),
        ({"verb": "mkfs", "label": 3}, "'label' must be a text, not 3", 2),
        ({"verb": "mkfs", "features": "magic"}, "unknown feature magic", 2),
        ({"verb": "mkfs", "features": f"uid={'9' * 4000}"}, "the feature uid needs a decimal number", 2),
        ({"verb": "mkfs", "label": "\udcff"}, r"a label must be UTF-8 text, and '\xff' is not", 2),
        ({"verb": "mkfs", "name": "n" * 5000}, "'name' must have at most 4096 characters", 2),
        ({"verb": "dump", "path": "/\0"}, r"'path' must be an absolute path, not '/\x00'", 2),
        ({"verb": "rewind", "path": "/\ud800"}, r"'path' must be an absolute path, not '/\ud800'", 2),
        ({"verb": "why", "count": 0}, "'count' must lie between 1 and", 1),
    ],
)
def test_a_wrong_request_is_a_reply(verbs: Verbs, request_: dict[str, Json], sentence: str, code: int) -> None:
    ((reply, _),) = verbs.execute(request_, b"")
    assert sentence in str(reply["error"])
    assert reply["exit_code"] == code


def test_a_value_of_any_length_is_refused_in_a_reply(verbs: Verbs) -> None:
    """A reply with all of the value would be longer than a message may be."""
    longest = "\U0001f600" * (OBJECT_BYTES_MAX // 4 - 100)
    for request in ({"verb": longest}, {"verb": "read", "sector": longest}, {"verb": "set-cond", "zone_no": longest}):
        ((reply, payload),) = verbs.execute(request, b"")
        assert str(reply["error"]).endswith("...")
        encode(reply, payload)


def test_trouble_of_the_host_is_a_reply(verbs: Verbs, monkeypatch: pytest.MonkeyPatch) -> None:
    def trouble(_device: ZonedDevice) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ZonedDevice, "statistics", trouble)
    assert error(verbs, verb="stats") == ("Input/output error", 1)
    monkeypatch.setattr(verbs._device.image, "poison", "the image could not be synced")
    assert error(verbs, verb="power-cycle") == ("the image could not be synced", 1)


def test_the_longest_write(verbs: Verbs) -> None:
    sentence, _ = error(verbs, bytes(TRANSFER_BYTES_MAX), verb="write", zone_no=1)
    assert "write of 32768 sectors at sector 2048 was refused (OUT_OF_RANGE)" in sentence


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "verb": st.deferred(lambda: st.sampled_from([*_shared_verbs()._verbs, "mkfs"])),
            "zone_no": st.integers(-2, 1 << 65) | st.text(max_size=2) | st.none(),
            "sector": st.integers(-2, 1 << 65) | st.lists(st.none(), max_size=1),
            "nr_sectors": st.integers(-2, 64) | st.floats(),
            "count": st.integers(-2, 10) | st.booleans(),
            "operation": st.sampled_from(["open", "close", "finish", "reset", "", 3]),
            "features": st.sampled_from(["", "aggr_cnv", "uid=x", 3]),
            "force": st.booleans(),
            "all": st.booleans() | st.text(max_size=2),
            "cond": st.integers(-1, 16),
            "conds": st.lists(st.integers(-1, 16), max_size=3) | st.text(max_size=2),
        },
    ),
    st.sampled_from([b"", bytes(4096), bytes(512), b"x"]),
)
def test_no_request_raises(request_: dict[str, Json], payload: bytes) -> None:
    """One device for all examples: whatever was done to it before, the next request is answered."""
    replies = list(_shared_verbs().execute(request_, payload))
    assert replies
    assert "more" not in replies[-1][0]


_SHARED: list[Verbs] = []


def _shared_verbs() -> Verbs:
    if not _SHARED:
        import tempfile
        from uuid import uuid4

        from zonefs_emu.model.geometry import Geometry

        path = Path(tempfile.mkdtemp()) / "shared.img"
        geometry = Geometry(size=8 * 2048, zone_size=2048, zone_capacity=1536, conventional=((0, 1),), max_open_zones=2)
        ZonedDevice.create(path, geometry, uuid=uuid4())
        _SHARED.append(Verbs(ZonedDevice.open(path), extensions=EXTENSIONS))
        path.unlink()
    return _SHARED[0]
