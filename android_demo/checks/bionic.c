/*
 * What the AAR's x86-64 JNI library asks of Android's C library, for a desktop's.
 *
 * Compiled as libc.so, libm.so and libdl.so next to it: it is linked against those names, and
 * against the symbol version LIBC, neither of which glibc has. Everything is handed on.
 */
#include <stddef.h>
#include <stdlib.h>

extern void *__libc_malloc(size_t);
extern void *__libc_realloc(void *, size_t);
extern void __libc_free(void *);

void *malloc(size_t size) { return __libc_malloc(size); }
void *realloc(void *memory, size_t size) { return __libc_realloc(memory, size); }
void free(void *memory) { __libc_free(memory); }

void *memcpy(void *to, const void *from, size_t size) {
    for (size_t i = 0; i < size; i++) ((volatile char *)to)[i] = ((const char *)from)[i];
    return to;
}

size_t strlen(const char *text) {
    size_t length = 0;
    while (((const volatile char *)text)[length]) length++;
    return length;
}

int __cxa_atexit(void (*function)(void *), void *argument, void *library) { return 0; }
void __cxa_finalize(void *library) {}
int __register_atfork(void (*a)(void), void (*b)(void), void (*c)(void), void *d) { return 0; }
int dlclose(void *library) { return 0; }
void __stack_chk_fail(void) { abort(); }
