/* Counts what a program does to files below a folder, and makes one operation go wrong.
 *
 * Preloaded into the program that `cargo xtask torture` tries. A filter of the kernel (seccomp) traps
 * the system calls themselves, so calls that do not go through libc are seen too. The calls that this
 * library makes come from one place in its code, which the filter lets pass.
 *
 *   TORTURE_ROOT   the folder; all else is left alone
 *   TORTURE_AT     the operation that goes wrong, counted from 1; none without it
 *   TORTURE_KIND   how: kill, torn, eio, enospc, short, eintr, full, readonly, unreadable
 *   TORTURE_READS  set to count reading operations instead of writing ones
 *   TORTURE_LOG    a file that gets a line for each operation: number, call, path
 *
 * Linux on x86-64 only. The workspace forbids unsafe Rust, which is why this is C.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <unistd.h>

#ifndef __x86_64__
#error "faults.c knows the system calls of x86-64 alone"
#endif

/* The one place from which calls pass the filter: `passed_end` is behind its instruction. */
long passed(long number, long a, long b, long c, long d, long e, long f);
extern char passed_end[];
__asm__(".text\n.globl passed\n.hidden passed\n.globl passed_end\n.hidden passed_end\n"
        "passed:\n"
        "mov %rdi, %rax\nmov %rsi, %rdi\nmov %rdx, %rsi\nmov %rcx, %rdx\n"
        "mov %r8, %r10\nmov %r9, %r8\nmov 8(%rsp), %r9\n"
        "syscall\n"
        "passed_end:\nret\n");

/* What an operation can do, for kinds of faults that only some calls can have. */
enum { GROWS = 1, CAN_WAIT = 2, HAS_LENGTH = 4 };

/* A call: which argument has a path, a folder's descriptor before it, or else a descriptor. */
struct call {
    int number;
    const char *name;
    int folder, path, descriptor, length;
    int can;
};

static const struct call WRITES[] = {
    {SYS_open, "open", -1, 0, -1, -1, GROWS | CAN_WAIT},
    {SYS_openat, "open", 0, 1, -1, -1, GROWS | CAN_WAIT},
    {SYS_creat, "open", -1, 0, -1, -1, GROWS | CAN_WAIT},
    {SYS_write, "write", -1, -1, 0, 2, GROWS | CAN_WAIT | HAS_LENGTH},
    {SYS_pwrite64, "write", -1, -1, 0, 2, GROWS | CAN_WAIT | HAS_LENGTH},
    {SYS_writev, "writev", -1, -1, 0, -1, GROWS | CAN_WAIT},
    {SYS_copy_file_range, "copy", -1, -1, 2, 4, GROWS | CAN_WAIT | HAS_LENGTH},
    {SYS_sendfile, "copy", -1, -1, 0, 3, GROWS | CAN_WAIT | HAS_LENGTH},
    {SYS_fallocate, "fallocate", -1, -1, 0, -1, GROWS},
    {SYS_ftruncate, "truncate", -1, -1, 0, -1, CAN_WAIT},
    {SYS_truncate, "truncate", -1, 0, -1, -1, CAN_WAIT},
    {SYS_fsync, "sync", -1, -1, 0, -1, 0},
    {SYS_fdatasync, "sync", -1, -1, 0, -1, 0},
    {SYS_rename, "rename", -1, 1, -1, -1, 0},
    {SYS_renameat, "rename", 2, 3, -1, -1, 0},
    {SYS_renameat2, "rename", 2, 3, -1, -1, 0},
    {SYS_link, "link", -1, 1, -1, -1, GROWS},
    {SYS_linkat, "link", 2, 3, -1, -1, GROWS},
    {SYS_symlink, "link", -1, 1, -1, -1, GROWS},
    {SYS_symlinkat, "link", 1, 2, -1, -1, GROWS},
    {SYS_mkdir, "mkdir", -1, 0, -1, -1, GROWS},
    {SYS_mkdirat, "mkdir", 0, 1, -1, -1, GROWS},
    {SYS_rmdir, "remove", -1, 0, -1, -1, 0},
    {SYS_unlink, "remove", -1, 0, -1, -1, 0},
    {SYS_unlinkat, "remove", 0, 1, -1, -1, 0},
    {SYS_chmod, "chmod", -1, 0, -1, -1, 0},
    {SYS_fchmodat, "chmod", 0, 1, -1, -1, 0},
    {SYS_fchmod, "chmod", -1, -1, 0, -1, 0},
    {SYS_utimensat, "times", 0, 1, -1, -1, 0},
};

static const struct call READS[] = {
    {SYS_open, "open", -1, 0, -1, -1, CAN_WAIT},
    {SYS_openat, "open", 0, 1, -1, -1, CAN_WAIT},
    {SYS_read, "read", -1, -1, 0, 2, CAN_WAIT | HAS_LENGTH},
    {SYS_pread64, "read", -1, -1, 0, 2, CAN_WAIT | HAS_LENGTH},
    {SYS_getdents64, "list", -1, -1, 0, -1, 0},
    {SYS_copy_file_range, "copy", -1, -1, 0, 4, CAN_WAIT | HAS_LENGTH},
};

#define COUNT(list) (sizeof(list) / sizeof *(list))

static const struct call *calls;
static size_t call_count;
static char root[4096];
static size_t root_length;
static const char *kind = "";
static long at, counted;
static int log_to = -1;
static char kind_kept[32];

/* Writes what lies behind a descriptor of a folder or a file to `into`; empty if nothing does. */
static void path_of(long descriptor, char *into, size_t room) {
    char link[64];
    long got = -1;
    if ((int)descriptor == AT_FDCWD)
        strcpy(link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", (int)descriptor);
    got = passed(SYS_readlink, (long)link, (long)into, (long)room - 1, 0, 0, 0);
    into[got > 0 ? got : 0] = 0;
}

/* The place that a call is about. */
static void place(const struct call *call, const greg_t *values, char *into, size_t room) {
    if (call->descriptor >= 0) {
        path_of(values[call->descriptor], into, room);
        return;
    }
    const char *path = (const char *)values[call->path];
    into[0] = 0;
    if (path == NULL || path[0] != '/') {
        path_of(call->folder >= 0 ? values[call->folder] : AT_FDCWD, into, room);
        size_t length = strlen(into);
        snprintf(into + length, room - length, "/%s", path ? path : "");
    } else {
        snprintf(into, room, "%s", path);
    }
}

static int is_below(const char *path) {
    return strncmp(path, root, root_length) == 0 &&
           (path[root_length] == '/' || path[root_length] == 0);
}

static int is(const char *name) { return strcmp(kind, name) == 0; }

/* The error that the operation of this number gets; 0 for none. */
static int error_of(const struct call *call, long number) {
    if (number < at || at == 0)
        return 0;
    if (is("full"))
        return call->can & GROWS ? ENOSPC : 0;
    if (is("readonly"))
        return EROFS;
    if (number != at)
        return 0;
    if (is("eio") || is("unreadable"))
        return EIO;
    if (is("enospc"))
        return ENOSPC;
    return is("eintr") && call->can & CAN_WAIT ? EINTR : 0;
}

/* Makes a call, or lets it go wrong. */
static long make(const struct call *call, greg_t *values) {
    char path[8192];
    place(call, values, path, sizeof path);
    if (is_below(path)) {
        long number = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
        if (log_to >= 0) {
            char line[8300];
            int length = snprintf(line, sizeof line, "%ld %s %s\n", number, call->name, path);
            passed(SYS_write, log_to, (long)line, length, 0, 0, 0);
        }
        int error = error_of(call, number);
        if (error)
            return -error;
        if (number == at) {
            int halves = call->can & HAS_LENGTH && values[call->length] > 1;
            if (halves && (is("short") || is("torn")))
                values[call->length] /= 2;
            long done = 0;
            if (is("short") || is("torn"))
                done = passed(call->number, values[0], values[1], values[2], values[3], values[4],
                              values[5]);
            if (is("kill") || is("torn")) {
                passed(SYS_kill, passed(SYS_getpid, 0, 0, 0, 0, 0, 0), SIGKILL, 0, 0, 0, 0);
                for (;;)
                    passed(SYS_pause, 0, 0, 0, 0, 0, 0);
            }
            if (is("short"))
                return done;
        }
    }
    return passed(call->number, values[0], values[1], values[2], values[3], values[4], values[5]);
}

static void trapped(int signal, siginfo_t *info, void *context) {
    (void)signal;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    greg_t values[6] = {registers[REG_RDI], registers[REG_RSI], registers[REG_RDX],
                        registers[REG_R10], registers[REG_R8],  registers[REG_R9]};
    for (size_t index = 0; index < call_count; index++)
        if (calls[index].number == info->si_syscall) {
            registers[REG_RAX] = make(&calls[index], values);
            return;
        }
    registers[REG_RAX] = -ENOSYS;
}

/* The filter: calls of the list are trapped, opening only where it is of the kind that counts. */
static int install(int reads) {
    struct sock_filter code[16 + 8 * COUNT(WRITES)];
    size_t used = 0;
    uint64_t end = (uint64_t)(uintptr_t)passed_end;
#define ADD(...) code[used++] = (struct sock_filter)__VA_ARGS__
#define LOAD(field) ADD(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(field)))
#define END(what) ADD(BPF_STMT(BPF_RET | BPF_K, what))
    LOAD(offsetof(struct seccomp_data, instruction_pointer));
    ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)end, 0, 3));
    LOAD(offsetof(struct seccomp_data, instruction_pointer) + 4);
    ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(end >> 32), 0, 1));
    END(SECCOMP_RET_ALLOW);
    LOAD(offsetof(struct seccomp_data, nr));
    for (size_t index = 0; index < call_count; index++) {
        int number = calls[index].number;
        int flags = number == SYS_open ? 1 : number == SYS_openat ? 2 : -1;
        if (flags < 0 || reads) {
            ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 1));
            END(SECCOMP_RET_TRAP);
            continue;
        }
        ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 4));
        LOAD(offsetof(struct seccomp_data, args) + 8 * (size_t)flags);
        ADD(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_ACCMODE | O_CREAT | O_TRUNC, 0, 1));
        END(SECCOMP_RET_TRAP);
        END(SECCOMP_RET_ALLOW);
    }
    END(SECCOMP_RET_ALLOW);
    struct sock_fprog program = {(unsigned short)used, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("TORTURE_ROOT"), *number = getenv("TORTURE_AT");
    const char *how = getenv("TORTURE_KIND"), *to = getenv("TORTURE_LOG");
    int reads = getenv("TORTURE_READS") != NULL;
    if (folder == NULL)
        return;
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    at = number ? atol(number) : 0;
    snprintf(kind_kept, sizeof kind_kept, "%s", how ? how : "");
    kind = kind_kept;
    calls = reads ? READS : WRITES;
    call_count = reads ? COUNT(READS) : COUNT(WRITES);
    if (to)
        log_to = open(to, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
    struct sigaction action = {0};
    action.sa_sigaction = trapped;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    if (sigaction(SIGSYS, &action, NULL) != 0 || install(reads) != 0) {
        fprintf(stderr, "faults.c: the system takes no filter of calls\n");
        _exit(99);
    }
}
