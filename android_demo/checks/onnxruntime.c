/*
 * The AAR's JNI library asks libonnxruntime.so for symbols of its own version. A desktop build of
 * the same or a later version, named by HRMEDGE_ONNXRUNTIME, answers them: ONNX Runtime's C API is
 * a table that later versions only append to.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static void *desktop(const char *symbol) {
    static void *library;
    if (!library) library = dlopen(getenv("HRMEDGE_ONNXRUNTIME"), RTLD_NOW);
    void *found = library ? dlsym(library, symbol) : NULL;
    if (!found) {
        fprintf(stderr, "HRMEDGE_ONNXRUNTIME: %s\n", dlerror());
        abort();
    }
    return found;
}

const void *OrtGetApiBase(void) {
    const void *(*base)(void) = desktop(__func__);
    return base();
}

void *OrtSessionOptionsAppendExecutionProvider_CPU(void *options, int arena) {
    void *(*append)(void *, int) = desktop(__func__);
    return append(options, arena);
}

void *OrtSessionOptionsAppendExecutionProvider_Nnapi(void *options, unsigned flags) {
    void *(*append)(void *, unsigned) = desktop(__func__); /* no desktop has it, no one asks */
    return append(options, flags);
}
