// A C library in front of the system's whose calls that change files below one directory can fail,
// or end the process, at the n-th of them. Loaded with LD_PRELOAD; benchmarks/faults.py arms it.

#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <string>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

namespace {

enum Mode { kCount, kOnce, kFull, kKill };

std::string root;
long seen = 0, at = 0;
Mode mode = kCount;

std::string of_descriptor(int fd) {
  char name[64], path[PATH_MAX];
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(name, path, sizeof path);
  return size < 0 ? "" : std::string(path, size);
}

std::string absolute(int directory, const char *path) {
  if (path[0] == '/') return path;
  if (directory != AT_FDCWD) return of_descriptor(directory) + "/" + path;
  char here[PATH_MAX];
  return std::string(getcwd(here, sizeof here) ? here : "") + "/" + path;
}

// Whether this call is to fail. Only `grows` meets a full disk; the others can fail by themselves.
bool fails(const std::string &path, bool grows, int code) {
  if (root.empty() || path.compare(0, root.size(), root) != 0) return false;
  ++seen;
  if (mode == kCount || seen < at) return false;
  if (mode == kKill && seen == at) kill(getpid(), SIGKILL);
  if ((mode == kOnce && seen == at) || (mode == kFull && grows)) {
    errno = mode == kFull ? ENOSPC : code;
    return true;
  }
  return false;
}

template <typename F> F next(const char *name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

void faults_arm(const char *directory, long n, int how) {
  root = directory;
  seen = 0;
  at = n;
  mode = static_cast<Mode>(how);
}

long faults_seen() { return seen; }

#define OPENER(NAME)                                                                   \
  int NAME(const char *path, int flags, ...) {                                         \
    va_list rest;                                                                      \
    va_start(rest, flags);                                                             \
    const mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;      \
    va_end(rest);                                                                      \
    if (flags & (O_CREAT | O_TRUNC) && fails(absolute(AT_FDCWD, path), true, EIO))     \
      return -1;                                                                       \
    return next<int (*)(const char *, int, ...)>(#NAME)(path, flags, bits);            \
  }
OPENER(open)
OPENER(open64)

#define OPENER_AT(NAME)                                                                \
  int NAME(int directory, const char *path, int flags, ...) {                          \
    va_list rest;                                                                      \
    va_start(rest, flags);                                                             \
    const mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;      \
    va_end(rest);                                                                      \
    if (flags & (O_CREAT | O_TRUNC) && fails(absolute(directory, path), true, EIO))    \
      return -1;                                                                       \
    return next<int (*)(int, const char *, int, ...)>(#NAME)(directory, path, flags, bits); \
  }
OPENER_AT(openat)
OPENER_AT(openat64)

#define STREAM(NAME)                                                                   \
  FILE *NAME(const char *path, const char *how) {                                      \
    if (strpbrk(how, "wa+") && fails(absolute(AT_FDCWD, path), true, EIO)) return nullptr; \
    return next<FILE *(*)(const char *, const char *)>(#NAME)(path, how);              \
  }
STREAM(fopen)
STREAM(fopen64)

ssize_t write(int fd, const void *data, size_t size) {
  if (fd > 2 && fails(of_descriptor(fd), true, EIO)) return -1;
  return next<ssize_t (*)(int, const void *, size_t)>("write")(fd, data, size);
}

ssize_t writev(int fd, const iovec *parts, int count) {
  if (fd > 2 && fails(of_descriptor(fd), true, EIO)) return -1;
  return next<ssize_t (*)(int, const iovec *, int)>("writev")(fd, parts, count);
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
  if (fileno(file) > 2 && fails(of_descriptor(fileno(file)), true, EIO)) return 0;
  return next<size_t (*)(const void *, size_t, size_t, FILE *)>("fwrite")(data, size, count, file);
}

#define POSITIONED(NAME)                                                               \
  ssize_t NAME(int fd, const void *data, size_t size, off_t where) {                   \
    if (fails(of_descriptor(fd), true, EIO)) return -1;                                \
    return next<ssize_t (*)(int, const void *, size_t, off_t)>(#NAME)(fd, data, size, where); \
  }
POSITIONED(pwrite)
POSITIONED(pwrite64)

#define SENDFILE(NAME)                                                                 \
  ssize_t NAME(int out, int in, off_t *where, size_t size) {                           \
    if (fails(of_descriptor(out), true, EIO)) return -1;                               \
    return next<ssize_t (*)(int, int, off_t *, size_t)>(#NAME)(out, in, where, size);  \
  }
SENDFILE(sendfile)
SENDFILE(sendfile64)

#define TRUNCATE(NAME)                                                                 \
  int NAME(int fd, off_t size) {                                                       \
    if (fails(of_descriptor(fd), true, EIO)) return -1;                                \
    return next<int (*)(int, off_t)>(#NAME)(fd, size);                                 \
  }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

// A full disk has no room for whoever asks.
#define ROOM(NAME, TYPE)                                                               \
  int NAME(const char *path, TYPE *found) {                                            \
    const int result = next<int (*)(const char *, TYPE *)>(#NAME)(path, found);        \
    if (result == 0 && mode == kFull && seen >= at) found->f_bavail = 0;               \
    return result;                                                                     \
  }
ROOM(statvfs, struct statvfs)
ROOM(statvfs64, struct statvfs64)

int fsync(int fd) {
  if (fails(of_descriptor(fd), false, EIO)) return -1;
  return next<int (*)(int)>("fsync")(fd);
}

int rename(const char *old, const char *path) {
  if (fails(absolute(AT_FDCWD, path), true, EIO)) return -1;
  return next<int (*)(const char *, const char *)>("rename")(old, path);
}

int renameat(int from, const char *old, int to, const char *path) {
  if (fails(absolute(to, path), true, EIO)) return -1;
  return next<int (*)(int, const char *, int, const char *)>("renameat")(from, old, to, path);
}

int renameat2(int from, const char *old, int to, const char *path, unsigned flags) {
  if (fails(absolute(to, path), true, EIO)) return -1;
  return next<int (*)(int, const char *, int, const char *, unsigned)>("renameat2")(
      from, old, to, path, flags);
}

int mkdir(const char *path, mode_t bits) {
  if (fails(absolute(AT_FDCWD, path), true, EIO)) return -1;
  return next<int (*)(const char *, mode_t)>("mkdir")(path, bits);
}

int chmod(const char *path, mode_t bits) {
  if (fails(absolute(AT_FDCWD, path), false, EIO)) return -1;
  return next<int (*)(const char *, mode_t)>("chmod")(path, bits);
}

int unlink(const char *path) {
  if (fails(absolute(AT_FDCWD, path), false, EIO)) return -1;
  return next<int (*)(const char *)>("unlink")(path);
}

int unlinkat(int directory, const char *path, int flags) {
  if (fails(absolute(directory, path), false, EIO)) return -1;
  return next<int (*)(int, const char *, int)>("unlinkat")(directory, path, flags);
}

int rmdir(const char *path) {
  if (fails(absolute(AT_FDCWD, path), false, EIO)) return -1;
  return next<int (*)(const char *)>("rmdir")(path);
}

}  // extern "C"
