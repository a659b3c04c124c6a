package org.hrmedge.core

import kotlin.test.Test
import kotlin.test.assertEquals

class SpeculationTest {
    @Test
    fun copiesOnFromTheLastOccurrence() {
        val drafter = PromptLookup(intArrayOf(1, 2, 3, 4, 1, 2, 5, 6, 7), n = 2, trust = 0.5)
        assertEquals(listOf(5, 6, 7), drafter.propose(listOf(1, 2), 3))
        assertEquals(emptyList(), drafter.propose(listOf(1, 2, 9), 3))
    }

    @Test
    fun goesRoundWhereTextRepeats() {
        val drafter = PromptLookup(intArrayOf(8, 9, 8, 9), n = 2, trust = 0.5)
        assertEquals(listOf(8, 9, 8, 9, 8), drafter.propose(emptyList(), 5))
    }

    @Test
    fun draftsMoreWhereMoreProvedRight() {
        val learned = Experience()
        learned.observe(1, 1.0)
        val pace = Pace(PromptLookup(intArrayOf(1, 2, 3), 2, trust = 0.5), learned)
        val before = pace.worth(15)
        repeat(20) { pace.learn(listOf(1, 2, 3, 4), listOf(1, 2, 3, 4, 5)) }
        val after = pace.worth(15)
        repeat(40) { pace.learn(listOf(1), listOf(2)) }
        assert(after > before) { "$after > $before" }
        assertEquals(0, pace.worth(15))
        assertEquals(0, pace.worth(0))
    }
}
