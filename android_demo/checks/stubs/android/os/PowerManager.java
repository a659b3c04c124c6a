package android.os;

/** The API-23 stub has no thermal status; it came with API 29. */
public final class PowerManager {
    public native int getCurrentThermalStatus();
}
