package org.hrmedge.app.engine

import java.io.File
import kotlin.concurrent.thread
import kotlin.io.path.createTempDirectory
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.hrmedge.core.Bundle
import org.hrmedge.core.Finish
import org.hrmedge.core.Settings
import org.hrmedge.core.Stop
import org.hrmedge.core.TestFiles
import org.hrmedge.core.need
import org.hrmedge.core.problem

/** The app's other engine over hrm-tiny's .pte, by ExecuTorch's classes and its JNI library. */
class ExecuTorchEngineTest {
    private val bundle = TestFiles.bundle("executorch")
    private val limits = Limits(512, 1, Long.MAX_VALUE)

    private fun engine() = openEngine(bundle, limits) { error("ExecuTorch has a cache of its own") }

    @Test
    fun answersAsThePythonRuntimeOneQuestionAfterTheOther() = engine().use { engine ->
        for (case in TestFiles.answers("executorch")) {
            val pieces = ArrayList<String>()
            val answer = engine.answer(case.getString("prompt"), Settings(maxTokens = 64), Stop()) { pieces.add(it) }
            assertEquals(case.getString("text"), answer.text)
            assertEquals(answer.text, pieces.joinToString(""))
            assertEquals(Finish.END, answer.finish)
            assertTrue(answer.stats.promptTokens > 0 && answer.stats.ttft >= 0, "${answer.stats}")
        }
    }

    /** Whole ones: half a character stays in the runner for good, which the engine finds and says. */
    @Test
    fun charactersThatComeByteByByteAreShownWhole() =
        openEngine(TestFiles.bundle("bytes-executorch"), limits) { error("") }.use { engine ->
            for (case in TestFiles.answers("bytes").take(3)) {
                val pieces = ArrayList<String>()
                val answer = engine.answer(case.getString("prompt"), Settings(maxTokens = 64), Stop()) { pieces.add(it) }
                assertEquals(case.getString("text") to Finish.END, answer.text to answer.finish)
                assertTrue(pieces.none { '\uFFFD' in it }, "$pieces")
            }
        }

    @Test
    fun anAnswerEndsWhereItShall() = engine().use { engine ->
        val question = "Sort these numbers in ascending order: 75, 4, 40, 96"
        val cut = engine.answer(question, Settings(maxTokens = 3), Stop()) {}
        assertEquals(Finish.LENGTH, cut.finish)
        val stop = Stop()
        var shown = 0
        val stopped = engine.answer(question, Settings(), stop) {
            if (++shown == 3) thread { stop.request() }.join()
        }
        assertEquals(Finish.STOPPED, stopped.finish)
        assertEquals(cut.text, stopped.text)
        assertEquals("['4', '40', '75', '96']", engine.answer(question, Settings(), Stop()) {}.text)
        val early = engine.answer(question, Settings(), Stop().apply { request() }) {}
        assertEquals(Finish.STOPPED to "", early.finish to early.text)
    }

    @Test
    fun anotherTemperatureIsAnotherModule() = engine().use { engine ->
        val question = "Calculate 4 - 1"
        val greedy = engine.answer(question, Settings(), Stop()) {}.text
        for (temperature in listOf(0.01, 0.0)) {
            assertEquals(greedy, engine.answer(question, Settings(temperature = temperature), Stop()) {}.text)
        }
    }

    @Test
    fun theProgramIsTheShortestThatHoldsTheContextAndFits() {
        val several = TestFiles.bundle("executorch-contexts")
        fun open(context: Int, memory: Long = Long.MAX_VALUE) =
            openEngine(several, Limits(context, 1, memory)) { error("") }
        for ((context, length) in listOf(100 to 128, 129 to 512, 512 to 512)) {
            open(context).use { engine ->
                assertEquals(length, engine.maxContext)
                assertEquals("3", engine.answer("Calculate 4 - 1", Settings(), Stop()) {}.text)
            }
        }
        open(512, need(several.manifest, 300).total).use { assertEquals(128, it.maxContext) }
        assertContains(problem { open(512, need(several.manifest, 100).total) }, "close other apps")
    }

    @Test
    fun aQuestionThatDoesNotFitIsAProblem() = engine().use { engine ->
        assertContains(problem { engine.answer("1 + ".repeat(2000), Settings(), Stop()) {} }, "room for 512")
        assertEquals("3", engine.answer("Calculate 4 - 1", Settings(), Stop()) {}.text)
    }

    @Test
    fun aModelThatIsNoneIsAProblem() {
        val copy = createTempDirectory("bundle").toFile()
        try {
            bundle.directory.copyRecursively(copy, overwrite = true)
            val model = File(copy, "model.pte")
            model.writeBytes(ByteArray(model.length().toInt()) { 7 })
            assertContains(problem { openEngine(Bundle.open(copy), limits) { error("") } }, "model.pte differs")
        } finally {
            copy.deleteRecursively()
        }
    }
}
