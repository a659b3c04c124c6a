package org.hrmedge.core

import java.io.File
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
        val now = Memory.now()!!
        assertTrue(now.anonymous > 1 shl 20 && now.fileBacked > 1 shl 20, "$now")
        assertNull(Memory.now(File("/nowhere")))
    }
}
