package org.hrmedge.core

import kotlin.math.abs
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.json.JSONArray
import org.json.JSONObject

/** The cases of spec/, which the Python runtime's and the web page's suites read as well. */
class SpecTest {
    private fun cases(name: String, list: String = "cases") =
        TestFiles.spec(name).getJSONArray(list).objects().also { assertTrue(it.isNotEmpty()) }

    private fun JSONArray.doubles() = List(length()) { getDouble(it) }

    private fun JSONArray.logits() = FloatArray(length()) { getDouble(it).toFloat() }

    /** Settings by the names of the spec. */
    private fun settings(options: JSONObject) = Settings(
        maxTokens = options.optInt("max_tokens", 256),
        temperature = options.optDouble("temperature", 0.0),
        topK = options.optInt("top_k", 0),
        topP = options.optDouble("top_p", 1.0),
        minP = options.optDouble("min_p", 0.0),
        seed = if (options.isNull("seed")) null else options.getLong("seed"),
    )

    private fun conditions(text: String) = text.split(",").map(String::trim).filter(String::isNotEmpty)

    @Test
    fun options() {
        val spec = TestFiles.spec("options")
        val defaults = spec.getJSONObject("defaults")
        assertEquals(Settings(), settings(defaults))
        cases("options", "taken").forEach(::settings)
        for (case in cases("options", "refused")) {
            val name = case.getString("option")
            if (name == "condition") {
                problem { format().prefix("Hi", conditions(case.getString("value"))) }
            } else if (name != "seed") { // the app draws with a long, below 0 too
                problem { settings(JSONObject().put(name, case.get("value"))) }
            }
        }
    }

    @Test
    fun plan() {
        fun recurrence(case: JSONObject) = case.getJSONObject("model").let {
            Recurrence(it.getInt("H_cycles"), it.getInt("L_cycles"), it.getInt("num_hidden_layers"))
        }
        fun counts(case: JSONObject) = case.optJSONArray("l_cycles")?.ints()?.toList()
        for (case in cases("plan")) {
            if (case.has("passes")) {
                val passes = case.getJSONArray("passes").let { List(it.length(), it::getBoolean) }
                assertEquals(passes, recurrence(case).plan(counts(case)).toList())
            } else {
                val share = Share.valueOf(case.getString("kv_share").uppercase())
                assertEquals(case.getJSONArray("slots").ints().toList(), recurrence(case).sharedSlots(share).toList())
            }
        }
        for (case in cases("plan", "refused").filter { it.has("l_cycles") }) {
            problem { recurrence(case).plan(counts(case)) }
        }
    }

    @Test
    fun sampling() {
        for (case in cases("sampling", "greedy")) {
            val token = Sampler(Settings()).sample(case.getJSONArray("logits").logits())
            assertEquals(case.getInt("token"), token)
        }
        for (case in cases("sampling")) {
            val options = case.getJSONObject("options")
            if (!options.has("temperature")) options.put("temperature", 1.0)
            val found = Sampler(settings(options)).candidates(case.getJSONArray("logits").logits())
            assertEquals(case.getJSONArray("ids").ints().toList(), found.map { it.token })
            val expected = case.getJSONArray("probabilities").doubles()
            expected.zip(found) { p, candidate -> assertTrue(abs(p - candidate.probability) < 1e-5) }
        }
    }

    private fun format(): PromptFormat {
        val raw = TestFiles.spec("prompt").getJSONObject("format")
        return PromptFormat.read(JSONObject().put("prompt_format", raw))
    }

    @Test
    fun prompt() {
        for (case in cases("prompt")) {
            val found = format().prefix(case.getString("text"), conditions(case.getString("condition")))
            assertEquals(case.getString("prefix"), found)
        }
        for (case in cases("prompt", "refused")) {
            problem { format().prefix(case.getString("text"), conditions(case.getString("condition"))) }
        }
    }

    /** A session whose greedy answer is given. */
    private class Dictated(drawn: IntArray) : Session {
        private val left = drawn.toMutableList()
        override val maxContext = 99
        override val length = 0

        private fun row() = FloatArray(32).also { it[left.removeAt(0)] = 1f }

        override fun prefill(ids: IntArray) = row()

        override fun decode(ids: IntArray) = ids.map { row() }

        override fun rewind(n: Int) = assertEquals(0, n)

        override fun cancel() = Unit

        override fun resume() = Unit

        override fun close() = Unit
    }

    @Test
    fun stopping() {
        for (case in cases("stopping")) {
            val ends = case.getJSONArray("ends").ints().toSet()
            val session = Dictated(case.getJSONArray("drawn").ints())
            val limit = case.getInt("max_tokens")
            val loop = DecodeLoop(session, Sampler(Settings()), limit, ends, emptyList(), Experience())
            val finish = loop.run(intArrayOf(1), Clock(1)) { true }
            assertEquals(case.getJSONArray("tokens").ints().toList(), loop.tokens)
            val expected = if (case.getString("finish_reason") == "stop") Finish.END else Finish.LENGTH
            assertEquals(expected, finish)
        }
    }

    @Test
    fun repetition() {
        for (case in TestFiles.spec("stopping").getJSONObject("repetition").getJSONArray("cases").objects()) {
            val block = case.getJSONArray("block").ints().toList()
            val drawn = case.getJSONArray("before").ints().toList() + List(2000 / block.size) { block }.flatten()
            val loop = Repetition()
            val at = drawn.indexOfFirst(loop::push)
            assertEquals(if (case.isNull("tokens")) 0 else case.getInt("tokens"), at + 1)
        }
    }

    @Test
    fun fit() {
        for (case in cases("fit")) {
            val manifest = Manifest.parse(case.getJSONObject("manifest").toString())
            for (expected in case.getJSONArray("needs").objects()) {
                val found = need(manifest, expected.getInt("context"))
                assertEquals(expected.getLong("weights"), found.weights)
                assertEquals(expected.getLong("kv_cache"), found.cache)
                assertEquals(expected.getLong("activations"), found.activations)
            }
            for (room in case.getJSONArray("rooms").objects()) {
                assertEquals(room.getInt("context"), largestContext(manifest, room.getLong("room")))
            }
        }
    }

    @Test
    fun pace() {
        for (case in cases("pace")) {
            val learned = Experience()
            val times = case.getJSONArray("times")
            for (i in 0 until times.length()) {
                learned.observe(times.getJSONArray(i).getInt(0), times.getJSONArray(i).getDouble(1))
            }
            val pace = Pace(PromptLookup(intArrayOf(1, 2, 3), 2, case.getDouble("trust")), learned)
            val proved = case.getJSONArray("learned")
            for (i in 0 until proved.length()) {
                val (right, compared) = proved.getJSONArray(i).ints().toList()
                val wrong = if (compared > right) listOf(2) else emptyList()
                pace.learn(List(compared) { 1 }, List(right) { 1 } + wrong)
            }
            assertEquals(case.getInt("worth"), pace.worth(case.getInt("most")))
        }
    }
}
