/* The limit of this job: one process, one poll loop, whole lines with a tag, and nothing else.
   Usage: mux COUNT PROGRAM ARGUMENT...   runs PROGRAM COUNT times, each with its number as the last argument. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHILDREN = 16, CHUNK = 65536, OUTPUT = 2 * CHUNK };

struct source {
    char buffer[2 * CHUNK];
    size_t used;
    char tag[16];
    size_t tag_size;
};

static struct source sources[CHILDREN];
static struct pollfd fds[CHILDREN];
static char output[OUTPUT];
static size_t filled;

static void flush(void)
{
    for (size_t done = 0; done < filled;) {
        ssize_t count = write(1, output + done, filled - done);
        if (count <= 0)
            exit(1);
        done += (size_t)count;
    }
    filled = 0;
}

static void print(const struct source *source, const char *line, size_t size)
{
    if (filled + source->tag_size + size > OUTPUT)
        flush();
    memcpy(output + filled, source->tag, source->tag_size);
    memcpy(output + filled + source->tag_size, line, size);
    filled += source->tag_size + size;
}

/* Prints the whole lines of the buffer and moves the rest to its beginning. */
static void take(struct source *source)
{
    char *at = source->buffer, *end = source->buffer + source->used, *newline;
    while ((newline = memchr(at, '\n', (size_t)(end - at)))) {
        print(source, at, (size_t)(newline + 1 - at));
        at = newline + 1;
    }
    source->used = (size_t)(end - at);
    memmove(source->buffer, at, source->used);
}

static int start(char **command, int number)
{
    int ends[2];
    char text[16];
    char *arguments[64];
    int count = 0;
    snprintf(text, sizeof text, "%d", number);
    while (command[count] && count < 60) {
        arguments[count] = command[count];
        count++;
    }
    arguments[count] = text;
    arguments[count + 1] = NULL;
    if (pipe(ends))
        exit(1);
    if (fork() == 0) {
        dup2(ends[1], 1);
        close(ends[0]);
        close(ends[1]);
        execv(arguments[0], arguments);
        _exit(127);
    }
    close(ends[1]);
    return ends[0];
}

int main(int argc, char **argv)
{
    int count = argc > 2 ? atoi(argv[1]) : 0;
    if (count < 1 || count > CHILDREN)
        return 2;
    for (int i = 0; i < count; i++) {
        fds[i].fd = start(argv + 2, i);
        fds[i].events = POLLIN;
        sources[i].tag_size = (size_t)snprintf(sources[i].tag, sizeof sources[i].tag, "child%d   ", i);
    }
    for (int open = count; open > 0;) {
        if (poll(fds, (nfds_t)count, -1) < 0)
            return 1;
        for (int i = 0; i < count; i++) {
            if (fds[i].fd < 0 || !fds[i].revents)
                continue;
            struct source *source = &sources[i];
            ssize_t got = read(fds[i].fd, source->buffer + source->used, CHUNK);
            if (got <= 0) {
                close(fds[i].fd);
                fds[i].fd = -1;
                open--;
                continue;
            }
            source->used += (size_t)got;
            take(source);
        }
        flush();
    }
    /* Stays until its caller has read what it used. */
    char byte;
    return read(0, &byte, 1) < 0;
}
