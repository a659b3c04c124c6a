package org.hrmedge.app.engine

import java.io.File
import java.nio.ByteBuffer
import kotlin.concurrent.thread
import kotlin.io.path.createTempDirectory
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.hrmedge.core.Benchmark
import org.hrmedge.core.Bundle
import org.hrmedge.core.Cancelled
import org.hrmedge.core.Decoding
import org.hrmedge.core.Finish
import org.hrmedge.core.Manifest
import org.hrmedge.core.Memory
import org.hrmedge.core.Settings
import org.hrmedge.core.Share
import org.hrmedge.core.Stop
import org.hrmedge.core.TestFiles
import org.hrmedge.core.TokenEngine
import org.hrmedge.core.ints
import org.hrmedge.core.need
import org.hrmedge.core.objects
import org.hrmedge.core.problem
import org.hrmedge.core.readTokenizer

/** The engine of the app over real bundles, by the AAR's classes and JNI library. */
class OnnxEngineTest {
    private val heap = CacheMemory(ByteBuffer::allocateDirect)

    private fun engine(
        bundle: Bundle = TestFiles.bundle(8),
        context: Int = 512,
        manifest: Manifest = bundle.manifest,
        decoding: Decoding = Decoding(),
    ): TokenEngine {
        val session = OnnxSession(bundle, context, threads = 1, memory = heap, decoding = decoding)
        return TokenEngine(manifest, session, readTokenizer(File(bundle.directory, "tokenizer.json")))
    }

    /** hrm-tiny as if nothing ended an answer. */
    private fun endless(): TokenEngine =
        TestFiles.bundle(8).let { engine(it, manifest = it.manifest.copy(ends = emptySet())) }

    private fun TokenEngine.ask(question: String, settings: Settings = Settings(), stop: Stop = Stop()) =
        answer(question, settings, stop) {}

    @Test
    fun givesTheGoldenAnswersTokenByTokenAndWithDrafts() {
        val most = TestFiles.golden.getInt("max_tokens")
        val ways = TestFiles.golden.getJSONObject("ways")
        for (name in ways.keys()) {
            val way = ways.getJSONObject(name)
            val decoding = Decoding(
                way.optJSONArray("l_cycles")?.ints()?.toList(),
                Share.valueOf(way.optString("kv_share", "none").uppercase()),
            )
            engine(TestFiles.bundle(way.getInt("kv_bits")), decoding = decoding).use { engine ->
                for (vector in TestFiles.golden.getJSONArray("vectors").objects()) {
                    val prefix = vector.getJSONArray("ids").ints()
                    val expected = vector.getJSONObject("answers").getJSONArray(name).ints().toList()
                    for (speculate in listOf(false, true)) {
                        val settings = Settings(maxTokens = most, speculate = speculate)
                        val answer = engine.answer(prefix, settings, Stop()) {}
                        assertEquals(expected, answer.tokens, "KV $name, drafts $speculate: ${vector.getString("prompt")}")
                    }
                }
            }
        }
    }

    @Test
    fun fastTakesWhatTheBundleRecommends() {
        val bundle = TestFiles.bundle(8)
        val fast = bundle.manifest.fast!!
        assertTrue(fast != Decoding(listOf(3, 3), Share.NONE), "$fast")
        val question = TestFiles.golden.getJSONArray("vectors").getJSONObject(0).getString("prompt")
        val named = engine(bundle, decoding = fast).use { it.ask(question).tokens }
        val limits = Limits(context = 256, threads = 1, memory = Long.MAX_VALUE, plan = Manifest.RECOMMENDED)
        openEngine(bundle, limits, heap).use {
            assertEquals(named, it.answer(question, Settings(), Stop()) {}.tokens)
        }
        val plans = bundle.manifest.plans
        assertEquals(plans.size, plans.map { it.name }.toSet().size)
        val recommended = bundle.manifest.plan(Manifest.RECOMMENDED)!!
        assertEquals(fast, recommended.decoding)
        assertEquals(recommended, bundle.manifest.plan(recommended.name))
        assertEquals(null, bundle.manifest.plan("a plan of another model"))
        assertTrue(plans.all { it.work in 0.1..1.0 && it.memory in 0.1..1.0 && it.sameAnswers in 0.0..1.0 })
    }

    @Test
    fun sharedSlotsTakeHalfTheMemory() {
        fun bytes(decoding: Decoding): Long {
            var sum = 0L
            val counted = CacheMemory { size -> ByteBuffer.allocateDirect(size).also { sum += size } }
            OnnxSession(TestFiles.bundle(8), 512, 1, counted, decoding).close()
            return sum
        }
        val own = bytes(Decoding())
        assertEquals(own / 2, bytes(Decoding(share = Share.CYCLE)))
        assertEquals(own * 3 / 8, bytes(Decoding(share = Share.STACK)))
        val manifest = TestFiles.bundle(8).manifest
        assertEquals(manifest.cache.bytesPerToken / 2, manifest.with(Decoding(share = Share.CYCLE)).cache.bytesPerToken)
        assertContains(problem { TestFiles.bundle("kv4").manifest.with(Decoding(share = Share.CYCLE)) }, "cannot be shared")
        assertContains(problem { engine(decoding = Decoding(listOf(1))) }, "takes 2 numbers of 1 to 3")
    }

    /** Made on this machine: at these roundings, answers of different processors may differ. */
    @Test
    fun givesThePythonRuntimesAnswersWithOtherCachesModelsAndAChatTemplate() {
        for (name in listOf("kv16", "kv4", "kv4h8", "chat", "hrm-g2p")) {
            engine(TestFiles.bundle(name)).use { engine ->
                for (case in TestFiles.answers(name)) {
                    val conditions = if (name == "chat") emptyList() else listOf("direct")
                    val answer = engine.ask(case.getString("prompt"), Settings(conditions, maxTokens = 64))
                    assertEquals(case.getJSONArray("tokens").ints().toList(), answer.tokens, "$name: $case")
                }
            }
        }
    }

    /** No token is a whole character here, and some answers end within one. */
    @Test
    fun charactersThatComeByteByByteAreShownWhole() {
        val cases = TestFiles.answers("bytes")
        assertEquals(listOf("😀", "日本", "😀😀"), cases.take(3).map { it.getString("text") })
        engine(TestFiles.bundle("bytes")).use { engine ->
            for (case in cases) {
                val pieces = ArrayList<String>()
                val answer = engine.answer(case.getString("prompt"), Settings(maxTokens = 64), Stop()) { pieces.add(it) }
                assertEquals(case.getString("text"), answer.text)
                assertEquals(answer.text, pieces.joinToString(""))
                assertTrue(pieces.none { '\uFFFD' in it }, "$pieces")
                assertTrue(pieces.none { it.isNotEmpty() && it.last().isHighSurrogate() }, "$pieces")
            }
        }
    }

    @Test
    fun theCacheTakesWhatTheManifestSays() {
        for (name in listOf("kv32", "kv16", "kv8", "kv4", "kv4h8")) {
            val bundle = TestFiles.bundle(name)
            var bytes = 0L
            val counting = CacheMemory { ByteBuffer.allocateDirect(it).also { _ -> bytes += it } }
            OnnxSession(bundle, 100, 1, counting).close()
            assertEquals(need(bundle.manifest, 100).cache, bytes, name)
        }
    }

    @Test
    fun streamsWhatItAnswers() = engine().use { engine ->
        val pieces = ArrayList<String>()
        val answer = engine.answer("Spell this word backward: PURAQUE", Settings(), Stop()) { pieces.add(it) }
        assertEquals("EUQARUP", answer.text)
        assertEquals(answer.text, pieces.joinToString(""))
        assertTrue(pieces.size > 1)
        assertEquals(Finish.END, answer.finish)
        assertEquals(answer.tokens.size, answer.stats.answerTokens)
        assertTrue(answer.stats.ttft > 0 && answer.stats.prefillTps > 0 && answer.stats.decodeTps > 0)
    }

    @Test
    fun draftsSaveCalls() = endless().use { engine ->
        val one = engine.ask("Sort: 1, 1, 1, 1", Settings(maxTokens = 200, speculate = false, endLoops = false))
        val many = engine.ask("Sort: 1, 1, 1, 1", Settings(maxTokens = 200, endLoops = false))
        assertEquals(199, one.stats.calls)
        assertTrue(many.stats.calls < 199 && many.stats.accepted > 0, "${many.stats}")
    }

    @Test
    fun aSeedRepeatsAnAnswer() = engine().use { engine ->
        val settings = Settings(temperature = 1.5, seed = 3, maxTokens = 20)
        val first = engine.ask("Calculate 4 - 1", settings)
        assertEquals(first.tokens, engine.ask("Calculate 4 - 1", settings).tokens)
    }

    @Test
    fun aLongAnswerEndsWithTheContext() = endless().use { engine ->
        val answer = engine.ask("Calculate 1 + 1", Settings(maxTokens = 10_000, endLoops = false))
        assertEquals(Finish.LENGTH, answer.finish)
        assertEquals(512, answer.stats.promptTokens + answer.stats.answerTokens)
    }

    @Test
    fun memoryDoesNotGrowOverTwoThousandTokens() = endless().use { engine ->
        fun tokens(count: Int) {
            var done = 0
            while (done < count) done += engine.ask("Calculate 1 + 1", Settings(maxTokens = 480, endLoops = false)).tokens.size
        }
        tokens(1000)
        // what leaks does so each time; the allocators' and the JVM's own pages come and go for a while
        val rounds = (0..8).map { round -> if (round > 0) tokens(2000); held() }
        val growth = rounds.zipWithNext { (heap, native), (heapAfter, nativeAfter) ->
            heapAfter - heap to nativeAfter - native
        }
        assertTrue(growth.minOf { it.first } < 1 shl 18, "heap: $growth")
        assertTrue(growth.minOf { it.second } < 1 shl 20, "native: $growth") // a KV cache has 2 MiB
    }

    /** (Java heap in use, anonymous memory) in bytes, after collecting. */
    private fun held(): Pair<Long, Long> {
        repeat(3) { System.gc() }
        val runtime = Runtime.getRuntime()
        return runtime.totalMemory() - runtime.freeMemory() to Memory.now()!!.anonymous
    }

    @Test
    fun stopEndsAnAnswerWithinOneToken() = engine().use { engine ->
        val question = "Sort these numbers in ascending order: 75, 4, 40, 96"
        val settings = Settings(speculate = false)
        val whole = engine.ask(question, settings)
        assertTrue(whole.tokens.size > 10)
        val stop = Stop()
        var shown = 0
        val answer = engine.answer(question, settings, stop) {
            if (++shown == 3) thread { stop.request() }.join()
        }
        assertEquals(Finish.STOPPED, answer.finish)
        assertEquals(3, answer.tokens.size)
        assertEquals(whole.tokens.take(3), answer.tokens)
        assertEquals(whole.tokens, engine.ask(question, settings).tokens)
    }

    @Test
    fun stopEndsACallUnderWay() {
        val bundle = TestFiles.bundle(8)
        OnnxSession(bundle, 512, 1, heap).use { session ->
            val ids = IntArray(512) { 20 + it % 50 }
            val waiting = thread {
                Thread.sleep(5)
                session.cancel()
            }
            val ended = runCatching { repeat(10_000) { session.prefill(ids) } }.exceptionOrNull()
            waiting.join()
            assertTrue(ended is Cancelled, "$ended")
            session.resume()
            session.prefill(ids)
        }
    }

    @Test
    fun stopBeforeTheBeginningEndsAtOnce() = engine().use { engine ->
        val stop = Stop().apply { request() }
        val answer = engine.ask("Calculate 1 + 1", stop = stop)
        assertEquals(Finish.STOPPED, answer.finish)
        assertTrue(answer.tokens.isEmpty())
    }

    @Test
    fun aQuestionThatDoesNotFitIsRefused() = engine(context = 16).use { engine ->
        assertContains(problem { engine.ask("Calculate 1 + 1 + 1 + 1 + 1 + 1 + 1") }, "shorten")
        assertEquals("3", engine.ask("Calculate 2 + 1").text)
    }

    @Test
    fun aModelThatIsNoneIsAProblem() {
        val copy = createTempDirectory("bundle").toFile()
        try {
            TestFiles.bundle(8).directory.copyRecursively(copy, overwrite = true)
            val model = File(copy, "model.onnx")
            model.writeBytes(ByteArray(model.length().toInt()) { 7 })
            assertContains(problem { engine(Bundle.open(copy)) }, "cannot load the model")
            File(copy, "model.onnx.data").delete()
            assertContains(problem { engine(Bundle.open(copy)) }, "model.onnx.data is missing")
        } finally {
            copy.deleteRecursively()
        }
    }

    @Test
    fun theContextIsWhatMemoryAllows() {
        val bundle = TestFiles.bundle(8)
        fun open(memory: Long) = openEngine(bundle, Limits(context = 2048, threads = 1, memory = memory), heap)
        open(Long.MAX_VALUE).use { assertEquals(512, it.maxContext) }
        open(need(bundle.manifest, 100).total).use { engine ->
            assertEquals(100, engine.maxContext)
            assertEquals("3", engine.answer("Calculate 4 - 1", Settings(), Stop()) {}.text)
        }
        assertContains(problem { open(1 shl 10) }, "close other apps")
    }

    @Test
    fun aBundleForAnotherRuntimeIsRefused() {
        val copy = createTempDirectory("bundle").toFile()
        try {
            TestFiles.bundle(8).directory.copyRecursively(copy, overwrite = true)
            val manifest = File(copy, Manifest.NAME)
            manifest.writeText(manifest.readText().replace("\"target\": \"onnx\"", "\"target\": \"gguf\""))
            val limits = Limits(512, 1, Long.MAX_VALUE)
            assertContains(problem { openEngine(Bundle.open(copy), limits, heap) }, "this one is for gguf")
        } finally {
            copy.deleteRecursively()
        }
    }

    @Test
    fun memoryIsGivenBackWhereLoadingFails() {
        class Counted : CacheMemory {
            var held = 0

            override fun allocate(bytes: Int): ByteBuffer {
                if (held == 20) throw OutOfMemoryError("full")
                held++
                return ByteBuffer.allocateDirect(bytes)
            }

            override fun release(buffer: ByteBuffer) {
                held--
            }
        }
        val memory = Counted()
        assertContains(problem { OnnxSession(TestFiles.bundle(8), 512, 1, memory) }, "choose a shorter one")
        assertEquals(0, memory.held)
    }

    @Test
    fun aCacheThatMemoryRefusesIsAProblem() {
        val none = CacheMemory { throw OutOfMemoryError("none") }
        for (context in listOf(512, 1 shl 26)) { // 2^26: more than a buffer's Int can count
            assertContains(problem { OnnxSession(TestFiles.bundle(8), context, 1, none) }, "choose a shorter one")
        }
    }

    @Test
    fun theBenchmarkMeasuresAndCanBeStopped() {
        OnnxSession(TestFiles.bundle(8), 64, 1, heap).use { session ->
            val progress = ArrayList<Double>()
            val benchmark = Benchmark(session, vocabSize = 512)
            val measured = benchmark.run(32, 16, 3, Stop()) { progress.add(it) }
            assertEquals(listOf("pp32", "tg16"), measured.map { it.name })
            assertTrue(measured.all { it.tokensPerSecond.size == 3 && it.median > 0 })
            assertEquals(progress.sorted(), progress)
            assertContains(problem { benchmark.run(65, 16, 1, Stop()) {} }, "room for 64")
            problem { benchmark.run(32, 16, 1, Stop().apply { request() }) {} }
            session.prefill(intArrayOf(20))
        }
    }
}
