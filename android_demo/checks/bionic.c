/*
 * libc.so for Android libraries on a desktop, after checks/desktop.py: what bionic has and glibc
 * lacks, or has with other constants. All else they get from glibc itself.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <unistd.h>

int *__errno(void) { return &errno; }
char *__gnu_strerror_r(int error, char *text, size_t size) { return strerror_r(error, text, size); }
size_t __strlen_chk(const char *text, size_t size) { return strlen(text); }
char *__strchr_chk(const char *text, int c, size_t size) { return strchr(text, c); }
char *__strrchr_chk(const char *text, int c, size_t size) { return strrchr(text, c); }
ssize_t __write_chk(int file, const void *from, size_t n, size_t size) { return write(file, from, n); }
int __system_property_get(const char *name, char *value) { return *value = 0; }
void android_set_abort_message(const char *text) { fprintf(stderr, "abort: %s\n", text); }

/* A finalizer would run after the JVM is gone. */
int __cxa_atexit(void (*function)(void *), void *argument, void *library) { return 0; }
void __cxa_finalize(void *library) {}

/* stdin, stdout and stderr lead nowhere on a phone. */
char __sF[3][152];
FILE *_tderr, *_tdout;
__attribute__((constructor)) static void streams(void) { _tderr = _tdout = fopen("/dev/null", "w"); }
static FILE *stream(void *file) {
    return (char *)file < __sF[0] || (char *)file > __sF[2] ? file : _tderr;
}
int _rintf(const char *format, ...) { return 0; }
int _utchar(int c) { return c; }
int _flush(void *file) { return fflush(stream(file)); }
int _putc(int c, void *file) { return fputc(c, stream(file)); }
int _puts(const char *text, void *file) { return fputs(text, stream(file)); }
size_t _write(const void *from, size_t size, size_t n, void *file) { return fwrite(from, size, n, stream(file)); }
int _fprintf(void *file, const char *format, va_list values) { return vfprintf(stream(file), format, values); }
int _printf(void *file, const char *format, ...) {
    va_list values;
    va_start(values, format);
    int written = _fprintf(file, format, values);
    va_end(values);
    return written;
}

/* One core: thread pools that wait actively crawl where others want the cores too. */
int _pen(const char *path, int flags, ...) {
    if (!strcmp(path, "/sys/devices/system/cpu/possible") || !strcmp(path, "/sys/devices/system/cpu/present")) {
        int file = memfd_create("cores", 0);
        if (write(file, "0\n", 2) == 2) lseek(file, 0, SEEK_SET);
        return file;
    }
    va_list mode;
    va_start(mode, flags);
    int file = open(path, flags, va_arg(mode, mode_t));
    va_end(mode);
    return file;
}

long _ysconf(int name) {
    switch (name) {
    case 39: case 40: return sysconf(_SC_PAGESIZE);
    case 96: case 97: return 1; /* processors */
    case 143 ... 157: return 0; /* caches: what phones say too */
    default: fprintf(stderr, "sysconf(%d) is asked for\n", name); abort();
    }
}

/* The log: what would be seen with priorities from "warn" on. */
int __android_log_vprint(int priority, const char *tag, const char *format, va_list values) {
    if (priority < 5) return 0;
    fprintf(stderr, "%s: ", tag);
    vfprintf(stderr, format, values);
    return fputc('\n', stderr);
}
int __android_log_print(int priority, const char *tag, const char *format, ...) {
    va_list values;
    va_start(values, format);
    int written = __android_log_vprint(priority, tag, format, values);
    va_end(values);
    return written;
}
int __android_log_write(int priority, const char *tag, const char *text) {
    return __android_log_print(priority, tag, "%s", text);
}
void __android_log_assert(const char *condition, const char *tag, const char *format, ...) {
    fprintf(stderr, "%s: %s\n", tag, condition);
    abort();
}
void __gcov_dump(void) {}
void __gcov_flush(void) {}

/* Sets of files, for sockets that nothing here opens. */
void __FD_SET_chk(int file, fd_set *set, size_t size) { FD_SET(file, set); }
int __FD_ISSET_chk(int file, const fd_set *set, size_t size) { return FD_ISSET(file, set); }

/* glibc's writes into the path that it is given. */
char *_irname(const char *path) {
    static __thread char copy[4096];
    snprintf(copy, sizeof copy, "%s", path);
    return dirname(copy);
}

/* Without a symbol's version glibc's loader takes the oldest, which wants a place for the result. */
char *_ealpath(const char *path, char *resolved) { return realpath(path, resolved); }
