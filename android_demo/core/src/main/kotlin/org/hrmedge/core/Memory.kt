package org.hrmedge.core

import java.io.File
import java.io.IOException

/**
 * What this process holds, in bytes.
 *
 * Anonymous memory (heap, packed weights, the KV cache) is what gets an app killed. File-backed
 * pages of mapped weights can be dropped and read again.
 */
data class Memory(val anonymous: Long, val fileBacked: Long) {
    companion object {
        /** Reads /proc/self/status; null where the system does not have it. */
        fun now(status: File = File("/proc/self/status")): Memory? {
            val lines = try {
                status.readLines()
            } catch (_: IOException) {
                return null
            }
            val kib = lines.mapNotNull(::field).toMap()
            val anonymous = kib["RssAnon"] ?: return null
            return Memory((anonymous + (kib["RssShmem"] ?: 0)) * 1024, (kib["RssFile"] ?: 0) * 1024)
        }

        private fun field(line: String): Pair<String, Long>? {
            val (name, value) = line.split(":", limit = 2).takeIf { it.size == 2 } ?: return null
            val number = value.trim().removeSuffix(" kB").toLongOrNull() ?: return null
            return name to number
        }
    }
}
