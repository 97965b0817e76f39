// Memory that no page table shows: `shared` or `zero`, so many MiB, each forgotten as soon as it is written; `tables`, the
// tables alone of so many MiB. Held for so many seconds; 3 where the kernel does not give it.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int count, char **words) {
    if (count < 4) return 2;
    size_t mib = 1 << 20, most = atol(words[2]) * mib;
    if (strcmp(words[1], "tables") == 0) {
        // One page of a table for each two MiB that are looked at, and the page that is seen is always the same.
        size_t reach = 2 * mib, size = most / 4096 * reach;
        char *memory = mmap(0, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return 3;
        madvise(memory, size, MADV_NOHUGEPAGE);
        for (size_t at = 0; at < size; at += reach) (void)*(volatile char *)(memory + at);
    } else {
        int zero = strcmp(words[1], "zero") == 0;
        int file = zero ? open("/dev/zero", O_RDWR) : -1;
        char *memory = mmap(0, most, PROT_READ | PROT_WRITE, MAP_SHARED | (zero ? 0 : MAP_ANONYMOUS), file, 0);
        if (memory == MAP_FAILED) return 3;
        for (size_t at = 0; at < most; at += mib) {
            memset(memory + at, 1, mib);
            madvise(memory + at, mib, MADV_DONTNEED);
        }
    }
    sleep(atoi(words[3]));
    return 0;
}
