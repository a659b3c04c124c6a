package android.os;

import android.system.ErrnoException;
import java.nio.ByteBuffer;

/** Came with API 27, after the stubs that can be had here. */
public final class SharedMemory {
    public static native SharedMemory create(String name, int size) throws ErrnoException;

    public native ByteBuffer mapReadWrite() throws ErrnoException;

    public native void close();

    public static native void unmap(ByteBuffer buffer);
}
