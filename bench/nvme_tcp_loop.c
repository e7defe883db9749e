/*
 * The loop of a load on a queue of NVMe over TCP, for bench/nvme.py: in C, so that the client costs less than what is measured.
 * The queue is connected by Python and has no digests. Source: NVM Express TCP Transport Specification 1.0.
 */
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

enum { CAPSULE = 72, DEPTH_MAX = 127, BUFFER = 1 << 20, RESPONSE = 5, DATA = 7, SUCCESS = 8 };

static int send_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t done = send(fd, data, length, MSG_NOSIGNAL);
        if (done < 1)
            return -1;
        data += done;
        length -= done;
    }
    return 0;
}

static void put_read(char *at, uint16_t cid, uint64_t slba, uint32_t nr_blocks, uint32_t length)
{
    static const char head[8] = {4, 0, CAPSULE, 0, CAPSULE, 0, 0, 0};
    uint32_t nsid = 1, nlb = nr_blocks - 1;
    uint64_t sgl = length | (uint64_t)0x5A << 56;

    memset(at, 0, CAPSULE);
    memcpy(at, head, sizeof(head));
    at[8] = 2;
    at[9] = 0x40;
    memcpy(at + 10, &cid, 2);
    memcpy(at + 12, &nsid, 4);
    memcpy(at + 40, &sgl, 8);
    memcpy(at + 48, &slba, 8);
    memcpy(at + 56, &nlb, 4);
}

/* Keep depth reads of nr_blocks blocks, length bytes, in flight until those at all slbas are done. How many failed, or -1. */
int64_t run_reads(int fd, const uint64_t *slbas, int64_t count, uint32_t nr_blocks, uint32_t length, int depth)
{
    static char capsules[DEPTH_MAX * CAPSULE], buffer[BUFFER];
    int64_t next = 0, done = 0, failed = 0;
    size_t have = 0;

    if (depth < 1 || depth > DEPTH_MAX)
        return -1;
    while (done < count) {
        int nr = 0;
        while (next < count && next - done < depth) {
            put_read(capsules + nr++ * CAPSULE, next & 0xFFFF, slbas[next], nr_blocks, length);
            next++;
        }
        if (nr && send_all(fd, capsules, nr * CAPSULE))
            return -1;
        ssize_t got = recv(fd, buffer + have, sizeof(buffer) - have, 0);
        if (got < 1)
            return -1;
        have += got;
        size_t at = 0;
        uint32_t pdu;
        while (have - at >= 8 && (memcpy(&pdu, buffer + at + 4, 4), pdu >= 8 && pdu <= have - at)) {
            char kind = buffer[at], flags = buffer[at + 1];
            if (kind == RESPONSE) {
                failed += (buffer[at + 22] | buffer[at + 23]) != 0;
                done++;
            } else if (kind != DATA) {
                return -1;
            } else if (flags & SUCCESS) {
                done++;
            }
            at += pdu;
        }
        have -= at;
        memmove(buffer, buffer + at, have);
    }
    return failed;
}
