package org.hrmedge.core

import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.json.JSONObject

class PromptTest {
    private val plain = TestFiles.bundle(8).manifest.prompt
    private val templated = TestFiles.bundle("chat").manifest.prompt
    private val earlier = listOf(Exchange("Hi ", " Hello", "", 0))

    @Test
    fun anEmptyQuestionAndAnUnknownConditionAreRefused() {
        assertContains(problem { plain.prefix(" \n", listOf("direct")) }, "empty")
        assertContains(problem { plain.prefix("hi", listOf("loud")) }, "loud")
        val expected = "<|im_start|><|quad_end|><|object_ref_end|>hi<|im_end|>"
        assertEquals(expected, plain.prefix(" hi ", listOf("synth", "cot")))
    }

    @Test
    fun laterTurnsBecomeATranscript() {
        assertEquals("Who?", plain.conversation(emptyList(), "Who?"))
        val expected = "User: Hi\n\nAssistant: Hello\n\nUser: Who?\n\nAssistant:"
        assertEquals(expected, plain.conversation(earlier, "Who?"))
    }

    /** The Python runtime renders the template itself. */
    @Test
    fun aChatTemplateGivesWhatItsProgramGives() {
        for (case in TestFiles.python.getJSONArray("conversations").objects()) {
            val turns = case.getJSONArray("turns")
            val texts = (0 until turns.length()).map(turns::getString)
            val past = texts.chunked(2).filter { it.size == 2 }.map { (q, a) -> Exchange(q, a, "", 0) }
            val prefix = templated.prefix(templated.conversation(past, texts.last()), emptyList())
            assertEquals(case.getString("rendered"), prefix)
        }
        assertTrue(templated.conditions.isEmpty())
    }

    @Test
    fun aChatTemplateThatIsMoreThanTextIsRefused() {
        assertContains(problem { PromptFormat.read(JSONObject("""{"prompt_format": null}""")) }, "Python runtime")
        val raw = """{"prompt_format": {"start": "<", "end": ">", "conditions": {}, "turns": null}}"""
        val single = PromptFormat.read(JSONObject(raw))
        assertEquals("<Who?>", single.prefix(single.conversation(emptyList(), "Who?"), emptyList()))
        assertContains(problem { single.conversation(earlier, "Who?") }, "switch earlier turns off")
    }
}
