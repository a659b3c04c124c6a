package org.hrmedge.core

import java.util.Locale
import org.json.JSONArray
import org.json.JSONObject

/** One test in llama-bench's terms: pp reads [tokens] as a prompt, tg decodes them one by one. */
data class Measurement(val name: String, val tokens: Int, val tokensPerSecond: List<Double>) {
    /** The middle one of the repetitions. */
    val median: Double get() = tokensPerSecond.sorted()[tokensPerSecond.size / 2]
}

/** What was measured on which device; [facts] are lines such as "device" to "Pixel 9". */
data class Report(val facts: Map<String, String>, val measurements: List<Measurement>) {
    /** A table to read and to share. */
    fun table(): String {
        val head = facts.map { (name, value) -> "$name: $value" }
        val rows = measurements.map {
            String.format(
                Locale.ROOT,
                "%s: %.2f tok/s (%d runs, %.2f to %.2f)",
                it.name,
                it.median,
                it.tokensPerSecond.size,
                it.tokensPerSecond.min(),
                it.tokensPerSecond.max(),
            )
        }
        return (head + rows).joinToString("\n")
    }

    /** The same for programs. */
    fun json(): String = JSONObject()
        .put("facts", JSONObject(facts))
        .put(
            "measurements",
            JSONArray(
                measurements.map {
                    JSONObject().put("test", it.name).put("tokens", it.tokens)
                        .put("tok_per_s", JSONArray(it.tokensPerSecond))
                },
            ),
        )
        .toString(2)
}

/** Times prefill and decode of made-up tokens; nothing is sampled from them. */
class Benchmark(private val session: Session, private val vocabSize: Int) {
    /** Runs both tests [repetitions] times after one run that does not count. Throws [Cancelled]. */
    fun run(
        prefill: Int,
        decode: Int,
        repetitions: Int,
        stop: Stop,
        progress: (Double) -> Unit,
    ): List<Measurement> {
        val most = session.maxContext
        if (prefill > most || decode + 1 > most) {
            throw Problem("The benchmark needs ${maxOf(prefill, decode + 1)} tokens, there is room for $most.")
        }
        try {
            return stop.during(session::cancel) { measure(prefill, decode, repetitions, progress) }
        } finally {
            session.resume()
        }
    }

    private fun measure(
        prefill: Int,
        decode: Int,
        repetitions: Int,
        progress: (Double) -> Unit,
    ): List<Measurement> {
        val prompts = ArrayList<Double>()
        val answers = ArrayList<Double>()
        for (run in 0..repetitions) {
            val prompt = rate(prefill) { session.prefill(ids(prefill)) }
            progress((run + 0.5) / (repetitions + 1))
            session.prefill(ids(1))
            val answer = rate(decode) { for (id in ids(decode)) session.decode(intArrayOf(id)) }
            progress((run + 1.0) / (repetitions + 1))
            if (run > 0) {
                prompts.add(prompt)
                answers.add(answer)
            }
        }
        return listOf(
            Measurement("pp$prefill", prefill, prompts),
            Measurement("tg$decode", decode, answers),
        )
    }

    private fun ids(count: Int) = IntArray(count) { ((it * 7919L + 14) % vocabSize).toInt() }

    private inline fun rate(tokens: Int, work: () -> Unit): Double {
        val started = System.nanoTime()
        work()
        return tokens * 1e9 / (System.nanoTime() - started)
    }
}
