// Memory that no page table shows: `shared` or `zero`, so many MiB, each forgotten as soon as it is written; `tables`, the
// tables alone of so many MiB; `sockets`, `pipes` or `tcp`, as much as they take that nobody reads, of as many of them as one
// process may have, in as many processes as so many MiB need. Held for so many seconds; 3 where the kernel does not give it.
// `enlarge` says whether the buffers of sockets and pipes can be made larger.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static char block[4096];

static long fill(int file) {
    long all = 0, sent;
    fcntl(file, F_SETFL, O_NONBLOCK);
    while ((sent = write(file, block, sizeof block)) > 0) all += sent;
    return all;
}

static int connected(int *ends) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (ends[0] < 0 || bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1)) return -1;
    getsockname(listener, (struct sockaddr *)&address, &length);
    if (connect(ends[0], (struct sockaddr *)&address, length)) return -1;
    ends[1] = accept(listener, 0, 0);
    close(listener);
    return ends[1];
}

// So much that nobody reads, or all that one process can have; gives how much that is.
static long unread(const char *kind, long most) {
    int ends[2];
    long all = 0;
    while (all < most) {
        if (strcmp(kind, "pipes") == 0) {
            if (pipe(ends)) return all;
            all += fill(ends[1]);
            close(ends[1]);
        } else {
            int is_tcp = strcmp(kind, "tcp") == 0;
            if (is_tcp ? connected(ends) < 0 : socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return all;
            all += fill(ends[0]);
            if (!is_tcp) all += fill(ends[1]);
        }
    }
    return all;
}

static int enlarge(void) {
    int ends[2], size = 1 << 20;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return 3;
    puts(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) ? "socket: refused" : "socket: larger");
    if (pipe(ends)) return 3;
    puts(fcntl(ends[0], F_SETPIPE_SZ, size) < 0 ? "pipe: refused" : "pipe: larger");
    return 0;
}

int main(int count, char **words) {
    if (count < 4) return 2;
    size_t mib = 1 << 20, most = atol(words[2]) * mib;
    if (strcmp(words[1], "enlarge") == 0) return enlarge();
    const char *kind = words[1];
    if (strcmp(kind, "sockets") == 0 || strcmp(kind, "pipes") == 0 || strcmp(kind, "tcp") == 0) {
        long left = most;
        while ((left -= unread(kind, left)) > 0) {
            // This one keeps what it has; the next one begins with nothing.
            if (fork()) break;
            for (int file = 3; file < 1024; file++) close(file);
        }
        sleep(atoi(words[3]));
        return 0;
    }
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
