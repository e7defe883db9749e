"""The controller's side of DH-HMAC-CHAP: a host proves its name on one queue, and the drive its own on request.

The messages, in their order: Negotiate from the host, Challenge, Reply from the host, Success1 or Failure1; and from a
host that has asked for proof of the drive, Success2 or Failure2. Only a host that has authenticated a queue may begin a
second exchange on it: an exchange that fails ends the queue. So an unknown host costs two powers in a group for each
connection: the drive's value, and the secret that both have in common.

Source: NVM Express Base Specification 2.1, 8.3.4.5.
"""

import hashlib
import hmac
import secrets
import struct
from enum import Enum, auto
from typing import Final

from zonefs_emu.nvme_tcp import auth_messages, dh_groups
from zonefs_emu.nvme_tcp.auth_messages import Challenge, Message, MessageError, Reply, Why
from zonefs_emu.nvme_tcp.dh_groups import KeyPair
from zonefs_emu.nvme_tcp.host_keys import HASHES, DhchapKey

#: What is chosen of the host's offers, the best first. A group of 3072 bits is as strong as the smallest key.
_HASHES: Final = (3, 2, 1)
_GROUPS: Final = (2, 3, 1, 4, 5, dh_groups.NULL)
_SEQUENCES: Final = 0xFFFFFFFF


class _Step(Enum):
    """The next step."""

    NEGOTIATE = auto()
    SEND_CHALLENGE = auto()
    REPLY = auto()
    SEND_SUCCESS = auto()
    SUCCESS2 = auto()
    SEND_FAILURE = auto()
    FAILED = auto()


class Authentication:
    """The exchange on one queue. *key* is the host's, *controller_key* the drive's, if it has one."""

    def __init__(self, host_nqn: str, subsystem_nqn: str, key: DhchapKey, controller_key: DhchapKey | None) -> None:
        self._host_nqn = host_nqn
        self._subsystem_nqn = subsystem_nqn
        self._key = key
        self._controller_key = controller_key
        #: Whether the host has proved its name.
        self.is_done = False
        #: Why the host did not, as a part of a sentence.
        self.failure = ""
        self._step = _Step.NEGOTIATE
        self._transaction = 0
        self._why = Why.FAILED
        self._challenge = Challenge(0, 0, 0, 0, b"", b"")
        self._pair = KeyPair(dh_groups.NULL, 0, b"")
        self._response = b""

    @property
    def has_failed(self) -> bool:
        """Whether the exchange has failed, so that the queue must be ended."""
        return self._step is _Step.FAILED

    def receive(self, message: bytes) -> None:
        """Handle a *message* of the host."""
        try:
            self._receive(message)
        except MessageError as error:
            self._fail(error.why, error.what)

    def due(self) -> bytes | None:
        """Return the next message for the host; None if the next one comes from the host."""
        match self._step:
            case _Step.SEND_CHALLENGE:
                return auth_messages.encode_challenge(self._challenge)
            case _Step.SEND_SUCCESS:
                return auth_messages.encode_success1(self._transaction, len(self._challenge.challenge), self._response)
            case _Step.SEND_FAILURE:
                return auth_messages.encode_failure(Message.FAILURE1, self._transaction, self._why)
            case _:
                return None

    def sent(self) -> None:
        """Note that the message was sent to the host."""
        match self._step:
            case _Step.SEND_CHALLENGE:
                self._step = _Step.REPLY
            case _Step.SEND_SUCCESS if self._response:
                self._step = _Step.SUCCESS2
            case _Step.SEND_SUCCESS:
                self._end_well()
            case _Step.SEND_FAILURE:
                self._step = _Step.FAILED
            case _:
                raise AssertionError(self._step)

    def _end_well(self) -> None:
        self.is_done = True
        self._step = _Step.NEGOTIATE

    def _receive(self, message: bytes) -> None:
        kind, transaction = auth_messages.kind_of(message)
        match self._step, kind:
            case _Step.NEGOTIATE, Message.NEGOTIATE:
                self._transaction = transaction
                self._negotiate(message)
            case _Step.REPLY, Message.REPLY:
                self._require_transaction(transaction)
                self._check(auth_messages.parse_reply(message))
            case _Step.SUCCESS2, Message.SUCCESS2:
                self._require_transaction(transaction)
                self._end_well()
            case ((_Step.REPLY | _Step.SUCCESS2), Message.FAILURE2):
                self.failure = f"the host gives up, reason {auth_messages.parse_failure(message)}"
                self._step = _Step.FAILED
            case ((_Step.SEND_FAILURE | _Step.FAILED), _):
                pass  # it is over
            case _:
                raise MessageError(Why.INCORRECT_MESSAGE, f"message {kind:04X}h, out of sequence")

    def _require_transaction(self, transaction: int) -> None:
        if transaction != self._transaction:
            raise MessageError(Why.INCORRECT_PAYLOAD, f"transaction {transaction} in place of {self._transaction}")

    def _fail(self, why: Why, what: str) -> None:
        self._why = why
        self.failure = what
        self.is_done = False
        self._step = _Step.SEND_FAILURE

    def _negotiate(self, message: bytes) -> None:
        offer = auth_messages.parse_negotiate(message)
        if offer.concatenation:
            raise MessageError(Why.CONCATENATION_MISMATCH, "a secure channel is asked for, and there is none")
        hash_id = next((each for each in _HASHES if each in offer.hashes), None)
        if hash_id is None:
            raise MessageError(Why.HASH_NOT_USABLE, "no hash that both sides have")
        group_id = next((each for each in _GROUPS if each in offer.groups), None)
        if group_id is None:
            raise MessageError(Why.GROUP_NOT_USABLE, "no group that both sides have")
        self._pair = dh_groups.new_pair(group_id)
        self._challenge = Challenge(
            self._transaction, hash_id, group_id, new_sequence(), new_challenge(hash_id), self._pair.value
        )
        self._step = _Step.SEND_CHALLENGE

    def _check(self, reply: Reply) -> None:
        """Compare the host's response with the one that its key gives, and answer its own challenge."""
        challenge = self._challenge
        if len(reply.response) != len(challenge.challenge):
            raise MessageError(Why.INCORRECT_PAYLOAD, f"a response of {len(reply.response)} bytes")
        session_key = dh_groups.shared_secret(self._pair, reply.value)
        if session_key is None:
            raise MessageError(Why.INCORRECT_PAYLOAD, f"a public value of {len(reply.value)} bytes that is none")
        if reply.challenge == challenge.challenge:
            raise MessageError(Why.FAILED, "it sends the challenge of the drive back")
        expected = host_response(
            self._key, challenge, session_key, host_nqn=self._host_nqn, subsystem_nqn=self._subsystem_nqn
        )
        if not hmac.compare_digest(expected, reply.response):
            raise MessageError(Why.FAILED, "its key is not the one that was given for it")
        self._response = b""
        # A challenge without a sequence number is for a secure channel, which does not exist here.
        if reply.challenge and reply.sequence:
            if self._controller_key is None:
                raise MessageError(Why.FAILED, "it asks for proof of the drive, and the drive has no key")
            self._response = controller_response(
                self._controller_key, reply, challenge, session_key, host_nqn=self._host_nqn,
                subsystem_nqn=self._subsystem_nqn,
            )  # fmt: skip
        self._step = _Step.SEND_SUCCESS


def new_challenge(hash_id: int) -> bytes:
    """Return a challenge, as long as the hash."""
    return secrets.token_bytes(hmac.new(b"", digestmod=HASHES[hash_id]).digest_size)


def new_sequence() -> int:
    """Return a sequence number, which is not 0."""
    return secrets.randbelow(_SEQUENCES) + 1


def host_response(
    key: DhchapKey, challenge: Challenge, session_key: bytes, *, host_nqn: str, subsystem_nqn: str
) -> bytes:
    """Return a host's response to the controller's *challenge*. *session_key*: the secret of the group, or empty."""
    name = HASHES[challenge.hash_id]
    numbered = _augmented(challenge.challenge, session_key, name) + struct.pack(
        "<IHB", challenge.sequence, challenge.transaction, 0
    )
    return _response(key, numbered, b"HostHost", name, own_nqn=host_nqn, peer_nqn=subsystem_nqn)


def controller_response(
    key: DhchapKey, reply: Reply, challenge: Challenge, session_key: bytes, *, host_nqn: str, subsystem_nqn: str
) -> bytes:
    """Return the controller's response to the challenge in the host's *reply*."""
    name = HASHES[challenge.hash_id]
    numbered = _augmented(reply.challenge, session_key, name) + struct.pack(
        "<IHB", reply.sequence, reply.transaction, 0
    )
    return _response(key, numbered, b"Controller", name, own_nqn=subsystem_nqn, peer_nqn=host_nqn)


def _response(key: DhchapKey, numbered: bytes, role: bytes, name: str, *, own_nqn: str, peer_nqn: str) -> bytes:
    """Return the response of *own_nqn* in its *role* to the challenge that *numbered* has, with its numbers."""
    text = numbered + role + own_nqn.encode() + b"\0" + peer_nqn.encode()
    return hmac.digest(key.bound_to(own_nqn), text, name)


def _augmented(challenge: bytes, session_key: bytes, name: str) -> bytes:
    """Return *challenge* joined with the secret of the group, if the group has one."""
    if not session_key:
        return challenge
    return hmac.digest(hashlib.new(name, session_key).digest(), challenge, name)
