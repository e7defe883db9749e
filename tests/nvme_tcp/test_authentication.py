"""Hosts that prove their names over TCP, and those that do not; the exchange alone, message by message."""

import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, strategies as st

from tests.nvme.conftest import BLOCK
from tests.nvme_tcp.conftest import Target, serving
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.nvme.command import AdminOpcode
from zonefs_emu.nvme.controller import Register
from zonefs_emu.nvme.logs import Log
from zonefs_emu.nvme.subsystem import DISCOVERY_NQN
from zonefs_emu.nvme_tcp import auth_messages, authentication, dh_groups, queue_connection
from zonefs_emu.nvme_tcp.auth_messages import Message, Negotiate, Reply, Why
from zonefs_emu.nvme_tcp.authentication import Authentication
from zonefs_emu.nvme_tcp.fabrics import AUTHENTICATION_REQUIRED, DYNAMIC, Connect, FabricsType
from zonefs_emu.nvme_tcp.host_keys import Access, DhchapKey
from zonefs_emu.testing.nvme_initiator import AuthenticationError, HostKeys, NvmeHost, NvmeQueue

HOST, SUBSYSTEM = "nqn.host", "nqn.subsystem"
KEY = DhchapKey(secret=bytes(range(32)), hash_id=1)
OTHER = DhchapKey(secret=bytes(range(48)), hash_id=0)
OFFER = Negotiate(7, 0, b"\1\2\3", b"\0")


@pytest.fixture
def guarded(device: ZonedDevice) -> Iterator[Target]:
    """A target for one host with a key and one without, whose drive has a key too."""
    with serving(device, access=Access(hosts={HOST: KEY, "nqn.free": None}, controller_key=OTHER)) as target:
        yield target


# -- over TCP -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hash_id", [1, 2, 3])
@pytest.mark.parametrize("group_id", sorted(dh_groups.GROUPS))
def test_each_hash_and_group_and_both_directions(guarded: Target, hash_id: int, group_id: int) -> None:
    for controller in (None, OTHER):
        keys = HostKeys(KEY, controller, bytes((hash_id,)), bytes((group_id,)))
        with guarded.host(host_nqn=HOST, keys=keys) as host:
            assert host.queue(1).read(1, 0, 1, BLOCK).status == 0
    assert guarded.server.statistics()["failed_authentications"] == 0


def test_a_host_without_a_key_needs_none(guarded: Target) -> None:
    with guarded.host(host_nqn="nqn.free") as host:
        assert host.identify(1).status == 0
        assert host.admin.send_message(auth_messages.encode_negotiate(OFFER)).status == 0x002
        assert host.admin.receive_message().status == 0x002


def test_a_wrong_key_is_refused_logged_and_counted(guarded: Target, expect_warning: Callable[[str], None]) -> None:
    expect_warning("nqn.host has not proved its name: its key is not the one that was given for it")
    with pytest.raises(AuthenticationError) as caught:
        guarded.host(host_nqn=HOST, keys=HostKeys(OTHER))
    assert caught.value.why == Why.FAILED
    while guarded.server.statistics()["queues"]:
        time.sleep(0.01)
    assert guarded.server.statistics()["failed_authentications"] == 1
    with guarded.host(host_nqn=HOST, keys=HostKeys(KEY)) as host:
        assert host.identify(1).status == 0


def test_a_wrong_key_is_logged_and_counted_before_its_host_hears_of_it(
    guarded: Target, expect_warning: Callable[[str], None]
) -> None:
    """One who tries keys would not wait to hear it."""
    expect_warning("nqn.host has not proved its name: its key is not the one that was given for it")
    queue, _ = connected(guarded)
    assert queue.send_message(auth_messages.encode_negotiate(OFFER)).status == 0
    assert queue.receive_message().status == 0
    for _ in range(2):
        assert queue.send_message(auth_messages.encode_reply(Reply(7, 0, bytes(64), b"", b""))).status == 0
    queue.close()
    while guarded.server.statistics()["queues"]:
        time.sleep(0.01)
    assert guarded.server.statistics()["failed_authentications"] == 1


def test_a_drive_with_a_wrong_key_is_refused_by_the_host(
    guarded: Target, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("nqn.host has not proved its name: the host gives up, reason 1")
    with pytest.raises(AuthenticationError, match="the target has not proved its name"):
        guarded.host(host_nqn=HOST, keys=HostKeys(KEY, KEY))
    while guarded.server.statistics()["failed_authentications"] != 1:
        time.sleep(0.01)


def test_a_drive_without_a_key_cannot_be_asked_for_proof(
    device: ZonedDevice, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("it asks for proof of the drive, and the drive has no key")
    with serving(device, access=Access(hosts={HOST: KEY})) as target, pytest.raises(AuthenticationError):
        target.host(host_nqn=HOST, keys=HostKeys(KEY, KEY))


def connected(target: Target) -> tuple[NvmeQueue, Connect]:
    """Return an admin queue whose host has not proved its name, and the command that connected it."""
    queue, connect = target.queue(), Connect(0, 0, 31, 0, 0, bytes(16), DYNAMIC, target.nqn, HOST)
    reply = queue.connect(connect)
    assert reply.status == 0
    assert reply.result & AUTHENTICATION_REQUIRED
    return queue, connect


def test_nothing_but_authentication_is_carried_out_before_it(guarded: Target) -> None:
    queue, connect = connected(guarded)
    for reply in (
        queue.call(AdminOpcode.IDENTIFY, cdws=(1,), room=4096),
        queue.call(AdminOpcode.KEEP_ALIVE),
        queue.get_property(Register.CAP),
        queue.set_property(Register.CC, 0x460061),
        queue.disconnect(),
    ):
        assert (reply.status, reply.do_not_retry, reply.data) == (0x191, True, b"")
    assert queue.connect(connect).status == 0x00C
    queue.authenticate(connect, HostKeys(KEY))
    assert queue.get_property(Register.CAP).status == 0
    queue.close()
    assert guarded.device.statistics()["refused"] == 0, "a stranger does not fill the log of refusals"


def test_each_queue_authenticates_for_itself(guarded: Target) -> None:
    with guarded.host(host_nqn=HOST, keys=HostKeys(KEY)) as host:
        queue = guarded.queue()
        reply = queue.connect(Connect(0, 1, 127, 0, 0, host._host_id, host.cntlid, guarded.nqn, HOST))
        assert reply.result == host.cntlid | AUTHENTICATION_REQUIRED
        assert queue.read(1, 0, 1, BLOCK).status == 0x191
        assert queue.write(1, 0, bytes(BLOCK), BLOCK).status == 0x191
        queue.close()
        assert host.queue(2).write(1, 0, bytes(BLOCK), BLOCK).status == 0


def test_a_queue_belongs_to_the_host_that_proves_its_name_there(guarded: Target) -> None:
    """All that a Connect command names is public, so a stranger can send it too, and before the host does."""
    with guarded.host(host_nqn=HOST, keys=HostKeys(KEY)) as host:
        asked = Connect(0, 1, 127, 0, 0, host._host_id, host.cntlid, guarded.nqn, HOST)
        first = guarded.queue()
        assert first.connect(asked).status == 0
        assert host.queue(1).read(1, 0, 1, BLOCK).status == 0
        late = guarded.queue()
        assert late.connect(asked).status == 0x182
        late.close()
        first.authenticate(asked, HostKeys(KEY))
        assert first.sock.recv(1) == b"", "the queue has its host by then"
        first.close()
        gone = guarded.queue()
        assert gone.connect(asked._replace(qid=2)).status == 0
    while guarded.server.statistics()["hosts"]:
        time.sleep(0.01)
    gone.authenticate(asked, HostKeys(KEY))
    assert gone.sock.recv(1) == b"", "its controller has ended"
    gone.close()


def test_the_discovery_service_needs_no_key_but_a_name(guarded: Target, expect_warning: Callable[[str], None]) -> None:
    expect_warning("'nqn.stranger' may not connect")
    with NvmeHost("127.0.0.1", guarded.port, DISCOVERY_NQN, host_nqn=HOST, keep_alive_ms=0) as host:
        assert host.log(Log.DISCOVERY, room=2048).status == 0
    with pytest.raises(ConnectionError, match="184h"):
        NvmeHost("127.0.0.1", guarded.port, DISCOVERY_NQN, host_nqn="nqn.stranger", keep_alive_ms=0)


def test_a_host_may_authenticate_again_and_a_failure_then_ends_the_queue(
    guarded: Target, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("has not proved its name: its key is not the one")
    with guarded.host(host_nqn=HOST, keys=HostKeys(KEY)) as host:
        again = Connect(0, 0, 31, 0, 0, bytes(16), host.cntlid, guarded.nqn, HOST)
        host.admin.authenticate(again, HostKeys(KEY, OTHER), transaction=8)
        assert host.identify(1).status == 0
        assert host.admin.send_message(auth_messages.encode_negotiate(OFFER)).status == 0
        assert host.identify(1).status == 0, "what was proved holds meanwhile"
        assert auth_messages.kind_of(host.admin.receive_message().data)[0] == Message.CHALLENGE
        wrong = Reply(7, 0, bytes(64), b"", b"")
        assert host.admin.send_message(auth_messages.encode_reply(wrong)).status == 0
        assert host.identify(1).status == 0x191
        assert auth_messages.kind_of(host.admin.receive_message().data)[0] == Message.FAILURE1
        assert host.admin.sock.recv(1) == b""


def test_commands_that_carry_no_message(guarded: Target) -> None:
    queue, _ = connected(guarded)
    assert queue.receive_message().status == 0x00C, "nothing is due"
    assert queue._authentication(FabricsType.AUTHENTICATION_SEND, 100, b"short").status == 0x00F
    for nr_bytes in (0, 4097):
        assert queue._authentication(FabricsType.AUTHENTICATION_RECEIVE, nr_bytes, b"").status == 0x002
    assert queue.send_message(auth_messages.encode_negotiate(OFFER)).status == 0
    assert queue.receive_message(room=79).status == 0x002, "the challenge has 80 bytes"
    assert len(queue.receive_message(room=80).data) == 80
    queue.close()


def test_a_host_that_takes_too_long_is_dropped(guarded: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_connection, "_AUTHENTICATION_S", 0.05)
    queue, _ = connected(guarded)
    assert queue.sock.recv(1) == b""
    queue.close()


# -- message by message ---------------------------------------------------------------------------------------------


class Exchange:
    """An authentication in this process, and what the host says next."""

    def __init__(self, controller_key: DhchapKey | None = None) -> None:
        self.target = Authentication(HOST, SUBSYSTEM, KEY, controller_key)

    def is_done(self) -> bool:
        return self.target.is_done

    def say(self, message: bytes) -> None:
        self.target.receive(message)

    def hear(self) -> bytes:
        message = self.target.due()
        assert message is not None
        self.target.sent()
        return message

    def challenged(self, offer: Negotiate = OFFER) -> auth_messages.Challenge:
        self.say(auth_messages.encode_negotiate(offer))
        return auth_messages.parse_challenge(self.hear())

    def reply(self, challenge: auth_messages.Challenge) -> Reply:
        names = {"host_nqn": HOST, "subsystem_nqn": SUBSYSTEM}
        response = authentication.host_response(KEY, challenge, b"", **names)
        return Reply(challenge.transaction, 0, response, b"", b"")

    def fails(self, why: Why) -> None:
        assert not self.is_done()
        message = self.hear()
        assert auth_messages.kind_of(message)[0] == Message.FAILURE1
        assert auth_messages.parse_failure(message) == why
        assert self.target.has_failed
        assert self.target.failure
        self.say(auth_messages.encode_negotiate(OFFER))
        assert self.target.due() is None, "what has failed is over"


def test_the_best_of_what_is_offered_is_chosen() -> None:
    for hashes, groups, chosen in (
        (b"\1\2\3", bytes(range(6)), (3, 2)),
        (b"\1\2", b"\0\1\5", (2, 1)),
        (b"\1", b"\5\4", (1, 4)),
        (b"\x09\1", b"\x09\0", (1, 0)),
    ):
        challenge = Exchange().challenged(OFFER._replace(hashes=hashes, groups=groups))
        assert (challenge.hash_id, challenge.group_id) == chosen
        assert challenge.sequence
        assert len(challenge.challenge) == {1: 32, 2: 48, 3: 64}[chosen[0]]
        assert len(challenge.value) == dh_groups.value_bytes(chosen[1])


def test_challenges_differ() -> None:
    found = {Exchange().challenged().challenge for _ in range(20)}
    assert len(found) == 20


@pytest.mark.parametrize(
    ("offer", "why"),
    [
        (OFFER._replace(hashes=b""), Why.HASH_NOT_USABLE),
        (OFFER._replace(hashes=b"\x09"), Why.HASH_NOT_USABLE),
        (OFFER._replace(groups=b""), Why.GROUP_NOT_USABLE),
        (OFFER._replace(groups=b"\x09"), Why.GROUP_NOT_USABLE),
        (OFFER._replace(concatenation=1), Why.CONCATENATION_MISMATCH),
    ],
)
def test_offers_that_cannot_be_taken(offer: Negotiate, why: Why) -> None:
    exchange = Exchange()
    exchange.say(auth_messages.encode_negotiate(offer))
    exchange.fails(why)


@pytest.mark.parametrize(
    "first",
    [
        auth_messages.encode_reply(Reply(7, 0, bytes(64), b"", b"")),
        auth_messages.encode_success2(7),
        auth_messages.encode_failure(Message.FAILURE2, 7, 1),
        b"\xff" * 16,
    ],
)
def test_a_first_message_out_of_sequence(first: bytes) -> None:
    exchange = Exchange()
    exchange.say(first)
    exchange.fails(Why.INCORRECT_MESSAGE)


def test_an_exchange_that_was_begun_is_not_begun_again() -> None:
    """Each would cost a value of a group."""
    exchange = Exchange()
    exchange.challenged()
    exchange.say(auth_messages.encode_negotiate(OFFER))
    exchange.fails(Why.INCORRECT_MESSAGE)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"transaction": 8}, Why.INCORRECT_PAYLOAD),
        ({"response": b"\1" * 64}, Why.FAILED),
        ({"response": b""}, Why.INCORRECT_PAYLOAD),
        ({"response": bytes(63)}, Why.INCORRECT_PAYLOAD),
        ({"value": b"\2"}, Why.INCORRECT_PAYLOAD),
        ({"challenge": bytes(64), "sequence": 1}, Why.FAILED),
    ],
)
def test_replies_that_prove_nothing(changes: dict[str, object], why: Why) -> None:
    exchange = Exchange()
    reply = exchange.reply(exchange.challenged())
    exchange.say(auth_messages.encode_reply(reply._replace(**changes)))  # type: ignore[arg-type]  # a table of arguments
    exchange.fails(why)


@pytest.mark.parametrize("value", [b"", bytes(255) + b"\1", bytes(256), (dh_groups.prime(1) - 1).to_bytes(256, "big")])
def test_values_whose_secret_everybody_knows_are_an_incorrect_payload(value: bytes) -> None:
    exchange = Exchange()
    reply = exchange.reply(exchange.challenged(OFFER._replace(groups=b"\1")))
    exchange.say(auth_messages.encode_reply(reply._replace(value=value)))
    exchange.fails(Why.INCORRECT_PAYLOAD)


@pytest.mark.parametrize("sequence", [0, 9])
def test_the_challenge_that_was_sent_does_not_come_back(sequence: int) -> None:
    """Not even from a host that has the key: the drive answers no challenge of its own."""
    exchange = Exchange(KEY)
    challenge = exchange.challenged()
    reply = exchange.reply(challenge)._replace(sequence=sequence, challenge=challenge.challenge)
    exchange.say(auth_messages.encode_reply(reply))
    exchange.fails(Why.FAILED)


def test_a_reply_is_good_once() -> None:
    """A listener who has heard one exchange cannot repeat it."""
    exchange = Exchange()
    heard = exchange.reply(exchange.challenged())
    exchange.say(auth_messages.encode_reply(heard))
    assert not exchange.is_done(), "not before the host hears of it"
    assert auth_messages.parse_success1(exchange.hear()) == b""
    assert exchange.is_done()
    other = Exchange()
    other.challenged()
    other.say(auth_messages.encode_reply(heard))
    other.fails(Why.FAILED)


def test_a_host_that_asks_for_proof_is_done_when_it_says_so() -> None:
    exchange = Exchange(OTHER)
    challenge = exchange.challenged()
    reply = exchange.reply(challenge)._replace(sequence=9, challenge=b"\3" * 64)
    exchange.say(auth_messages.encode_reply(reply))
    names = {"host_nqn": HOST, "subsystem_nqn": SUBSYSTEM}
    proof = authentication.controller_response(OTHER, reply, challenge, b"", **names)
    assert auth_messages.parse_success1(exchange.hear()) == proof
    assert not exchange.is_done()
    exchange.say(auth_messages.encode_success2(7))
    assert exchange.is_done()
    assert proof != reply.response


@given(
    messages=st.lists(st.binary(max_size=120) | st.sampled_from([auth_messages.encode_negotiate(OFFER)]), max_size=5)
)
def test_no_bytes_prove_anything(messages: list[bytes]) -> None:
    exchange = Exchange()
    for message in messages:
        exchange.say(message)
        if exchange.target.due() is not None:
            exchange.hear()
    assert not exchange.is_done()
