// Asks for room in a file, of the kernel and of the C library.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

int main(int count, char **words) {
    if (count < 2) return 2;
    int file = open(words[1], O_CREAT | O_RDWR, 0600);
    printf("fallocate: %d\n", fallocate(file, 0, 0, 1 << 20) ? errno : 0);
    printf("posix_fallocate: %d\n", posix_fallocate(file, 0, 1 << 20));
    return 0;
}
