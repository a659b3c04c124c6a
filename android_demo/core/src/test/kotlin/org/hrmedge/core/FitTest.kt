package org.hrmedge.core

import java.io.File
import kotlin.io.path.createTempFile
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertNull
import kotlin.test.assertTrue

class FitTest {
    private val manifest = TestFiles.bundle(8).manifest

    @Test
    fun theCacheIsExact() {
        assertEquals(100 * manifest.cache.bytesPerToken, need(manifest, 100).cache)
        assertEquals(manifest.files.getValue("model.onnx.data").size, need(manifest, 2).weights)
    }

    @Test
    fun theLargestContextFitsAndOneMoreDoesNot() {
        val room = need(manifest, 300).total
        assertEquals(300, largestContext(manifest, room))
        assertEquals(299, largestContext(manifest, room - 1))
        assertEquals(manifest.maxSeqLen, largestContext(manifest, Long.MAX_VALUE))
    }

    @Test
    fun tooSmallAMemoryIsSaid() {
        assertContains(problem { fittingContext(manifest, 512, 1000) }, "close other apps")
        assertEquals(300, fittingContext(manifest, 512, need(manifest, 300).total))
        assertEquals(128, fittingContext(manifest, 128, Long.MAX_VALUE))
    }

    @Test
    fun memoryIsReadFromTheSystem() {
        assertTrue(Memory.now()!!.anonymous > 1 shl 20)
        val status = createTempFile().toFile()
        status.writeText("VmRSS:\t 35 kB\nRssAnon:\t  10 kB\nRssFile:\t 20 kB\nRssShmem:\t  5 kB\n")
        assertEquals(Memory(anonymous = 15 * 1024, fileBacked = 20 * 1024), Memory.now(status))
        status.delete()
        assertNull(Memory.now(File("/nowhere")))
    }
}
