package org.hrmedge.core

import java.io.File
import kotlin.io.path.createTempDirectory
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.json.JSONArray

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
    fun theLastExchangeIsTakenBackForGood() {
        val history = History(file)
        assertEquals(null, history.removeLast())
        val (first, second) = listOf("one", "two").map { Exchange(it, "", "", 1) }
        history.add(first)
        history.add(second)
        assertEquals(second, history.removeLast())
        assertEquals(listOf(first), History(file).exchanges)
    }

    @Test
    fun theConversationLeavesAsJson() {
        val history = History(file)
        history.add(Exchange("Grüße \"you\"\n😀", "日本", "12 tok/s", 7))
        val row = JSONArray(history.json()).getJSONObject(0)
        assertEquals("Grüße \"you\"\n😀" to "日本", row.getString("question") to row.getString("answer"))
        assertEquals(7L, row.getLong("time"))
    }

    @Test
    fun aDamagedFileIsSetAside() {
        file.writeText("[{\"question\"")
        assertTrue(History(file).exchanges.isEmpty())
        assertEquals("[{\"question\"", File(scratch, "history.json.damaged").readText())
    }
}
