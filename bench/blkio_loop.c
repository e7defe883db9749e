/*
 * The loop of a load on a queue of libblkio, for bench/vhost.py: in C, so that the client costs less than what is measured.
 * The two functions of the library come as pointers, so that neither its headers nor linking is needed.
 */
#include <stdint.h>
#include <stddef.h>

/* Source: libblkio 1.5, blkio(3). */
struct completion {
    void *user_data;
    const char *error_msg;
    int ret;
    uint8_t reserved[12];
};

typedef void submit_fn(void *queue, uint64_t start, void *buffer, size_t length, void *user_data, uint32_t flags);
typedef int do_io_fn(void *queue, struct completion *completions, int min, int max, void *timeout);

enum { DEPTH_MAX = 256 };

/* Keep depth requests of length bytes in flight until those at all offsets are done. How many failed, or -1. */
int64_t run_load(void *queue, submit_fn *submit, do_io_fn *do_io, const uint64_t *offsets, int64_t count, char *buffer,
                 size_t length, int depth)
{
    struct completion completions[DEPTH_MAX];
    char *idle[DEPTH_MAX];
    int nr_idle = 0;
    int64_t next = 0, done = 0, failed = 0;

    if (depth < 1 || depth > DEPTH_MAX)
        return -1;
    for (int slot = 0; slot < depth; slot++)
        idle[nr_idle++] = buffer + slot * length;
    while (done < count) {
        while (nr_idle && next < count) {
            char *slot = idle[--nr_idle];
            submit(queue, offsets[next++], slot, length, slot, 0);
        }
        int found = do_io(queue, completions, 1, depth, NULL);
        if (found < 1)
            return -1;
        for (int i = 0; i < found; i++) {
            idle[nr_idle++] = completions[i].user_data;
            failed += completions[i].ret != 0;
        }
        done += found;
    }
    return failed;
}
