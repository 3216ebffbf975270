/* A library to preload: calls of the operating system fail for files whose path has a text in it.

   The environment variable FAILING has "CALL ERRNO TEXT", such as "write 28 /runs/"; it may change at any time. Calls are
   write (with ERRNO 28, of a full disk, only where the file would grow), open, append (an open that would append), rename, replace (a rename over a file), mkdir and lock. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(const char *call, const char *path) {
    const char *rule = getenv("FAILING");
    char name[32], text[512];
    int number;
    if (rule == NULL || sscanf(rule, "%31s %d %511s", name, &number, text) != 3) return 0;
    if (strcmp(name, call) != 0 || strstr(path, text) == NULL) return 0;
    errno = number;
    return 1;
}

static int fails_at(const char *call, int fd) {
    char link[64], path[4096];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

ssize_t write(int fd, const void *bytes, size_t count) {
    int saved = errno;
    if (fails_at("write", fd)) {
        struct stat status;
        int grows = fstat(fd, &status) != 0 || (fcntl(fd, F_GETFL) & O_APPEND) ||
                    lseek(fd, 0, SEEK_CUR) + (off_t)count > status.st_size;
        if (errno != ENOSPC || grows) return -1;
        errno = saved;
    }
    return REAL(ssize_t, "write", int, const void *, size_t)(fd, bytes, count);
}

static int opened(const char *name, const char *path, int flags, mode_t mode) {
    if (fails("open", path) || ((flags & O_APPEND) && fails("append", path))) return -1;
    return REAL(int, name, const char *, int, mode_t)(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = va_arg(list, mode_t);
    va_end(list);
    return opened("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = va_arg(list, mode_t);
    va_end(list);
    return opened("open64", path, flags, mode);
}

int rename(const char *from, const char *to) {
    if (fails("rename", to) || (access(to, F_OK) == 0 && fails("replace", to))) return -1;
    return REAL(int, "rename", const char *, const char *)(from, to);
}

int mkdir(const char *path, mode_t mode) {
    return fails("mkdir", path) ? -1 : REAL(int, "mkdir", const char *, mode_t)(path, mode);
}

static int controlled(const char *name, int fd, int command, void *argument) {
    if ((command == F_SETLK || command == F_SETLKW) && fails_at("lock", fd)) return -1;
    return REAL(int, name, int, int, void *)(fd, command, argument);
}

int fcntl(int fd, int command, ...) {
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    return controlled("fcntl", fd, command, argument);
}

int fcntl64(int fd, int command, ...) {
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    return controlled("fcntl64", fd, command, argument);
}
