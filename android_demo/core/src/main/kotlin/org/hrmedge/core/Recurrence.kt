package org.hrmedge.core

/** Which passes keep keys and values in one place; see docs/recurrence.md. */
enum class Share { NONE, CYCLE, STACK }

/** How an answer's tokens are read: so many L passes in each H cycle (null: all), and shared slots. */
data class Decoding(val lCycles: List<Int>? = null, val share: Share = Share.NONE)

/** A [decoding] that was measured at export: shares of 1, beside all passes and a slot for each. */
data class MeasuredPlan(
    val decoding: Decoding,
    /** Of the passes, for an answer's token. */
    val work: Double,
    /** Of the cache. */
    val memory: Double,
    /** Answers that stay the same. */
    val sameAnswers: Double,
) {
    /** What it goes by: "2,2 cycle". */
    val name: String
        get() = "${decoding.lCycles?.joinToString(",") ?: "all"} ${decoding.share.name.lowercase()}"
}

/** [hCycles] times [lCycles] passes of the stack L and one of H, with [layers] a stack. */
data class Recurrence(val hCycles: Int, val lCycles: Int, val layers: Int) {
    private val passes get() = hCycles * (lCycles + 1)

    /** Which passes to run: the last `counts[h]` L passes of each H cycle. Throws [Problem]. */
    fun plan(counts: List<Int>?): BooleanArray {
        val wanted = counts ?: List(hCycles) { lCycles }
        if (wanted.size != hCycles || wanted.any { it !in 1..lCycles }) {
            throw Problem("The plan is ${wanted.joinToString(",")}; it takes $hCycles numbers of 1 to $lCycles.")
        }
        return BooleanArray(passes) { it % (lCycles + 1) >= lCycles - wanted[it / (lCycles + 1)] }
    }

    /** The slot in whose place each cache slot lies. */
    fun sharedSlots(share: Share): IntArray = IntArray(passes * layers) { slot ->
        val turn = slot / layers
        val kept = when {
            share == Share.NONE || turn % (lCycles + 1) == lCycles -> turn
            share == Share.CYCLE -> (turn / (lCycles + 1) + 1) * (lCycles + 1) - 2
            else -> passes - 2
        }
        kept * layers + slot % layers
    }

    /** Whether [slot] belongs to a pass of the stack H. */
    fun inH(slot: Int): Boolean = slot / layers % (lCycles + 1) == lCycles
}
