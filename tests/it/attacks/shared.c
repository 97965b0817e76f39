// Holds so many MiB of shared memory, for so many seconds.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int count, char **words) {
    if (count < 3) return 2;
    size_t size = (size_t)atol(words[1]) << 20;
    char *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
    memset(memory, 1, size);
    sleep(atoi(words[2]));
    return 0;
}
