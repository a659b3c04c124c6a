package com.facebook.jni;

import com.facebook.soloader.nativeloader.NativeLoader;

/** Stands in for fbjni's class of this name: what libfbjni.so and ExecuTorch's classes ask of it. */
public class HybridData {
    static {
        NativeLoader.loadLibrary("fbjni");
    }

    private final Destructor mDestructor = new Destructor();

    public synchronized void resetNative() {
        mDestructor.destruct();
    }

    public boolean isValid() {
        return mDestructor.mNativePointer != 0;
    }

    static class Destructor {
        private volatile long mNativePointer;

        void destruct() {
            deleteNative(mNativePointer);
            mNativePointer = 0;
        }

        static native void deleteNative(long pointer);
    }
}

abstract class HybridClassBase extends HybridData {}

class NativeRunnable implements Runnable {
    private final HybridData mHybridData;

    private NativeRunnable(HybridData data) {
        mHybridData = data;
    }

    public native void run();
}

class ThreadScopeSupport {
    private static void runStdFunction(long pointer) {
        runStdFunctionImpl(pointer);
    }

    private static native void runStdFunctionImpl(long pointer);
}

class CppException extends RuntimeException {
    CppException(String message) {
        super(message);
    }
}

class CppSystemErrorException extends CppException {
    CppSystemErrorException(String message, int code) {
        super(message);
    }
}

class UnknownCppException extends CppException {
    UnknownCppException() {
        super("unknown");
    }
}
