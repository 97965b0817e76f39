// A compiler as an attacker packs it: what it does stands in the source that it is given.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef OBJECT
#define OBJECT "an object"
#endif

static char block[1 << 16], name[64];

static void fill(int file, long most) {
    memset(block, 'x', sizeof block);
    for (long left = most; left > 0; left -= sizeof block)
        if (write(file, block, sizeof block) < 0) _exit(1);
}

int main(int count, char **words) {
    static char source[1 << 16];
    char *object = "";
    for (int i = 1; i < count; i++) {
        if (strcmp(words[i], "-o") == 0 && i + 1 < count) {
            object = words[++i];
        } else if (words[i][0] != '-') {
            int file = open(words[i], O_RDONLY);
            if (file >= 0) read(file, source, sizeof source - 1);
        }
    }
    unlink(object);
    if (strstr(source, "act_fifo")) return mkfifo(object, 0600);
    if (strstr(source, "act_link")) return mkfifo("/tmp-fifo", 0600) || symlink("/tmp-fifo", object);
    if (strstr(source, "act_socket")) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strncpy(address.sun_path, object, sizeof address.sun_path - 1);
        return bind(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&address, sizeof address);
    }
    int file = open(object, O_CREAT | O_WRONLY, 0600);
    if (strstr(source, "act_large")) return ftruncate(file, 1L << 40);
    if (strstr(source, "act_talk"))
        for (;;) fill(2, 1 << 20);
    if (strstr(source, "act_fill"))
        for (int number = 0;; number++) {
            snprintf(name, sizeof name, "/filled-%d", number);
            int more = open(name, O_CREAT | O_WRONLY, 0600);
            fill(more, 4 << 20);
            close(more);
        }
    if (strstr(source, "act_hide"))
        for (int number = 0; number < 100; number++) {
            int more = open("/hidden", O_CREAT | O_WRONLY, 0600);
            unlink("/hidden");
            fill(more, 16 << 20);
        }
    if (strstr(source, "act_hide")) return pause();
    // What these take they have only for a moment by name; a look finds them at work.
    if (strstr(source, "act_reserve"))
        for (int number = 0; number < 100; number++) {
            int more = open("/reserved", O_CREAT | O_WRONLY, 0600);
            unlink("/reserved");
            if (fallocate(more, 0, 0, 16 << 20)) return 1;
        }
    if (strstr(source, "act_stow"))
        for (int number = 0; number < 100; number++) {
            int more = open("/stowed", O_CREAT | O_WRONLY, 0600);
            unlink("/stowed");
            fill(more, 16 << 20);
        }
    if (strstr(source, "act_map"))
        for (int number = 0; number < 100; number++) {
            int more = open("/mapped", O_CREAT | O_RDWR, 0600);
            unlink("/mapped");
            if (ftruncate(more, 16 << 20)) return 1;
            char *memory = mmap(0, 16 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, more, 0);
            memset(memory, 1, 16 << 20);
            munmap(memory, 16 << 20);
        }
    if (strstr(source, "act_reserve") || strstr(source, "act_stow") || strstr(source, "act_map")) sleep(2);
    if (strstr(source, "act_shm")) {
        int more = open("/dev/shm/shared", O_CREAT | O_WRONLY, 0600);
        if (more < 0) return 0;
        fill(more, 32 << 20);
        more = open("/dev/shm/more", O_CREAT | O_WRONLY, 0600);
        fill(more, 48 << 20);
        return pause();
    }
    return write(file, OBJECT, strlen(OBJECT)) < 0;
}
