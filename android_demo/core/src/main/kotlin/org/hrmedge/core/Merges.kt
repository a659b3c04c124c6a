package org.hrmedge.core

import java.util.PriorityQueue

/** The merges of a BPE: which two ids become which, and in what order. */
internal class Merges(lefts: IntArray, rights: IntArray, results: IntArray) {
    private val pairs: LongArray // sorted
    private val ranks: IntArray // of each pair
    private val merged: IntArray // by rank

    init {
        val keys = LongArray(lefts.size) { pair(lefts[it], rights[it]) }
        // a pair that is listed twice has the rank of its last mention, as in `tokenizers`
        val order = keys.indices.sortedWith(compareBy({ keys[it] }, { it }))
        val kept = order.filterIndexed { i, at -> i + 1 == order.size || keys[order[i + 1]] != keys[at] }
        pairs = LongArray(kept.size) { keys[kept[it]] }
        ranks = IntArray(kept.size) { kept[it] }
        merged = results
    }

    /**
     * Merges the symbols [ids] pair by pair, the lowest rank and then the leftmost first.
     *
     * A queue holds the pairs, so that a long piece costs n log n.
     */
    fun merge(ids: IntArray, into: Ints) {
        val next = IntArray(ids.size) { it + 1 }
        val previous = IntArray(ids.size) { it - 1 }
        val queue = PriorityQueue<Candidate>()
        fun offer(left: Int) {
            val right = next[left]
            if (right >= ids.size) return
            val rank = rank(ids[left], ids[right])
            if (rank >= 0) queue.add(Candidate(rank, left, ids[left], ids[right]))
        }
        for (left in 0 until ids.size - 1) offer(left)
        while (true) {
            val best = queue.poll() ?: break
            val right = next[best.at]
            val stale = ids[best.at] != best.left || right >= ids.size || ids[right] != best.right
            if (stale) continue
            ids[best.at] = merged[best.rank]
            ids[right] = GONE
            next[best.at] = next[right]
            if (next[right] < ids.size) previous[next[right]] = best.at
            offer(best.at)
            if (previous[best.at] >= 0) offer(previous[best.at])
        }
        for (id in ids) if (id != GONE) into.add(id)
    }

    private fun rank(left: Int, right: Int): Int {
        if (left == GONE || right == GONE) return -1
        val at = pairs.binarySearch(pair(left, right))
        return if (at < 0) -1 else ranks[at]
    }

    private class Candidate(val rank: Int, val at: Int, val left: Int, val right: Int) :
        Comparable<Candidate> {
        override fun compareTo(other: Candidate): Int =
            if (rank != other.rank) rank.compareTo(other.rank) else at.compareTo(other.at)
    }

    private companion object {
        const val GONE = -1

        fun pair(left: Int, right: Int): Long = (left.toLong() shl 32) or right.toLong()
    }
}
