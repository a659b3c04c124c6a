package org.hrmedge.core

import java.util.Random
import kotlin.math.exp

/** How to answer. Throws [Problem] for a value out of range; defaults are greedy. */
data class Settings(
    val conditions: List<String> = listOf("direct"),
    val maxTokens: Int = 256,
    val temperature: Double = 0.0,
    val topK: Int = 0,
    val topP: Double = 1.0,
    val minP: Double = 0.0,
    val seed: Long? = null,
    val speculate: Boolean = true,
    /** End a greedy answer that repeats itself. */
    val endLoops: Boolean = true,
) {
    init {
        check(maxTokens >= 1, "Answer length", maxTokens, "1 or more")
        check(temperature in 0.0..100.0, "Temperature", temperature, "0 (greedy) to 100")
        check(topK >= 0, "Top k", topK, "0 (off) or more")
        check(topP > 0 && topP <= 1, "Top p", topP, "more than 0, at most 1 (off)")
        check(minP >= 0 && minP < 1, "Min p", minP, "0 (off) to less than 1")
    }

    private fun check(ok: Boolean, name: String, value: Any, expected: String) {
        if (!ok) throw Problem("$name is $value, expected $expected.")
    }
}

/** A token and its probability. */
data class Candidate(val token: Int, val probability: Double)

/** Draws tokens from logits. Filters see the distribution before temperature, as llama.cpp's do. */
class Sampler(private val settings: Settings) {
    /** Whether the answer may be ended where it repeats itself. */
    val endsLoops = settings.endLoops && settings.temperature == 0.0

    private val random = settings.seed?.let(::Random) ?: Random()

    /** The next token for [logits] `[V]`; the likeliest at temperature 0. */
    fun sample(logits: FloatArray): Int {
        if (settings.temperature == 0.0) return argmax(logits)
        val candidates = candidates(logits)
        var rest = random.nextDouble()
        for (candidate in candidates) {
            rest -= candidate.probability
            if (rest < 0) return candidate.token
        }
        return candidates.last().token
    }

    /** The tokens that pass the filters, likeliest first; probabilities sum to 1. */
    fun candidates(logits: FloatArray): List<Candidate> {
        val order = likeliestFirst(logits)
        val most = logits[order[0]].toDouble()
        var count = if (settings.topK in 1..order.size) settings.topK else order.size
        if (settings.topP < 1) count = nucleus(logits, order, count, most)
        if (settings.minP > 0) {
            var kept = 1
            while (kept < count && exp(logits[order[kept]] - most) >= settings.minP) kept++
            count = kept
        }
        val weights = DoubleArray(count) { exp((logits[order[it]] - most) / settings.temperature) }
        val sum = weights.sum()
        return List(count) { Candidate(order[it], weights[it] / sum) }
    }

    /** How many of [count] tokens reach top p together; the one that crosses it is kept. */
    private fun nucleus(logits: FloatArray, order: IntArray, count: Int, most: Double): Int {
        val weights = DoubleArray(count) { exp(logits[order[it]] - most) }
        val threshold = settings.topP * weights.sum()
        var before = 0.0
        var kept = 0
        while (kept < count && before < threshold) before += weights[kept++]
        return kept
    }

    /** Ids by falling logit, equal ones by rising id: sorted as primitives, since V is large. */
    private fun likeliestFirst(logits: FloatArray): IntArray {
        val keys = LongArray(logits.size) { id ->
            val bits = logits[id].toRawBits()
            val rising = if (bits >= 0) bits else bits xor Int.MAX_VALUE
            (rising.inv().toLong() shl 32) or id.toLong()
        }
        keys.sort()
        return IntArray(keys.size) { keys[it].toInt() }
    }
}

/** The first index of the largest value. */
fun argmax(values: FloatArray): Int {
    var best = 0
    for (i in 1 until values.size) if (values[i] > values[best]) best = i
    return best
}
