// What a job tries: one line for each call, with the kernel's answer.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *name, long result) {
    printf("%s %s\n", name, result < 0 ? strerrorname_np(errno) : "ALLOWED");
    fflush(stdout);
}

// In a process of its own: what succeeds must not help what follows.
#define TRY(name, call)                                                                            \
    do {                                                                                           \
        pid_t child = fork();                                                                      \
        if (child == 0) {                                                                          \
            errno = 0;                                                                             \
            say(name, (long)(call));                                                               \
            _exit(0);                                                                              \
        }                                                                                          \
        int status = 0;                                                                            \
        waitpid(child, &status, 0);                                                                \
        if (WIFSIGNALED(status)) {                                                                 \
            printf("%s SIG%s\n", name, sigabbrev_np(WTERMSIG(status)));                            \
            fflush(stdout);                                                                        \
        }                                                                                          \
    } while (0)

static long make(unsigned long flags) {
    long child = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(0);
    return child;
}

static long make3(unsigned long flags) {
    struct clone_args args = {.flags = flags, .exit_signal = SIGCHLD};
    long child = syscall(SYS_clone3, &args, sizeof args);
    if (child == 0) _exit(0);
    return child;
}

static long as_root_of_a_namespace(void) {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0) return -1;
    return mount("none", "/tmp", "tmpfs", 0, 0);
}

// As root outside of a sandbox some of this would succeed, and break the machine.
static void must_be_harmless(void) {
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    while (status && fgets(line, sizeof line, status))
        if (!strcmp(line, "CapEff:\t0000000000000000\n")) return;
    puts("has capabilities");
    _exit(99);
}

int main(void) {
    must_be_harmless();
    TRY("unshare-user", unshare(CLONE_NEWUSER));
    TRY("unshare-all", unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWPID | CLONE_NEWCGROUP));
    TRY("unshare-time", unshare(CLONE_NEWUSER | 0x80));
    TRY("clone-user", make(CLONE_NEWUSER));
    TRY("clone-net", make(CLONE_NEWUSER | CLONE_NEWNET));
    TRY("clone-mounts", make(CLONE_NEWUSER | CLONE_NEWNS));
    // The kernel takes the lower half only.
    TRY("clone-high", make(CLONE_NEWUSER | (1ul << 40)));
    TRY("clone3-user", make3(CLONE_NEWUSER));
    TRY("clone3", make3(0));
    TRY("setns", setns(open("/proc/self/ns/user", O_RDONLY), 0));
    TRY("mount", as_root_of_a_namespace());
    TRY("mount-bare", mount("none", "/tmp", "tmpfs", 0, 0));
    TRY("umount2", umount2("/proc", MNT_DETACH));
    TRY("pivot_root", syscall(SYS_pivot_root, "/", "/"));
    TRY("chroot", chroot("/"));
    TRY("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    TRY("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 0));
    TRY("move_mount", syscall(SYS_move_mount, AT_FDCWD, "/", AT_FDCWD, "/", 0));
    TRY("mount_setattr", syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, 0, 0));
    TRY("open_by_handle_at", syscall(SYS_open_by_handle_at, AT_FDCWD, 0, 0));
    TRY("netlink", socket(AF_NETLINK, SOCK_RAW, 12));
    TRY("packet", socket(AF_PACKET, SOCK_RAW, 0));
    TRY("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
    TRY("alg", socket(AF_ALG, SOCK_SEQPACKET, 0));
    TRY("keyctl", syscall(SYS_keyctl, 0, -3, 1, 0, 0));
    TRY("add_key", syscall(SYS_add_key, "user", "a", "b", 1, -3));
    union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    TRY("bpf", syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr));
    struct perf_event_attr event = {.type = PERF_TYPE_SOFTWARE, .size = sizeof event, .exclude_kernel = 1};
    TRY("perf_event_open", syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
    char ring[256] = {0};
    TRY("io_uring_setup", syscall(SYS_io_uring_setup, 1, ring));
    TRY("userfaultfd", syscall(SYS_userfaultfd, 1));
    TRY("ptrace", syscall(SYS_ptrace, 0, 0, 0, 0));
    TRY("process_vm_readv", syscall(SYS_process_vm_readv, getpid(), 0, 0, 0, 0, 0));
    TRY("memfd_create", syscall(SYS_memfd_create, "m", 0));
    TRY("shmget", syscall(SYS_shmget, 0, 4096, 01600));
    TRY("tiocsti", ioctl(0, TIOCSTI, "x"));
#ifdef __x86_64__
    // The same machine's other numbers: unshare of x32, and of 32 bits.
    TRY("x32", syscall(0x40000000 + SYS_unshare, CLONE_NEWUSER));
    long result = 310;
    TRY("i386", ({ __asm__ volatile("int $0x80" : "+a"(result) : "b"(CLONE_NEWUSER) : "memory"); errno = -result; result; }));
#endif
    // What programs need.
    TRY("fork", 0);
    TRY("unix", socket(AF_UNIX, SOCK_STREAM, 0));
    TRY("inet", socket(AF_INET, SOCK_STREAM, 0));
    return 0;
}
