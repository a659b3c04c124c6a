package org.hrmedge.core

import kotlin.math.abs
import kotlin.math.ln
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertTrue

class SamplerTest {
    private val logits = floatArrayOf(0.1f, 0.5f, 0.3f, 0.1f).map { ln(it) }.toFloatArray()

    private fun kept(settings: Settings) = Sampler(settings).candidates(logits).map { it.token }

    @Test
    fun zeroTemperatureTakesTheFirstOfTheLikeliest() {
        assertEquals(1, Sampler(Settings()).sample(floatArrayOf(0f, 2f, 2f)))
        assertEquals(2, Sampler(Settings()).sample(floatArrayOf(-3f, -2f, -1f)))
    }

    @Test
    fun filtersKeepWhatTheyShould() {
        assertEquals(listOf(1, 2, 0, 3), kept(Settings(temperature = 1.0)))
        assertEquals(listOf(1, 2), kept(Settings(temperature = 1.0, topK = 2)))
        assertEquals(listOf(1, 2), kept(Settings(temperature = 1.0, topP = 0.6)))
        assertEquals(listOf(1), kept(Settings(temperature = 1.0, topP = 0.01)))
        assertEquals(listOf(1, 2), kept(Settings(temperature = 1.0, minP = 0.5)))
        assertEquals(listOf(1), kept(Settings(temperature = 1.0, topK = 3, topP = 0.9, minP = 0.7)))
    }

    @Test
    fun temperatureComesLast() {
        val hot = Sampler(Settings(temperature = 2.0, topK = 2)).candidates(logits)
        val expected = Math.sqrt(0.5) / (Math.sqrt(0.5) + Math.sqrt(0.3))
        assertEquals(expected, hot[0].probability, 1e-6)
        assertEquals(1.0, hot.sumOf { it.probability }, 1e-9)
    }

    @Test
    fun drawsInProportionAndRepeatsWithASeed() {
        val sampler = Sampler(Settings(temperature = 1.0, seed = 7))
        val drawn = List(20_000) { sampler.sample(logits) }
        for ((token, share) in listOf(0.1, 0.5, 0.3, 0.1).withIndex()) {
            assertTrue(abs(drawn.count { it == token } / 20_000.0 - share) < 0.02, "token $token")
        }
        val again = Sampler(Settings(temperature = 1.0, seed = 7))
        assertEquals(drawn.take(100), List(100) { again.sample(logits) })
    }

    @Test
    fun settingsOutOfRangeAreRefused() {
        assertContains(problem { Settings(temperature = -1.0) }, "Temperature")
        assertContains(problem { Settings(topP = 0.0) }, "Top p")
        assertContains(problem { Settings(maxTokens = 0) }, "Answer length")
        assertContains(problem { Settings(temperature = Double.NaN) }, "Temperature")
    }
}
