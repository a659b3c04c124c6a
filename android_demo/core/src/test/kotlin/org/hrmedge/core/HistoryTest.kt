package org.hrmedge.core

import java.io.File
import kotlin.io.path.createTempDirectory
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

class HistoryTest {
    private val scratch = createTempDirectory("history").toFile()
    private val file = File(scratch, "history.json")

    @AfterTest
    fun clean() {
        scratch.deleteRecursively()
    }

    @Test
    fun survivesARestart() {
        val exchange = Exchange("Spell \"a\"\n😀", "a", "12 tok/s", 1)
        History(file).add(exchange)
        assertEquals(listOf(exchange), History(file).exchanges)
        History(file).clear()
        assertTrue(History(file).exchanges.isEmpty())
    }

    @Test
    fun aDamagedFileIsSetAside() {
        file.writeText("[{\"question\"")
        assertTrue(History(file).exchanges.isEmpty())
        assertEquals("[{\"question\"", File(scratch, "history.json.damaged").readText())
    }
}
