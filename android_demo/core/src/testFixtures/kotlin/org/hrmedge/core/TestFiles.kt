package org.hrmedge.core

import java.io.File
import org.json.JSONArray
import org.json.JSONObject

/**
 * Where the build leaves bundles and cases: hrm-tiny with KV caches of 32, 16, 8, 4 and both 4 and
 * 8 bits and with a chat template, what the Python runtime makes of them, and tokenizers with their
 * ids.
 */
object TestFiles {
    val bundles = File(System.getProperty("hrmedge.bundles")!!)
    val tokenizers = File(System.getProperty("hrmedge.tokenizers")!!)

    /** What the Python runtime makes of some bundles. */
    val python = JSONObject(File(bundles, "python.json").readText())
    val golden = JSONObject(File(System.getProperty("hrmedge.golden")!!).readText())

    /** The cases [name] that all runtimes share. */
    fun spec(name: String) = JSONObject(File(System.getProperty("hrmedge.spec")!!, "$name.json").readText())

    fun bundle(kvBits: Int): Bundle = bundle("kv$kvBits")

    /** Prompts, tokens and texts of the Python runtime with the bundle [name]. */
    fun answers(name: String): List<JSONObject> = python.getJSONObject("answers").getJSONArray(name).objects()

    fun bundle(name: String): Bundle = Bundle.open(File(bundles, name))
}

fun JSONArray.ints(): IntArray = IntArray(length()) { getInt(it) }

fun JSONArray.objects(): List<JSONObject> = (0 until length()).map { getJSONObject(it) }

/** The message of the [Problem] that [work] throws. */
fun problem(work: () -> Unit): String =
    (runCatching(work).exceptionOrNull() as? Problem ?: error("no Problem was thrown")).message!!
