"""Records of requests in flight, which outlive this process, and recovery from them.

The words are the same for every transport:

* A *record* is memory that outlives this process: a part of a region that a front-end keeps, or a file.
* A record has *slots*. A slot holds the *intent* of one request: the change of a zone that it is about to make.
* An intent is *begun* before the zone is changed, *committed* after it was, and *aborted* if the change was refused
  (:mod:`zonefs_emu.device.intent_log`).
* After a restart each request that comes again is *recovered*: the record says whether it was carried out.

There are two kinds. A virtqueue's requests are carried out in order and its ring outlives this process, so a slot is
found by the position of its request (:mod:`.ring_record`, for vhost-user and VDUSE). Where answers are given in another
order, those that are held are in the slots as well (:mod:`.holding_record`). The kernel gives requests of ublk back in
any order and does not say which of them are old, so a slot belongs to a tag, and a request is compared with all slots
of the earlier process (:mod:`.tag_record`).
"""
