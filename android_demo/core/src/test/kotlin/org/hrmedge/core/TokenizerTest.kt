package org.hrmedge.core

import java.io.File
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertContains
import kotlin.test.assertEquals
import org.json.JSONObject

class TokenizerTest {
    private val tiny = readTokenizer(File(TestFiles.bundle(8).directory, "tokenizer.json"))

    @Test
    fun givesTheIdsOfTokenizersInManyScripts() {
        val directories = TestFiles.tokenizers.listFiles()!!.filter { it.isDirectory }
        assertEquals(setOf("hrm-tiny", "qwen2", "llama3", "gpt2"), directories.map { it.name }.toSet())
        for (directory in directories) {
            val tokenizer = readTokenizer(File(directory, "tokenizer.json"))
            val lines = File(directory, "cases.jsonl").readLines()
            assertEquals(5000, lines.size)
            for (line in lines) {
                val case = JSONObject(line)
                val text = case.getString("text")
                val ids = case.getJSONArray("ids").ints()
                assertContentEquals(ids, tokenizer.encode(text), "${directory.name}: $text")
                assertEquals(case.getString("decoded"), tokenizer.decode(ids), directory.name)
            }
        }
    }

    @Test
    fun spellsTheGoldenPrompts() {
        val format = TestFiles.bundle(8).manifest.prompt
        for (vector in TestFiles.golden.getJSONArray("vectors").objects()) {
            val prefix = format.prefix(vector.getString("prompt"), listOf(vector.getString("condition")))
            assertContentEquals(vector.getJSONArray("ids").ints(), tiny.encode(prefix))
        }
    }

    @Test
    fun streamsWholeCharacters() {
        val ids = tiny.encode("Ä 😀!")
        val stream = tiny.stream()
        val pieces = ids.map(stream::push)
        assertEquals("Ä 😀!", pieces.joinToString(""))
        assertEquals(listOf("Ä", " ", "😀", "!"), pieces.filter { it.isNotEmpty() })
        assertEquals("", stream.flush())
    }

    @Test
    fun showsAnUnfinishedCharacterAtTheEnd() {
        val stream = tiny.stream()
        assertEquals("", stream.push(tiny.encode("😀")[0]))
        assertEquals("\uFFFD", stream.flush())
    }

    @Test
    fun leavesSpecialTokensOut() {
        assertEquals("7", tiny.decode(tiny.encode("<|im_start|>7<|box_end|>")))
    }

    @Test
    fun readsALongPieceInReasonableTime() {
        val text = "antidisestablishmentarianism".repeat(4000)
        assertEquals(text, tiny.decode(tiny.encode(text)))
    }

    @Test
    fun refusesOtherKinds() {
        val file = File.createTempFile("tokenizer", ".json")
        file.writeText("""{"model": {"type": "Unigram", "vocab": []}}""")
        assertContains(problem { readTokenizer(file) }, "no BPE")
        file.writeText("{\"model\": ")
        assertContains(problem { readTokenizer(file) }, "damaged")
        file.delete()
        assertContains(problem { readTokenizer(file) }, "missing")
    }
}
