package org.hrmedge.core

private const val MOST = 15 // drafted tokens in a call
private const val WINDOW = 5 // calls of a size whose times are remembered
private const val SLOPE = 0.25 // assumed cost of a further token in a call, until measured
private const val GAIN = 1.08 // by how much drafting must promise to be faster
private const val MEMORY = 0.9 // weight of the past in acceptance within an answer, a call
private const val SLOW = 0.98 // and over answers, a token

/** Proposes what followed the last [n] tokens when they last occurred in prompt or answer. */
class PromptLookup(prompt: IntArray, val n: Int, val trust: Double) {
    private val ids = prompt.toMutableList()
    private val promptLength = prompt.size
    private val after = HashMap<List<Int>, Int>() // n-gram -> where the token after it stands
    private var indexed = n

    /** Copies on from the last occurrence; at most [most] tokens, none without an occurrence. */
    fun propose(answer: List<Int>, most: Int): List<Int> {
        ids.addAll(answer.subList(ids.size - promptLength, answer.size))
        for (end in indexed until ids.size) after[ids.subList(end - n, end).toList()] = end
        indexed = maxOf(indexed, ids.size)
        if (ids.size < n) return emptyList()
        val at = after[ids.subList(ids.size - n, ids.size)] ?: return emptyList()
        val known = ids.subList(at, minOf(at + most, ids.size)).toList()
        return List(most) { known[it % known.size] }
    }
}

/** What earlier answers taught: seconds a call of each size takes, drafters' acceptance. */
class Experience {
    private val seen = HashMap<Int, ArrayDeque<Double>>()
    private val trusts = HashMap<Int, Double>()

    /** Remembers a call with [size] tokens. */
    fun observe(size: Int, seconds: Double) {
        val times = seen.getOrPut(size) { ArrayDeque() }
        times.addLast(seconds)
        if (times.size > WINDOW) times.removeFirst()
    }

    /** Expected seconds of a call with [size] tokens; arbitrary units before any was seen. */
    fun of(size: Int): Double = seen[size]?.min()
        ?: ((seen.minOfOrNull { (n, times) -> times.min() / assumed(n) } ?: 1.0) * assumed(size))

    /** The share of its tokens that proved right of late, or what it begins with. */
    fun trust(drafter: PromptLookup): Double = trusts[drafter.n] ?: drafter.trust

    /** Remembers, slowly, how many of a guess's tokens were right. */
    fun judge(drafter: PromptLookup, right: Int, tried: Int) {
        val kept = Math.pow(SLOW, tried.toDouble())
        trusts[drafter.n] = kept * trust(drafter) + (1 - kept) * right / tried
    }

    private fun assumed(size: Int) = 1 + SLOPE * (size - 1)
}

/** How many tokens of one drafter's guess are worth verifying, from how many proved right. */
class Pace(private val drafter: PromptLookup, private val learned: Experience) {
    private var right = 2 * learned.trust(drafter) // as if two had been seen
    private var tried = 2.0

    /** A guess; those of its tokens that are worth verifying come first, so cut it at [worth]. */
    fun propose(answer: List<Int>): List<Int> = drafter.propose(answer, MOST)

    /** The number of drafted tokens that promises the most tokens a second, at most [most]. */
    fun worth(most: Int): Int {
        var best = 0
        var rate = GAIN / learned.of(1)
        var expected = 1.0
        var chance = 1.0
        for (k in 1..minOf(MOST, most)) {
            chance *= right / tried // that the first k tokens are right
            expected += chance
            val promised = expected / learned.of(k + 1)
            if (promised > rate * (1 + 1e-9)) {
                best = k
                rate = promised
            }
        }
        return best
    }

    /** Compares a guess with what was drawn in its place. */
    fun learn(guess: List<Int>, drawn: List<Int>) {
        val both = minOf(guess.size, drawn.size)
        var same = 0
        while (same < both && guess[same] == drawn[same]) same++
        val looked = same + if (same < both) 1 else 0
        if (looked == 0) return
        right = MEMORY * right + same
        tried = MEMORY * tried + looked
        learned.judge(drafter, same, looked)
    }
}

/** Prompt lookup after long matches, which are mostly right, and after short ones. */
fun lookups(prompt: IntArray, learned: Experience): List<Pace> =
    listOf(5 to 0.8, 3 to 0.5, 2 to 0.3).map { (n, trust) ->
        Pace(PromptLookup(prompt, n, trust), learned)
    }
