/* Loaded before the C library (LD_PRELOAD): counts the calls by which a process changes files, from the first name on
   that has ".unfinished-" in it. At the one whose number is WELM_FAULT_AT it kills the process; or, if WELM_FAULT_FULL is
   set, the disk is full from there on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int started;
static long calls;

/* Whether this call fails, because the disk is full. */
static int fails(const char *name, int needs_room) {
    const char *at = getenv("WELM_FAULT_AT");
    if (name != NULL && strstr(name, ".unfinished-") != NULL) started = 1;
    if (!started || at == NULL || ++calls < atol(at)) return 0;
    if (getenv("WELM_FAULT_FULL") == NULL) {
        if (calls == atol(at)) kill(getpid(), SIGKILL);
        return 0;
    }
    if (needs_room) errno = ENOSPC;
    return needs_room;
}

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

int mkdir(const char *path, mode_t mode) { return fails(path, 1) ? -1 : REAL(mkdir)(path, mode); }
int rename(const char *from, const char *to) { return fails(from, 1) ? -1 : REAL(rename)(from, to); }
int rmdir(const char *path) { return fails(path, 0), REAL(rmdir)(path); }
int unlink(const char *path) { return fails(path, 0), REAL(unlink)(path); }
int unlinkat(int folder, const char *path, int flags) { return fails(path, 0), REAL(unlinkat)(folder, path, flags); }
int fsync(int fd) { return fails(NULL, 1) ? -1 : REAL(fsync)(fd); }
/* Writes to stdout and stderr do not count. */
ssize_t write(int fd, const void *bytes, size_t n) { return fd > 2 && fails(NULL, 1) ? -1 : REAL(write)(fd, bytes, n); }
ssize_t writev(int fd, const struct iovec *parts, int n) {
    return fd > 2 && fails(NULL, 1) ? -1 : REAL(writev)(fd, parts, n);
}

static int mode_of(int flags, va_list rest) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; }

int open64(const char *path, int flags, ...) {
    va_list rest;
    int mode;
    va_start(rest, flags);
    mode = mode_of(flags, rest);
    va_end(rest);
    if (flags & O_CREAT && fails(path, 1)) return -1;
    return REAL(open64)(path, flags, mode);
}

long syscall(long number, ...) {
    long a[6];
    int i;
    va_list rest;
    va_start(rest, number);
    for (i = 0; i < 6; i++) a[i] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_renameat2 && fails((const char *)a[1], 1)) return -1;
    return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
