package org.hrmedge.core

private const val LONGEST_PERIOD = 64 // tokens of what is repeated
private const val REPEATS = 8
private const val LEAST_REPEATED = 128 // tokens that repetitions have to fill: a ruled line is no loop

/** Finds the end of a list of tokens that is one block over and over, as runtime/decoding/stopping.py. */
class Repetition {
    private val last = ArrayDeque<Int>()
    private val same = IntArray(LONGEST_PERIOD + 1) // by period: tokens in a row like those before

    /** Whether [token] makes a loop whole. */
    fun push(token: Int): Boolean {
        var found = false
        for (period in 1..last.size) {
            same[period] = if (last[last.size - period] == token) same[period] + 1 else 0
            if (same[period] >= maxOf((REPEATS - 1) * period, LEAST_REPEATED - period)) found = true
        }
        last.addLast(token)
        if (last.size > LONGEST_PERIOD) last.removeFirst()
        return found
    }
}
