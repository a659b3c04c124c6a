package org.hrmedge.app

import android.app.ActivityManager
import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager
import android.os.SharedMemory
import android.system.ErrnoException
import java.io.File
import java.nio.ByteBuffer
import java.util.Locale
import org.hrmedge.app.engine.CacheMemory
import org.hrmedge.core.Problem
import org.hrmedge.core.mebibytes

/** What this app asks of the device that it runs on. */
class Device(private val context: Context) {
    /** "Google Pixel 9, Android 16". */
    val name: String = "${Build.MANUFACTURER} ${Build.MODEL}, Android ${Build.VERSION.RELEASE}"

    /** Bytes that can still be taken before the system begins to kill apps. */
    val availableMemory: Long
        get() {
            val manager = context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager
            val info = ActivityManager.MemoryInfo().also(manager::getMemoryInfo)
            return (info.availMem - info.threshold).coerceAtLeast(0)
        }

    /** The number of fast cores: those with more than half the highest clock. */
    val fastCores: Int by lazy {
        val cores = Runtime.getRuntime().availableProcessors()
        val clocks = (0 until cores).mapNotNull { core ->
            val file = File("/sys/devices/system/cpu/cpu$core/cpufreq/cpuinfo_max_freq")
            runCatching { file.readText().trim().toLong() }.getOrNull()
        }
        val fastest = clocks.maxOrNull() ?: return@lazy cores
        clocks.count { 2 * it > fastest }
    }

    /** Battery and heat, each by its name and [moment], as far as the device tells. */
    fun condition(moment: String): Map<String, String> {
        val found = linkedMapOf<String, String>()
        context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))?.let { battery ->
            val level = battery.getIntExtra(BatteryManager.EXTRA_LEVEL, -1)
            val scale = battery.getIntExtra(BatteryManager.EXTRA_SCALE, 100)
            val tenths = battery.getIntExtra(BatteryManager.EXTRA_TEMPERATURE, 0)
            val plugged = battery.getIntExtra(BatteryManager.EXTRA_PLUGGED, 0) != 0
            val state = if (plugged) "plugged in" else "on battery"
            found["battery $moment"] =
                String.format(Locale.ROOT, "%d %%, %.1f °C, %s", 100 * level / scale, tenths / 10.0, state)
        }
        val manager = context.getSystemService(Context.BATTERY_SERVICE) as BatteryManager
        val charge = manager.getIntProperty(BatteryManager.BATTERY_PROPERTY_CHARGE_COUNTER)
        if (charge > 0) found["charge $moment"] = "${charge / 1000} mAh"
        thermalStatus()?.let { found["thermal status $moment"] = it }
        return found
    }

    /** How hot the device feels, in a word; null before Android 10. */
    fun thermalStatus(): String? {
        if (Build.VERSION.SDK_INT < 29) return null
        val manager = context.getSystemService(Context.POWER_SERVICE) as PowerManager
        val names = context.resources.getStringArray(R.array.thermal)
        return names.getOrNull(manager.currentThermalStatus)
    }

    /**
     * Memory for the KV cache outside of the Java heap, committed by the system as it is written.
     *
     * Before Android 8.1 there is only the heap, and its limit bounds the context.
     */
    fun cacheMemory(): CacheMemory =
        if (Build.VERSION.SDK_INT < 27) CacheMemory(ByteBuffer::allocateDirect) else Shared

    private object Shared : CacheMemory {
        override fun allocate(bytes: Int): ByteBuffer = try {
            val memory = SharedMemory.create("kv cache", bytes)
            try {
                memory.mapReadWrite() // stays mapped when the handle is closed
            } finally {
                memory.close()
            }
        } catch (error: ErrnoException) {
            val size = mebibytes(bytes.toLong())
            throw Problem("The system refuses $size for the cache (${error.message}).")
        }

        override fun release(buffer: ByteBuffer) = SharedMemory.unmap(buffer)
    }
}
